package node_test

import (
	"context"
	"io"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// stopped is an OFFER of f by a worker that cannot start its program.
func stopped(flags uint64, note string) *wire.OfferFrame {
	return &wire.OfferFrame{Seq: 9, Name: []byte("f"), Flags: wire.FlagCannotStart | flags, Note: []byte(note)}
}

// cannotStart is the END of a call by such a worker.
func cannotStart(id uint64) *wire.EndFrame {
	return &wire.EndFrame{ID: id, Source: args.FromBus, Status: 126, Code: []byte(args.CodeCannotStart), Message: []byte("it is gone")}
}

// TestCannotStartElsewhere: calls of a worker that cannot start its program are
// run by others, whatever it has done about its offer.
func TestCannotStartElsewhere(t *testing.T) {
	for name, offer := range map[string][]wire.Frame{
		"stopped":    {stopped(0, "gone")},
		"fewer":      {&wire.OfferFrame{Seq: 9, Name: []byte("f"), Slots: 1}},
		"unchanged":  nil,
		"withdrawn":  {&wire.OfferFrame{Seq: 9, Name: []byte("f")}},
		"unoffered":  {&wire.OfferFrame{Seq: 9, Name: []byte("f")}, stopped(0, "gone")},
		"stderr too": {&wire.DataFrame{ID: 1, Stream: wire.Stderr, Payload: []byte("no\n")}, stopped(0, "gone")},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			n, path := start(t, node.Config{})
			w := rawUnix(t, n, path).greet()
			w.offer("f", 9, 0)
			call := post(bg(), dial(t, path), bus.Request{Function: "f", Input: strings.NewReader("input")})
			want[*wire.CallFrame](w)
			offerFunc(t, dial(t, path), "f", 1, echo)
			w.send(append(offer, cannotStart(1))...)
			for id := uint64(2); name == "unchanged" && id <= 10; id++ { // it is asked again, not for ever
				want[*wire.CallFrame](w)
				w.send(cannotStart(id))
			}
			if o := await(t, "the call", call); o.err != nil || o.out != "input" {
				t.Errorf("%q, error %v", o.out, o.err)
			}
			if err := n.Audit(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNobodyCanStart: when all workers that a call could go to have no program, it ends
// at once with the reason, or after its wait for a function.
func TestNobodyCanStart(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	a, b := rawUnix(t, n, path).named("a"), rawUnix(t, n, path).named("b")
	a.offer("f", 1, 0)
	b.offer("f", 1, 0)
	c := dial(t, path)
	var calls []<-chan outcome
	for range 5 { // two run, three wait
		calls = append(calls, post(bg(), c, bus.Request{Function: "f"}))
	}
	patient := post(bg(), c, bus.Request{Function: "f", WaitFunction: bus.Forever, Input: strings.NewReader("patient")})
	first, second := want[*wire.CallFrame](a).ID, want[*wire.CallFrame](b).ID
	eventually(t, "the queue", func() bool { return n.QueueLen("f") == 4 })
	a.send(stopped(0, "gone"), cannotStart(first))
	want[*wire.OfferedFrame](a)
	b.send(stopped(wire.FlagNotFound, "b: not found"), cannotStart(second))
	want[*wire.OfferedFrame](b)
	for _, call := range calls {
		o := await(t, "a call", call)
		wantErr(t, o.err, &bus.Error{Code: args.CodeCannotStart})
		if e := args.AsError(o.err, ""); !strings.Contains(e.Message, "gone") || e.Status() != 126 {
			t.Errorf("status %d, %q", e.Status(), e.Message)
		}
	}
	for on, status := range map[string]int{"": 126, "a": 126, "b": 127, "[b]": 127} {
		o := await(t, "a call", post(bg(), c, bus.Request{Function: "f", On: on}))
		if e := args.AsError(o.err, ""); e.Code != args.CodeCannotStart || e.Status() != status {
			t.Errorf("on %q: %s, status %d, %q", on, e.Code, e.Status(), e.Message)
		}
	}
	list := n.Functions()
	if len(list) != 1 || list[0].Slots != 0 || len(list[0].Workers) != 2 || list[0].Workers[0].Note != "gone" {
		t.Errorf("%+v", list)
	}
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
	b.offer("f", 1, 0) // it can again
	f := want[*wire.CallFrame](b)
	end := exit(f.ID, 0)
	end.Output = f.Input
	b.send(end)
	if o := await(t, "the patient call", patient); o.err != nil || o.out != "patient" {
		t.Errorf("%q, error %v", o.out, o.err)
	}
	a.nc.Close()
	b.nc.Close()
	eventually(t, "the offers go", func() bool { return len(n.Functions()) == 0 })
}

// TestJobCannotStart: a job of a worker that cannot start its program goes back to the store
// and uses no attempt; another worker has it at once.
func TestJobCannotStart(t *testing.T) {
	noLeaks(t)
	m, path := startWithJobs(t, node.Config{}, jobs.Config{})
	c := dial(t, path)
	w := rawUnix(t, nil, path).greet()
	w.offer("f", 1, 0)
	long := strings.Repeat("x", 3*wire.MaxInlineInput)
	id, err := tryPost(c, "f", "", long)
	if err != nil {
		t.Fatal(err)
	}
	f := want[*wire.CallFrame](w)
	w.send(&wire.GrantFrame{ID: f.ID, Stream: wire.Input, Bytes: 1 << 16})
	want[*wire.DataFrame](w) // it has begun to take the input
	w.send(stopped(0, "gone"), cannotStart(f.ID))
	want[*wire.OfferedFrame](w)
	eventually(t, "the job is back", func() bool { return m.Ready("f") == 1 })
	offerFunc(t, dial(t, path), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		if inv.Attempt != 1 {
			t.Errorf("attempt %d", inv.Attempt)
		}
		all, _ := io.ReadAll(inv.Input)
		return bus.Result{Output: all}
	})
	out, res, err := resultOf(c, id, "")
	if err != nil || out != long || res.Status != 0 {
		t.Errorf("%d bytes, %+v, error %v", len(out), res, err)
	}
}
