package commands

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// TestJoinLost: when the reply is lost it is said that the ticket can be joined again, and
// where the doctor is; and it can.
func TestJoinLost(t *testing.T) {
	t.Setenv("FBUS_HOME", filepath.Join(t.TempDir(), "home"))
	a, addr, _ := startNetwork(t)
	_, file := issueFor(t, a, trust.Request{Name: "box", Rights: trust.Rights{Call: []string{"*"}}, TTL: time.Hour, Addresses: []string{addr}})
	o := &joinOptions{ticket: file, node: lossy(t, a), quiet: true}
	f := explain(joinNetwork(o, io.Discard))
	if f.Status() != args.StatusOf(args.CodeNoNode) || f.Code != args.CodeNodeLost || strings.Contains(f.Message+f.Hint, "may have run") {
		t.Errorf("it says %d %s: %s; %s", f.Status(), f.Code, f.Message, f.Hint)
	}
	for _, want := range []string{"fbus join " + file, "FBUS_TICKET=" + file + " fbus doctor --node " + o.node} {
		if !strings.Contains(f.Hint, want) {
			t.Errorf("no %q in the hint: %s", want, f.Hint)
		}
	}
	o.node = ""
	if err := joinNetwork(o, io.Discard); err != nil {
		t.Error(err)
	}
}

// lossy is where a node of the network hangs up when it is to answer a call.
func lossy(t *testing.T, a *trust.Authority) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with the listener, and its one connection
		defer close(done)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		c := tls.Server(nc, a.ServerConfig())
		defer c.Close()
		skipFrame(c)
		c.Write(wire.Append(nil, &wire.HelloFrame{Major: wire.Major, Network: []byte("net")}))
		skipFrame(c)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func skipFrame(r io.Reader) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err == nil {
		io.CopyN(io.Discard, r, int64(binary.BigEndian.Uint32(head[:])))
	}
}
