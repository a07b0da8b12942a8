package node_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"

	"fbus/bus"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// TestProgress: a caller gets a function's reports of its progress, the last one before the
// end, and far fewer than there were.
func TestProgress(t *testing.T) {
	_, path := start(t, node.Config{})
	reports := 100_000
	offerFunc(t, dial(t, path), "count", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		for i := range reports {
			inv.Progress(bus.Progress{Done: uint64(i + 1), Total: uint64(reports), Text: "row"})
		}
		return bus.Result{}
	})
	var got []bus.Progress
	req := &bus.Request{Function: "count", Progress: func(p bus.Progress) { got = append(got, p) }}
	if _, err := dial(t, path).Call(bg(), req); err != nil {
		t.Fatal(err)
	}
	if len(got) < 2 || len(got) > 1000 || got[0].Done != 1 || got[len(got)-1] != (bus.Progress{Done: uint64(reports), Total: uint64(reports), Text: "row"}) {
		t.Errorf("%d reports: %v", len(got), got)
	}
}

// TestProgressShown: fbus.calls has the last report. At most ten a second of a worker that sends
// more are passed on, and none to a caller that has not named the capability.
func TestProgressShown(t *testing.T) {
	_, path := start(t, node.Config{})
	worker := rawUnix(t, nil, path).greet()
	worker.offer("hold", 2, 0)
	plain := rawUnix(t, nil, path).greet()
	plain.send(callFrame(1, "hold", "x"))
	want[*wire.CallFrame](worker)
	var count atomic.Int64
	over := make(chan error, 1)
	c := dial(t, path)
	go func() { // ends with the call
		_, err := c.Call(bg(), &bus.Request{Function: "hold", Progress: func(bus.Progress) { count.Add(1) }})
		over <- err
	}()
	want[*wire.CallFrame](worker)
	for id := range uint64(2) {
		for i := range uint64(1000) {
			worker.write(encode(&wire.ProgressFrame{ID: id + 1, Done: i + 1, Text: []byte("a\x1b")}))
		}
	}
	info := func() (list []bus.CallInfo) {
		o := await(t, "fbus.calls", post(bg(), dial(t, path), bus.Request{Function: "fbus.calls"}))
		for dec := json.NewDecoder(strings.NewReader(o.out)); dec.More(); {
			var i bus.CallInfo
			if err := dec.Decode(&i); err != nil {
				t.Fatal(err)
			}
			list = append(list, i)
		}
		return list
	}
	eventually(t, "the last report is shown", func() bool {
		list := info()
		return len(list) == 2 && list[0].Progress != nil && list[1].Progress != nil &&
			*list[0].Progress == bus.Progress{Done: 1000, Text: "a?"} && list[1].Progress.Done == 1000
	})
	worker.write(encode(exit(1, 0), exit(2, 0)))
	if err := await(t, "the call", over); err != nil {
		t.Error(err)
	}
	if n := count.Load(); n < 1 || n > 200 {
		t.Errorf("%d reports were passed on", n)
	}
	if f, err := plain.next(); err != nil || wire.TypeOf(f) != wire.TypeEnd {
		t.Errorf("%T, %v; want END", f, err)
	}
}

// TestProgressLast: the last of many reports is passed on, when the second is over or right before
// END.
func TestProgressLast(t *testing.T) {
	_, path := start(t, node.Config{})
	worker := rawUnix(t, nil, path).greet()
	worker.offer("hold", 1, 0)
	c := dial(t, path)
	got := make(chan uint64, 2000)
	over := post(bg(), c, bus.Request{Function: "hold", Progress: func(p bus.Progress) { got <- p.Done }})
	want[*wire.CallFrame](worker)
	report := func(from, to uint64) {
		for i := from; i <= to; i++ {
			worker.write(encode(&wire.ProgressFrame{ID: 1, Done: i}))
		}
	}
	report(1, 500)
	for await(t, "the last report while the call runs", got) != 500 {
	}
	report(501, 1000)
	worker.write(encode(exit(1, 0)))
	await(t, "the call", over)
	last := uint64(0)
	for len(got) > 0 {
		last = <-got
	}
	if last != 1000 {
		t.Errorf("the last report was %d", last)
	}
}
