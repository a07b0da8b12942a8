//go:build linux

package bus_test

import (
	"crypto/tls"
	"net"
	"testing"

	"fbus/bus"
	"fbus/bus/find"
	"fbus/bus/trust"
)

// TestDialPassesImpostor: a server without a node's certificate at one address of a
// ticket keeps nobody from the node at the next.
func TestDialPassesImpostor(t *testing.T) {
	addr := found(t)
	serve(t, addr)
	w, _ := networks.Load(addr)
	ticket := w.(network).ticket
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			tls.Server(nc, &tls.Config{
				NextProtos:   []string{trust.ALPN},
				Certificates: []tls.Certificate{{Certificate: [][]byte{ticket.Leaf.Raw}, PrivateKey: ticket.Key}},
			}).Handshake()
			nc.Close()
		}
	}()
	id := find.ForTicket(ticket)
	id.Addresses = []bus.Addr{bus.TCP(l.Addr().String()), bus.TCP(addr)}
	c, err := bus.Dial(bg(), bus.Addr{}, &bus.Options{Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Addr() != bus.TCP(addr) {
		t.Errorf("connected to %v, want %s", c.Addr(), addr)
	}
}
