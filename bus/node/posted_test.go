package node_test

import (
	"context"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/node"
)

// TestPosted: what a call says of the job that it runs reaches the worker, also
// from the queue and from a worker that was busy, if the node's own connection for
// jobs has said it. From anybody else it is ignored.
func TestPosted(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	posted := &bus.Posted{Caller: "ticket:ci", Job: "01JC7XKQ4N8T2V5W9Y0Z3A6B7C", Attempt: 3, Origin: `{"id":"01JC7XKQ4N8T2V5W9Y0Z3A6B7B"}`}
	said := func(inv *bus.Invocation) bus.Posted {
		return bus.Posted{Caller: inv.Caller, Job: inv.Job, Attempt: inv.Attempt, Origin: inv.Origin}
	}

	client, own := named(t, path, "client"), named(t, path, "jobs")
	n.MakeBackground("jobs")
	forged := post(bg(), client, bus.Request{Function: "f", Posted: posted, WaitFunction: bus.Forever})
	queued := post(bg(), own, bus.Request{Function: "g", Posted: posted, WaitFunction: bus.Forever})
	eventually(t, "two calls are queued", func() bool { return n.QueueLen("f")+n.QueueLen("g") == 2 })
	if list := n.Calls(); len(list) != 1 || list[0].Function != "f" {
		t.Errorf("fbus.calls shows what fbus.jobs does: %+v", list)
	}

	g := newGate()
	offerFunc(t, dial(t, path), "f", 1, g.handle)
	offerFunc(t, dial(t, path), "g", 1, g.handle)
	for range 2 {
		switch inv := await(t, "a call", g.started); inv.Function {
		case "f":
			if s := said(inv); !strings.HasPrefix(s.Caller, "uid:") || s.Job != "" || s.Attempt != 0 || s.Origin != "" {
				t.Errorf("a client has forged %+v", s)
			}
		case "g":
			for _, c := range n.Calls() {
				if (c.Function == "g") != (c.Caller == "ticket:ci") {
					t.Errorf("the call of %s is shown as %s's", c.Function, c.Caller)
				}
			}
			if s := said(inv); s != *posted {
				t.Errorf("from the queue: %+v", s)
			}
		}
		g.release <- struct{}{}
	}
	for _, ch := range []<-chan outcome{forged, queued} {
		if o := await(t, "its end", ch); o.err != nil {
			t.Error(o.err)
		}
	}
	testPostedAgain(t, path, own, posted, said)
}

// testPostedAgain makes a call whose first worker is too busy for it.
func testPostedAgain(t *testing.T, path string, own *bus.Client, posted *bus.Posted, said func(*bus.Invocation) bus.Posted) {
	seen := make(chan bus.Posted, 2)
	busy := make(chan struct{}, 2)
	busy <- struct{}{}
	for range 2 {
		offerFunc(t, dial(t, path), "h", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
			seen <- said(inv)
			select {
			case <-busy:
				return bus.Exit(75)
			default:
				return bus.Result{}
			}
		})
	}
	if o := await(t, "its end", post(bg(), own, bus.Request{Function: "h", Posted: posted})); o.err != nil {
		t.Error(o.err)
	}
	for range 2 {
		if s := await(t, "a try", seen); s != *posted {
			t.Errorf("%+v", s)
		}
	}
}
