package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// firstNode starts the first node of a network, which fbus in this process uses, too. It returns
// a trial of it alone.
func firstNode(t *testing.T) *trial {
	dir, err := os.MkdirTemp("", "mesh")
	if err != nil {
		t.Fatal(err)
	}
	d := &trial{ctx: context.Background(), dir: dir, fbus: "fbus", out: io.Discard, sockets: map[string]string{}, ports: map[string]string{}}
	t.Cleanup(func() {
		d.stop()
		os.RemoveAll(dir)
	})
	if err := d.node("a"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FBUS_HOME", filepath.Join(dir, "a"))
	t.Setenv("FBUS_NODE", d.sockets["a"])
	return d
}

// ticket makes a ticket with certain rights.
func (d *trial) ticket(t *testing.T, name string, rights ...string) *trust.Ticket {
	t.Helper()
	path := filepath.Join(d.dir, name+".ticket")
	if err := d.run("a", nil, append([]string{"invite", "-q", "--reusable", "--name", name, "-o", path}, rights...)...); err != nil {
		t.Fatal(err)
	}
	ticket, err := trust.ReadTicket(path, "")
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

// enter connects to a NATS server with a ticket.
func enter(addr string, ticket *trust.Ticket, closed chan<- error) (*nats.Conn, error) {
	return nats.Connect("tls://"+addr, nats.NoReconnect(), func(o *nats.Options) error {
		o.TLSConfig = find.ForTicket(ticket).Config("")
		return nil
	}, nats.ClosedHandler(func(nc *nats.Conn) { closed <- nc.LastError() }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { closed <- err }))
}

// judge checks whom a NATS server of the network at addr admits, and to what.
func judge(t *testing.T, addr string, relay, guest *trust.Ticket) (*nats.Conn, chan error) {
	t.Helper()
	closed := make(chan error, 10)
	if nc, err := enter(addr, guest, closed); err == nil {
		nc.Close()
		t.Error("a guest enters")
	}
	for len(closed) > 0 {
		<-closed
	}
	if nc, err := nats.Connect("nats://"+addr, nats.NoReconnect()); err == nil {
		nc.Close()
		t.Error("somebody without a ticket enters")
	}
	nc, err := enter(addr, relay, closed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	sub, err := nc.SubscribeSync("fbus.demo.hello")
	if err != nil {
		t.Fatal(err)
	}
	nc.Publish("fbus.demo.hello", []byte("x"))
	if _, err := sub.NextMsg(5 * time.Second); err != nil {
		t.Error(err)
	}
	if sub, err = nc.SubscribeSync("f"); err != nil {
		t.Fatal(err)
	}
	nc.Publish("f", []byte("x"))
	if _, err := sub.NextMsg(5 * time.Second); err != nil {
		t.Errorf("a function for clients of NATS: %v", err)
	}
	nc.Publish("fbus.other.hello", []byte("x"))
	if err := <-closed; err == nil {
		t.Error("a subject of another network is open")
	}
	return nc, closed
}

// serveNATS is fbus mesh server, beside the node that fbus in this process uses. It returns the address.
func serveNATS(t *testing.T, globs ...string) string {
	t.Helper()
	every := trustEvery
	trustEvery = 50 * time.Millisecond
	addr, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	ready := make(chan struct{}, 10)
	o := &options{listen: addr, cfg: config{NATSService: globs, Note: func(format string, a ...any) {
		t.Logf(format, a...)
		ready <- struct{}{}
	}}}
	go func() { ended <- o.serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		trustEvery = every
	})
	<-ready
	return addr
}

// TestServerAdmits: meshes of the network enter, nobody else, and not after they were revoked.
func TestServerAdmits(t *testing.T) {
	d := firstNode(t)
	addr := serveNATS(t, "f")
	_, closed := judge(t, addr, d.ticket(t, "relay", "--relay"), d.ticket(t, "guest", "--call", "*"))
	if err := d.run("a", nil, "revoke", "-q", "relay"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Error("a revoked mesh stays")
	}
}

// TestServerPrivate: meshes need no subjects but those of their network. Unless the server is open to
// clients of NATS, one that is admitted reads no answers to others.
func TestServerPrivate(t *testing.T) {
	d := firstNode(t)
	addr := serveNATS(t)
	closed := make(chan error, 10)
	nc, err := enter(addr, d.ticket(t, "relay", "--relay"), closed)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, subject := range []string{"_INBOX.>", "$SRV.>", "f", ">"} {
		if _, err := nc.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		if err := <-closed; !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("%s: %v", subject, err)
		}
	}
	d.nats = "tls://" + addr
	if err := d.node("b"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if err := d.mesh(name, d.ports[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.start("b", "offer", "-q", "--slots", "1", "f", "--", "cat"); err != nil {
		t.Fatal(err)
	}
	if err := d.await("a", "f", 0, 1); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := d.run("a", &out, "call", "-n", "f"); err != nil {
		t.Errorf("%v: %s", err, &out)
	}
}

// TestConfig: a server with the configuration that is printed admits the same.
func TestConfig(t *testing.T) {
	d := firstNode(t)
	relay, guest := d.ticket(t, "relay", "--relay"), d.ticket(t, "guest", "--call", "*")
	addr, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	o := &options{listen: addr, cfg: config{NATSService: []string{"f"}, Note: t.Logf}}
	var text bytes.Buffer
	if err := o.printConfig(context.Background(), &text); err != nil {
		t.Fatal(err)
	}
	var tickets bytes.Buffer
	if err := d.run("a", &tickets, "tickets"); err != nil || strings.Count(tickets.String(), "active, mesh") != 1 {
		t.Errorf("%v: the certificate of the mesh is not shown as one:\n%s", err, &tickets)
	}
	path := filepath.Join(d.dir, "nats.conf")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, &text)
	}
	s, err := startServer(addr, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer stopServer(s)
	judge(t, addr, relay, guest)
}

// TestTurned: a node that cannot be reached is reached by a connection that it makes. If neither
// can reach the other, the state of the mesh says so.
func TestTurned(t *testing.T) {
	d := firstNode(t)
	s, err := startServer("127.0.0.1:0", &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer stopServer(s)
	d.nats = s.ClientURL()
	closed, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.mesh("a", d.ports["a"]); err != nil {
		t.Fatal(err)
	}
	if err := d.node("b"); err != nil {
		t.Fatal(err)
	}
	if err := d.mesh("b", closed); err != nil {
		t.Fatal(err)
	}
	if err := d.start("b", "offer", "-q", "f", "--", "cat"); err != nil {
		t.Fatal(err)
	}
	a, err := bus.Dial(context.Background(), bus.Unix(d.sockets["a"]), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, input := range [][]byte{[]byte("x"), big} {
		out, _, err := call(a, &bus.Request{Function: "f", Input: bytes.NewReader(input), WaitFunction: bus.WaitFor(15 * time.Second)})
		if err != nil || out != string(input) {
			t.Fatalf("%d of %d bytes, %v", len(out), len(input), err)
		}
	}
	var info bus.MeshInfo
	text, err := output(context.Background(), a, bus.MeshFunction, bus.Args{})
	if err == nil {
		err = json.Unmarshal(text, &info)
	}
	if err != nil || len(info.Peers) != 1 || info.Peers[0].Reach != "a connection that it has made" {
		t.Errorf("%s, %v", text, err)
	}
	if _, _, err := call(a, &bus.Request{Function: bus.MeshFunction, Args: args.List("word")}); code(err) != args.CodeBadInput {
		t.Error(err)
	}
}
