package commands

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/find"
	"fbus/bus/node"
	"fbus/bus/trust"
)

// ahead is how far the clock that certificates are held against is ahead of the
// machine's: all tests of the package have that one, so that nothing is changed under
// what still ends.
var ahead atomic.Int64

func init() {
	trustClock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
}

//go:linkname trustClock fbus/bus/trust.wallClock
var trustClock func() time.Time

// withClock lets a test set the clock.
func withClock(t *testing.T) (add func(time.Duration)) {
	pause := find.RenewPause
	find.RenewPause = time.Millisecond
	t.Cleanup(func() {
		find.RenewPause = pause
		ahead.Store(0)
	})
	return func(d time.Duration) { ahead.Add(int64(d)) }
}

// startNetwork is a node of a network of its own, where it listens, and its log.
func startNetwork(t *testing.T) (*trust.Authority, string, *calllog.Log) {
	t.Helper()
	a, err := trust.Open(trust.Options{Dir: filepath.Join(t.TempDir(), "networks", "net"), Network: "net"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	log, err := calllog.Open(calllog.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	n, err := node.New(node.Config{Network: "net", Gate: a, Authority: a, Warn: t.Logf, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { // ends with the listener
		defer close(served)
		n.ServeTCP(l)
	}()
	t.Cleanup(func() { l.Close(); <-served })
	return a, l.Addr().String(), log
}

// issueFor makes a ticket and writes it to a file.
func issueFor(t *testing.T, a *trust.Authority, q trust.Request) (*trust.Ticket, string) {
	t.Helper()
	ticket, err := a.Issue(trust.LocalUser, q)
	if err != nil {
		t.Fatal(err)
	}
	text, err := ticket.Format()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ticket")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return ticket, file
}

// serialKept is the serial of the identity that is kept for the network.
func serialKept(t *testing.T) string {
	t.Helper()
	dir, err := find.JoinedDir()
	if err != nil {
		t.Fatal(err)
	}
	j, err := trust.OpenJoined(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	kept, err := j.Load("net")
	if err != nil {
		t.Fatal(err)
	}
	return kept.Serial
}

// TestRenewal: an identity is renewed in time by itself, while its connection stands,
// which then outlasts the certificate that it was made with; and when it is used next.
func TestRenewal(t *testing.T) {
	pass := withClock(t)
	for _, name := range []string{"FBUS_NODE", "FBUS_TICKET", "FBUS_TLS_CERT", "FBUS_TLS_KEY", "FBUS_TLS_CA"} {
		t.Setenv(name, "")
	}
	t.Setenv("FBUS_HOME", filepath.Join(t.TempDir(), "home"))
	a, addr, log := startNetwork(t)
	_, file := issueFor(t, a, trust.Request{Name: "box", Rights: trust.Rights{Call: []string{"*"}}, Addresses: []string{addr}})
	if err := joinNetwork(&joinOptions{ticket: file, quiet: true}, io.Discard); err != nil {
		t.Fatal(err)
	}
	dial := func() *bus.Client {
		t.Helper()
		c, p, err := connect(t.Context(), addr, durationValue{}, &bus.Options{Name: "box"})
		if err != nil {
			t.Fatal(err)
		}
		if p.Identity.Dir == "" {
			t.Fatalf("%s: %s", p, p.Why)
		}
		return c
	}
	lasting := dial()
	defer lasting.Close()
	first := serialKept(t)
	pass(trust.IdentityLife / 2)
	dial().Close()
	if serialKept(t) != first {
		t.Error("renewed with half of its life left")
	}

	pass(trust.IdentityLife / 4)
	waitUntil(t, "the identity is renewed", func() bool { return serialKept(t) != first })
	second := serialKept(t)
	// Past the end of the first certificate. That the node has looked at the clock since
	// is seen by another connection, whose ticket has ended too.
	short, _ := issueFor(t, a, trust.Request{Name: "short", Rights: trust.Rights{Call: []string{"x"}}, Reusable: true, TTL: time.Hour, Addresses: []string{addr}})
	c, err := bus.Dial(t.Context(), bus.Addr{}, &bus.Options{Identity: find.ForTicket(short)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pass(trust.IdentityLife / 2)
	<-c.Done()
	if e := explain(c.Err()); e.Code != args.CodeExpired {
		t.Errorf("the short one ended with %v", c.Err())
	}
	data, err := output(context.Background(), lasting, "fbus.nodes", args.Args{})
	if err != nil || !bytes.Contains(data, []byte("ticket:box")) {
		t.Errorf("the lasting connection: %s, %v", data, err)
	}
	if serialKept(t) != second {
		t.Error("renewed again with half of its life left")
	}

	// Nobody was connected: the next command renews it.
	lasting.Close()
	pass(trust.IdentityLife / 4)
	dial().Close()
	if third := serialKept(t); third == second {
		t.Error("not renewed by the next command")
	}
	entries, _, err := log.Read(t.Context(), calllog.Query{Event: calllog.EventRenewed, Caller: "ticket:box"})
	if err != nil || len(entries) != 2 || entries[0].Serial != second {
		t.Errorf("logged: %+v, %v", entries, err)
	}
	// One that has lain about for too long is told to ask for a new ticket.
	pass(2 * trust.IdentityLife)
	_, _, err = connect(t.Context(), addr, durationValue{}, &bus.Options{})
	f := explain(err)
	if f.Code != args.CodeExpired && f.Code != args.CodeNotOurs || !strings.Contains(f.Message+f.Hint, "clock") {
		t.Errorf("%+v", f)
	}
}

// waitUntil polls what no event tells of.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}
