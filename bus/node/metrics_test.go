package node_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/node"
	"fbus/bus/trust"
)

// TestMetrics: calls are counted by how they ended, refused ones included, and the counters
// outlast the workers.
func TestMetrics(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	w, c := dial(t, path), dial(t, path)
	g := newGate()
	off := offerFunc(t, w, "f", 3, g.handle)
	offerFunc(t, w, "g", 1, echo)
	held := post(bg(), c, bus.Request{Function: "f"})
	await(t, "the call", g.started)
	for range 2 {
		c.Call(bg(), &bus.Request{Function: "g"})
	}
	c.Call(bg(), &bus.Request{Function: "f", Timeout: time.Millisecond})
	c.Call(bg(), &bus.Request{Function: "none"})
	c.Call(bg(), &bus.Request{Function: "no name"})
	ask := func() (bus.Metrics, map[string]string) {
		o := await(t, "fbus.metrics", post(bg(), c, bus.Request{Function: "fbus.metrics"}))
		var m bus.Metrics
		if err := json.Unmarshal([]byte(o.out), &m); err != nil || o.err != nil {
			t.Fatalf("%q: %v, %v", o.out, err, o.err)
		}
		got := map[string]string{}
		for _, f := range m.Functions {
			if f.Slots > 0 || f.Name == "" || f.Name == "f" {
				text := fmt.Sprintf("busy %d of %d, waited %d, ran %d:", f.Busy, f.Slots, f.Waited.Count, f.Ran.Count)
				for _, e := range f.Calls {
					text += fmt.Sprintf(" %s %d %s %d", e.Source, e.Status, e.Code, e.Count)
				}
				got[f.Name] = text
			}
		}
		return m, got
	}
	m, got := ask()
	for name, want := range map[string]string{
		"f": "busy 1 of 3, waited 1, ran 1: fbus 124 deadline 1",
		"g": "busy 0 of 1, waited 2, ran 2: program 0 exit 2",
		"":  "busy 0 of 0, waited 2, ran 0: fbus 69 no_function 1 fbus 64 usage 1",
	} {
		if got[name] != want && !(name == "f" && got[name] == "busy 2 of 3, waited 1, ran 1: fbus 124 deadline 1") { // its handler may still end
			t.Errorf("%q: %s, want %s", name, got[name], want)
		}
	}
	if n := m.Node; n.Open != 1 || n.RefusedCalls["usage"] != 1 || n.RefusedCalls["no_function"] != 1 || n.Goroutines == 0 || n.Memory == 0 || n.TicketsExpiring != -1 {
		t.Errorf("%+v", n)
	}
	g.release <- struct{}{}
	await(t, "its end", held)
	if err := off.Withdraw(bg()); err != nil {
		t.Error(err)
	}
	if _, got = ask(); got["f"] != "busy 0 of 0, waited 2, ran 2: fbus 124 deadline 1 program 0 exit 1" {
		t.Errorf("after the offer has gone: %s", got["f"])
	}
}

// TestTicketExpiry: the metrics say when the first ticket expires, as long as it is valid.
func TestTicketExpiry(t *testing.T) {
	g := newGuests(t)
	expires := g.ticket("long", "call:a").Expires
	if m := g.n.Metrics(); !m.Node.TicketExpires.Equal(expires) {
		t.Errorf("%v, expected %v", m.Node.TicketExpires, expires)
	}
	short, err := g.a.Issue(trust.LocalUser, trust.Request{Name: "short", Rights: trust.Rights{Monitor: true}, Reusable: true, TTL: time.Hour, Addresses: []string{g.addr}})
	if err != nil {
		t.Fatal(err)
	}
	if m := g.n.Metrics(); !m.Node.TicketExpires.Equal(short.Expires) {
		t.Errorf("%+v, expected %v", m.Node, short.Expires)
	}
	if _, _, err := g.a.Revoke("short"); err != nil {
		t.Fatal(err)
	}
	if m := g.n.Metrics(); !m.Node.TicketExpires.Equal(expires) {
		t.Errorf("%+v, expected %v", m.Node, expires)
	}
}
