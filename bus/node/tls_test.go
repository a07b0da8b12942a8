package node_test

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fbus/bus/node"
	"fbus/bus/trust"
)

// TestMain removes what the tests' network keeps.
func TestMain(m *testing.M) {
	status := m.Run()
	if dir := everybody.dir; dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(status)
}

// network is one authority for all tests that want nothing of it but TLS, with a
// ticket that allows everything; it is founded when the first of them connects.
type network struct {
	once   sync.Once
	dir    string
	a      *trust.Authority
	ticket *trust.Ticket
}

var everybody network

func (w *network) open() *trust.Authority {
	w.once.Do(func() {
		var err error
		if w.dir, err = os.MkdirTemp("", "fbus-node-test-"); err != nil {
			panic(err)
		}
		if w.a, err = trust.Open(trust.Options{Dir: filepath.Join(w.dir, "net"), Network: "test"}); err != nil {
			panic(err)
		}
		rights := trust.Rights{Call: []string{"*"}, Offer: []string{"*"}, Admin: true}
		if w.ticket, err = w.a.Issue(trust.LocalUser, trust.Request{Name: "raw", Rights: rights, Reusable: true, Addresses: []string{"127.0.0.1:1"}}); err != nil {
			panic(err)
		}
	})
	return w.a
}

// ServerConfig, Admit and Check make it a node's gate.
func (w *network) ServerConfig() *tls.Config { return w.open().ServerConfig() }

func (w *network) Admit(cs tls.ConnectionState, from string) (*trust.Identity, error) {
	return w.open().Admit(cs, from)
}

func (w *network) Check(id *trust.Identity) error { return w.open().Check(id) }

// listenTCP lets others in to a node until the test ends.
func listenTCP(t testing.TB, n *node.Node) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.Listening(l.Addr().(*net.TCPAddr))
	served := make(chan struct{})
	go func() { // ends when the listener is closed
		defer close(served)
		if err := n.ServeTCP(l); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
	})
	return l.Addr().String()
}

// rawTLS connects over TCP with a ticket that allows everything.
func rawTLS(t testing.TB, n *node.Node, _ string) *raw {
	t.Helper()
	everybody.open()
	return dialTLS(t, listenTCP(t, n), everybody.ticket.ClientConfig(nil))
}

// dialTLS completes a handshake.
func dialTLS(t testing.TB, addr string, config *tls.Config) *raw {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	tc := tls.Client(nc, config)
	if err := tc.Handshake(); err != nil {
		nc.Close()
		t.Fatal(err)
	}
	nc.SetWriteDeadline(time.Time{})
	return newRaw(t, tc)
}
