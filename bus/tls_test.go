//go:build linux

package bus_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"fbus/bus"
	"fbus/bus/find"
	"fbus/bus/trust"
)

// over runs a test over a unix socket, and over TCP under TLS. Its node is served
// at path, which is host:port over TCP, and dialled there.
func over(t *testing.T, f func(t *testing.T, path string)) {
	t.Run("unix", func(t *testing.T) { f(t, filepath.Join(t.TempDir(), "bus.sock")) })
	t.Run("tls", func(t *testing.T) { f(t, found(t)) })
}

// network is the authority of the nodes at one address, and a ticket of it that
// allows everything.
type network struct {
	*trust.Authority
	ticket *trust.Ticket
}

// networks are those of the addresses that tests use now.
var networks sync.Map

// found makes a network whose nodes have a loopback address of their own: its port
// stays free while a node restarts.
func found(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.N(254), rand.N(255), 1+rand.N(254)))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	addr := l.Addr().String()
	a, err := trust.Open(trust.Options{Dir: filepath.Join(t.TempDir(), "net"), Network: "test", Warn: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	rights := trust.Rights{Call: []string{"*"}, Offer: []string{"*"}, Admin: true}
	ticket, err := a.Issue(trust.LocalUser, trust.Request{Rights: rights, Reusable: true, Addresses: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	networks.Store(addr, network{a, ticket})
	t.Cleanup(func() {
		networks.Delete(addr)
		a.Close()
	})
	return addr
}

// dialOptions are those that a node at path is dialled with.
func dialOptions(path string) *bus.Options {
	if strings.Contains(path, "/") {
		return &bus.Options{}
	}
	w, _ := networks.Load(path)
	return &bus.Options{Identity: find.ForTicket(w.(network).ticket)}
}

// address is that of the node at path.
func address(path string) bus.Addr {
	if strings.Contains(path, "/") {
		return bus.Unix(path)
	}
	return bus.TCP(path)
}
