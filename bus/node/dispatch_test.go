package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// gate is a handler that holds each call until it is let go, and counts.
type gate struct {
	started chan *bus.Invocation // each call as it starts
	release chan struct{}        // one receive lets one call go
	now     atomic.Int32
	most    atomic.Int32
}

func newGate() *gate {
	return &gate{started: make(chan *bus.Invocation, 10000), release: make(chan struct{}, 10000)}
}

func (g *gate) handle(ctx context.Context, inv *bus.Invocation) bus.Result {
	k := g.now.Add(1)
	defer g.now.Add(-1)
	for old := g.most.Load(); k > old && !g.most.CompareAndSwap(old, k); old = g.most.Load() {
	}
	g.started <- inv
	select {
	case <-g.release:
	case <-ctx.Done():
	}
	return bus.Result{Output: inv.Head()}
}

// outcome is how a call went.
type outcome struct {
	res bus.Result
	out string
	err error
}

// post starts a call and delivers its outcome.
func post(ctx context.Context, c *bus.Client, req bus.Request) <-chan outcome {
	ch := make(chan outcome, 1)
	go func() { // ends with the call
		var out bytes.Buffer
		if req.Stdout == nil {
			req.Stdout = &out
		}
		res, err := c.Call(ctx, &req)
		ch <- outcome{res, out.String(), err}
	}()
	return ch
}

func bg() context.Context { return context.Background() }

func named(t testing.TB, path, name string) *bus.Client {
	t.Helper()
	c, err := bus.Dial(bg(), bus.Unix(path), &bus.Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

// TestSlotsAreHard: a storm of open-and-cancel calls never has more running
// than there are slots, even where the program takes its time to die.
func TestSlotsAreHard(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	const slots, storm = 4, 2000
	w := dial(t, path)
	var now, most, ran atomic.Int32
	offerFunc(t, w, "f", slots, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		k := now.Add(1)
		for old := most.Load(); k > old && !most.CompareAndSwap(old, k); old = most.Load() {
		}
		ran.Add(1)
		<-ctx.Done()
		time.Sleep(100 * time.Microsecond) // what it started has to be killed
		now.Add(-1)
		return bus.Result{End: bus.End{Source: args.FromSignal, Status: 137, Code: "SIGKILL"}}
	})
	c := rawUnix(t, n, path).greet()
	ended := make(chan int, 1)
	go func() { // ends when all calls have
		k := 0
		for ; k < storm; k++ {
			if want[*wire.EndFrame](c) == nil {
				break
			}
		}
		ended <- k
	}()
	for id := uint64(1); id <= storm; id++ {
		c.send(callFrame(id, "f", "x"), &wire.CancelFrame{ID: id})
	}
	if k := await(t, "the end of all calls", ended); k != storm {
		t.Errorf("%d of %d calls ended", k, storm)
	}
	eventually(t, "all slots coming free", func() bool { return n.Open() == 0 && now.Load() == 0 })
	if most.Load() > slots {
		t.Errorf("%d ran at once with %d slots", most.Load(), slots)
	}
	t.Logf("%d of %d calls were run, %d at once", ran.Load(), storm, most.Load())
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
}

// TestSlotsAreHardOnTheWire is the same as the worker sees it: no more CALLs
// without their END than slots.
func TestSlotsAreHardOnTheWire(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	w := rawUnix(t, n, path).greet()
	w.offer("f", 4, 0)
	c := dial(t, path)
	ctx, stop := context.WithCancel(bg())
	var calls []<-chan outcome
	for range 50 {
		calls = append(calls, post(ctx, c, bus.Request{Function: "f"}))
	}
	for range 4 {
		want[*wire.CallFrame](w)
	}
	stop() // all are cancelled: four CANCELs, and no further CALL
	for _, ch := range calls {
		wantErr(t, await(t, "a cancelled call", ch).err, context.Canceled)
	}
	for range 4 {
		want[*wire.CancelFrame](w)
	}
	eventually(t, "the queue's end", func() bool { return n.Live() == 4 })
	after := post(bg(), c, bus.Request{Function: "f"})
	eventually(t, "a queued call", func() bool { return n.QueueLen("f") == 1 })
	w.send(exit(3, 0))
	if f := want[*wire.CallFrame](w); f.ID != 5 {
		t.Errorf("call %d, want 5", f.ID)
	}
	w.send(exit(5, 0), exit(1, 0), exit(2, 0), exit(4, 0))
	if o := await(t, "the last call", after); o.err != nil {
		t.Error(o.err)
	}
}

// TestQueueOrder: first in, first out within an identity, identities taking
// turns, however many connections each has.
func TestQueueOrder(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	w := rawUnix(t, n, path).greet()
	w.offer("f", 1, 0)
	a, b, c := rawOf(t, n, "uid:1"), rawOf(t, n, "uid:2"), rawOf(t, n, "uid:3")
	again := rawOf(t, n, "uid:1")
	a.send(callFrame(1, "f", "a1"))
	order := []string{string(want[*wire.CallFrame](w).Input)}
	queue := func(p *raw, frames ...wire.Frame) {
		before := n.QueueLen("f")
		p.send(frames...)
		eventually(t, "queued calls", func() bool { return n.QueueLen("f") == before+len(frames) })
	}
	queue(a, callFrame(2, "f", "a2"), callFrame(3, "f", "a3"), callFrame(4, "f", "a4"))
	queue(again, callFrame(1, "f", "a5"))
	queue(b, callFrame(1, "f", "b1"), callFrame(2, "f", "b2"))
	queue(c, callFrame(1, "f", "c1"))
	for id := uint64(1); id <= 7; id++ {
		w.send(exit(id, 0))
		order = append(order, string(want[*wire.CallFrame](w).Input))
	}
	if got, want := strings.Join(order, " "), "a1 a2 b1 c1 a3 b2 a4 a5"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

// TestQueueBound: the queue has a limit, a quarter of it for one identity over all its connections, and
// no more than it leaves for others; the node's own user may fill it. Busy comes at once.
func TestQueueBound(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{Queue: 16})
	w := rawUnix(t, n, path).greet()
	w.offer("f", 1, 0)
	own := rawUnix(t, n, path).greet()
	own.send(callFrame(1, "f", ""))
	want[*wire.CallFrame](w)
	queued := 0
	next := uint64(1)
	fill := func(calls int, message string, peers ...*raw) {
		t.Helper()
		for i := range calls {
			next++
			peers[i%len(peers)].send(callFrame(next, "f", ""))
			queued++
			eventually(t, "a queued call", func() bool { return n.QueueLen("f") == queued })
		}
		for _, p := range peers {
			next++
			p.send(callFrame(next, "f", ""))
			if f := want[*wire.EndFrame](p); f.Status != 75 || string(f.Code) != args.CodeBusy || string(f.Message) != message {
				t.Errorf("%d %s: %s", f.Status, f.Code, f.Message)
			}
		}
	}
	fill(4, "f: the queue is full for ticket:a (limit 4 calls)", rawGuest(t, n, "ticket:a"), rawGuest(t, n, "ticket:a"))
	fill(4, "f: the queue is full for ticket:b (limit 4 calls)", rawGuest(t, n, "ticket:b"))
	fill(2, "f: the queue is full for ticket:c (limit 2 calls)", rawGuest(t, n, "ticket:c"))
	fill(1, "f: the queue is full for ticket:d (limit 1 calls)", rawGuest(t, n, "ticket:d"))
	fill(5, "f: the queue is full (limit 16 calls)", own)
}

// TestWaits: what is missing bounds how long a call waits, and names its end.
func TestWaits(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	g := newGate()
	offerFunc(t, named(t, path, "w1"), "f", 1, g.handle)
	c := dial(t, path)
	running := post(bg(), c, bus.Request{Function: "f"})
	await(t, "the first call", g.started)
	short := 30 * time.Millisecond
	for _, tc := range []struct {
		name string
		req  bus.Request
		want error
		min  time.Duration
	}{
		{"no slot and no wait", bus.Request{Function: "f", WaitSlot: bus.NoWait}, bus.ErrBusy, 0},
		{"a wait for a slot", bus.Request{Function: "f", WaitSlot: bus.WaitFor(short)}, bus.ErrBusy, short},
		{"a deadline while queued", bus.Request{Function: "f", Timeout: short}, bus.ErrDeadline, short},
		{"no function and no wait", bus.Request{Function: "none"}, bus.ErrNoFunction, 0},
		{"a wait for a function", bus.Request{Function: "none", WaitFunction: bus.WaitFor(short)}, bus.ErrNoFunction, short},
		{"a deadline before that", bus.Request{Function: "none", WaitFunction: bus.WaitFor(time.Hour), Timeout: short}, bus.ErrDeadline, short},
		{"no worker that matches", bus.Request{Function: "f", On: "w2"}, bus.ErrNoFunction, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t0 := time.Now()
			o := await(t, "the end", post(bg(), c, tc.req))
			wantErr(t, o.err, tc.want)
			if d := time.Since(t0); d < tc.min {
				t.Errorf("after %v, %v were allowed", d, tc.min)
			}
		})
	}
	late := post(bg(), c, bus.Request{Function: "late", WaitFunction: bus.WaitFor(time.Hour), Input: strings.NewReader("x")})
	eventually(t, "a queued call", func() bool { return n.QueueLen("late") == 1 })
	offerFunc(t, named(t, path, "w2"), "late", 1, echo)
	if o := await(t, "the call that waited", late); o.err != nil || o.out != "x" {
		t.Errorf("%q, error %v", o.out, o.err)
	}
	g.release <- struct{}{}
	await(t, "the first call's end", running)
	if n.QueueLen("f")+n.Open() != 0 {
		t.Error("calls are left")
	}
}

// TestLastOfferGone: what is queued waits some seconds for a worker to come
// back, then ends with 69.
func TestLastOfferGone(t *testing.T) {
	t.Parallel()
	n, path := start(t, node.Config{})
	p := watchPace(t)
	c := dial(t, path)
	park := func() (w *raw, queued <-chan outcome) {
		w = rawUnix(t, n, path).greet()
		w.offer("f", 1, 0)
		post(bg(), c, bus.Request{Function: "f"})
		want[*wire.CallFrame](w)
		queued = post(bg(), c, bus.Request{Function: "f", Input: strings.NewReader("q")})
		eventually(t, "a queued call", func() bool { return n.QueueLen("f") == 1 })
		return w, queued
	}
	w, queued := park()
	w.nc.Close()
	eventually(t, "no offer", func() bool { return n.Functions("f")[0].Slots == 0 })
	back := dial(t, path)
	offerFunc(t, back, "f", 1, echo)
	if o := await(t, "the queued call", queued); o.err != nil || o.out != "q" {
		t.Errorf("%q, error %v", o.out, o.err)
	}
	back.Close()
	eventually(t, "no offer", func() bool { return len(n.Functions("f")) == 0 })
	w, queued = park()
	t0 := time.Now()
	w.nc.Close()
	o := await(t, "the queued call", queued)
	wantErr(t, o.err, bus.ErrNoFunction)
	if d := time.Since(t0); d < node.GoneTime*4/5 || d > p.limit(node.GoneTime+4*time.Second) {
		t.Errorf("ended after %v, not %v", d, node.GoneTime)
	}
}

// TestMostFreeSlots: calls go to the worker with the most free slots, ties to
// the one idle longest, never to a full one.
func TestMostFreeSlots(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	var workers []*raw
	got := make(chan string, 100)
	for i, slots := range []uint64{1, 3, 2} {
		w := rawUnix(t, n, path)
		w.send(&wire.HelloFrame{Major: 1, Name: fmt.Appendf(nil, "w%d", i)})
		want[*wire.HelloFrame](w)
		w.offer("f", slots, 0)
		workers = append(workers, w)
		go func() { // ends with the connection
			for {
				f, err := w.next()
				if err != nil {
					return
				}
				if _, ok := f.(*wire.CallFrame); ok {
					got <- fmt.Sprintf("w%d", i)
				}
			}
		}()
	}
	c := rawUnix(t, n, path).greet()
	var order []string
	for id := uint64(1); id <= 6; id++ {
		c.send(callFrame(id, "f", ""))
		order = append(order, await(t, "a call at a worker", got))
	}
	// 3 beats 2 beats 1; then 2 and 2: w2 is idle longer; w1 has 2, the others 1.
	if g := strings.Join(order, " "); g != "w1 w2 w1 w0 w2 w1" {
		t.Errorf("order %s", g)
	}
	c.send(callFrame(7, "f", ""))
	eventually(t, "a queued call", func() bool { return n.QueueLen("f") == 1 })
	workers[0].send(exit(1, 0))
	if g := await(t, "the queued call", got); g != "w0" {
		t.Errorf("went to %s, which was full", g)
	}
	c.nc.Close()
	for _, w := range workers {
		w.nc.Close()
	}
}

func TestIdleLongest(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	for i := range 3 {
		offerFunc(t, named(t, path, fmt.Sprintf("w%d", i)), "f", 2, echo)
	}
	c := dial(t, path)
	var order []string
	for range 6 {
		o := await(t, "a call", post(bg(), c, bus.Request{Function: "f"}))
		order = append(order, o.res.Worker)
	}
	if g := strings.Join(order, " "); g != "w0 w1 w2 w0 w1 w2" {
		t.Errorf("order %s", g)
	}
}

func TestOnGlob(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	g := newGate()
	offerFunc(t, named(t, path, "gpu-1"), "f", 1, g.handle)
	offerFunc(t, named(t, path, "cpu-1"), "f", 4, echo)
	c := dial(t, path)
	for glob, worker := range map[string]string{"cpu-*": "cpu-1", "?pu-1": "cpu-1", "[a-f]pu-1": "cpu-1", "": "cpu-1"} {
		o := await(t, glob, post(bg(), c, bus.Request{Function: "f", On: glob}))
		if o.err != nil || o.res.Worker != worker {
			t.Errorf("--on %q: worker %s, error %v", glob, o.res.Worker, o.err)
		}
	}
	for _, w := range n.Functions("f")[0].Workers {
		if w.Name != "cpu-1" {
			continue // its handler waits to be released
		}
		if o := await(t, w.ID, post(bg(), c, bus.Request{Function: "f", On: "#" + w.ID})); o.err != nil || o.res.Worker != w.Name {
			t.Errorf("on #%s: worker %s, error %v", w.ID, o.res.Worker, o.err)
		}
	}
	first := post(bg(), c, bus.Request{Function: "f", On: "gpu-*"})
	await(t, "a call at gpu-1", g.started)
	second := post(bg(), c, bus.Request{Function: "f", On: "gpu-*"})
	eventually(t, "a queued call", func() bool { return n.QueueLen("f") == 1 })
	// One that waits for another worker holds nobody up.
	if o := await(t, "a call", post(bg(), c, bus.Request{Function: "f"})); o.err != nil {
		t.Error(o.err)
	}
	g.release <- struct{}{}
	g.release <- struct{}{}
	for _, ch := range []<-chan outcome{first, second} {
		if o := await(t, "a call at gpu-1", ch); o.res.Worker != "gpu-1" {
			t.Errorf("worker %s", o.res.Worker)
		}
	}
	o := await(t, "a bad glob", post(bg(), c, bus.Request{Function: "f", On: "[a"}))
	wantErr(t, o.err, &args.Error{Code: args.CodeUsage})
}

// refuses is a worker that says busy by exit 75.
func refuses(asked *atomic.Int32) bus.Handler {
	return func(context.Context, *bus.Invocation) bus.Result {
		asked.Add(1)
		return bus.Exit(75)
	}
}

// TestBusyAsksOnce: each worker is asked once, then the 75 is passed on.
func TestBusyAsksOnce(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	var asked [3]atomic.Int32
	for i := range asked {
		offerFunc(t, named(t, path, fmt.Sprintf("w%d", i)), "f", 5, refuses(&asked[i]))
	}
	c := dial(t, path)
	o := await(t, "75", post(bg(), c, bus.Request{Function: "f", Args: args.List("a"), Input: strings.NewReader("in")}))
	var exit *bus.ExitError
	if !errors.As(o.err, &exit) || exit.Status != 75 || exit.Source != args.FromProgram {
		t.Errorf("error %v, want a program's exit 75", o.err)
	}
	for i := range asked {
		if asked[i].Load() != 1 {
			t.Errorf("worker %d was asked %d times", i, asked[i].Load())
		}
	}
}

// TestBusyGoesOn: the next worker gets the same arguments and input.
func TestBusyGoesOn(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	var asked atomic.Int32
	offerFunc(t, named(t, path, "no"), "f", 5, func(_ context.Context, inv *bus.Invocation) bus.Result {
		asked.Add(1)
		fmt.Fprint(inv.Stderr, "no room ") // does not count
		return bus.Exit(75)
	})
	offerFunc(t, named(t, path, "yes"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		words, _ := inv.Words()
		return bus.Result{Output: fmt.Appendf(nil, "%v %s", words, inv.Head())}
	})
	var stderr lockedBuffer
	o := await(t, "the call", post(bg(), dial(t, path), bus.Request{Function: "f", Args: args.List("a", "b"), Input: strings.NewReader("in"), Stderr: &stderr}))
	if o.err != nil || o.out != "[a b] in" || stderr.String() != "no room " || asked.Load() != 1 {
		t.Errorf("%q, stderr %q, error %v, asked %d", o.out, stderr.String(), o.err, asked.Load())
	}
}

// TestBusyWaitsAtHead: refused by one, the call waits for the other, which is
// full, before those that came later.
func TestBusyWaitsAtHead(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	full := rawUnix(t, n, path).greet()
	full.offer("f", 1, 0)
	c := rawUnix(t, n, path).greet()
	c.send(callFrame(1, "f", "first"))
	want[*wire.CallFrame](full)
	c.send(callFrame(2, "f", "queued"))
	eventually(t, "a queued call", func() bool { return n.QueueLen("f") == 1 })
	no := rawUnix(t, n, path).greet()
	no.offer("f", 1, 0) // takes "queued" at once
	want[*wire.CallFrame](no)
	c.send(callFrame(3, "f", "later"))
	eventually(t, "a queued call", func() bool { return n.QueueLen("f") == 1 })
	no.send(exit(1, 75)) // refuses "queued", is free for "later"
	if f := want[*wire.CallFrame](no); string(f.Input) != "later" {
		t.Errorf("%s came to the one that had refused it", f.Input)
	}
	c.send(callFrame(4, "f", "last"))
	eventually(t, "two queued", func() bool { return n.QueueLen("f") == 2 })
	full.send(exit(1, 0))
	if f := want[*wire.CallFrame](full); string(f.Input) != "queued" {
		t.Errorf("%s came before the one at the head", f.Input)
	}
	// The one it waits for goes: no worker is left that has not refused.
	full.send(exit(2, 75))
	for {
		f := want[*wire.EndFrame](c)
		if f.ID == 2 {
			if f.Status != 75 {
				t.Errorf("status %d", f.Status)
			}
			return
		}
	}
}

// TestBusyWorkerGoes: it waits for a full worker, which goes away.
func TestBusyWorkerGoes(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	full, no := rawUnix(t, n, path).greet(), rawUnix(t, n, path).greet()
	full.offer("f", 1, 0)
	c := rawUnix(t, n, path).greet()
	c.send(callFrame(1, "f", "first"))
	want[*wire.CallFrame](full)
	no.offer("f", 1, 0)
	c.send(callFrame(2, "f", "second"))
	want[*wire.CallFrame](no)
	no.send(exit(1, 75))
	eventually(t, "a queued call", func() bool { return n.QueueLen("f") == 1 })
	full.send(&wire.OfferFrame{Seq: 2, Name: []byte("f"), Slots: 0})
	if f := want[*wire.EndFrame](c); f.ID != 2 || f.Status != 75 || string(f.Code) != args.CodeBusy {
		t.Errorf("%+v", f)
	}
}

// TestBusyIsPassedOn: where the call can not be run again, 75 is an exit status.
func TestBusyIsPassedOn(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	var ran atomic.Int32
	for i := range 2 {
		offerFunc(t, named(t, path, fmt.Sprint(i)), "said", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
			ran.Add(1)
			io.WriteString(inv.Stdout, "out")
			return bus.Exit(75)
		})
		offerFunc(t, named(t, path, fmt.Sprint(i)), "half", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
			ran.Add(1)
			return bus.Exit(75)
		})
	}
	c := dial(t, path)
	for _, req := range []bus.Request{
		{Function: "said"},
		{Function: "half", Input: bytes.NewReader(make([]byte, wire.MaxInlineInput+1))},
	} {
		ran.Store(0)
		o := await(t, "75", post(bg(), c, req))
		var exit *bus.ExitError
		if !errors.As(o.err, &exit) || exit.Status != 75 || ran.Load() != 1 {
			t.Errorf("%s: error %v, run %d times", req.Function, o.err, ran.Load())
		}
	}
}

// TestBusyAfterEmptyData: a frame with no bytes of stdout passes nothing on, so
// the call may still go elsewhere, with all that it had.
func TestBusyAfterEmptyData(t *testing.T) {
	for name, say := range map[string]func(w *raw){
		"busy": func(w *raw) { w.send(&wire.DataFrame{ID: 1, Stream: wire.Output}, exit(1, 75)) },
		"lost": func(w *raw) { w.send(&wire.DataFrame{ID: 1, Stream: wire.Output}); w.nc.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			n, path := start(t, node.Config{})
			w := rawUnix(t, n, path).greet()
			w.offer("f", 9, wire.FlagIdempotent)
			other := dial(t, path)
			offerFunc(t, other, "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
				words, _ := inv.Words()
				return bus.Result{Output: fmt.Appendf(nil, "%v %s", words, inv.Head())}
			})
			call := post(bg(), dial(t, path), bus.Request{Function: "f", Args: args.List("arg"), Input: strings.NewReader("input")})
			want[*wire.CallFrame](w)
			say(w)
			if o := await(t, "the call", call); o.err != nil || o.out != "[arg] input" {
				t.Errorf("%q, error %v", o.out, o.err)
			}
		})
	}
}

// TestBusyKeepsCredit: output that came with a 75 and was not passed on does not
// use up the caller's credit, or the worker that takes the call would have none.
func TestBusyKeepsCredit(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	var nos []*raw
	for range 6 {
		w := rawUnix(t, n, path).greet()
		w.offer("f", 9, 0)
		nos = append(nos, w)
	}
	yes := dial(t, path)
	offerFunc(t, yes, "f", 1, echo)
	call := post(bg(), dial(t, path), bus.Request{Function: "f", Input: strings.NewReader("input")})
	for _, w := range nos {
		f := want[*wire.CallFrame](w)
		end := exit(1, 75)
		end.Output = make([]byte, f.WindowOutput)
		if len(end.Output) == 0 {
			t.Error("no credit is left")
		}
		w.send(end)
	}
	if o := await(t, "the call", call); o.err != nil || o.out != "input" {
		t.Errorf("%q, error %v", o.out, o.err)
	}
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
}

// TestOfferCrossesCall: a worker that has fewer slots by now gives the call
// back; it goes elsewhere, whether its input was whole or not.
func TestOfferCrossesCall(t *testing.T) {
	for name, input := range map[string]func() io.Reader{
		"whole": func() io.Reader { return strings.NewReader("hello") },
		"long":  func() io.Reader { return strings.NewReader(strings.Repeat("hello", 20000)) },
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			n, path := start(t, node.Config{})
			w := rawUnix(t, n, path).greet()
			w.offer("f", 9, 0)
			offerFunc(t, dial(t, path), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
				rest := inv.Head()
				if inv.Rest() != nil {
					more, _ := io.ReadAll(inv.Rest())
					rest = append(rest, more...)
				}
				return bus.Result{Output: fmt.Append(nil, len(rest))}
			})
			call := post(bg(), dial(t, path), bus.Request{Function: "f", Input: input()})
			want[*wire.CallFrame](w)
			w.send(&wire.OfferFrame{Seq: 2, Name: []byte("f")}, &wire.EndFrame{ID: 1, Source: args.FromBus, Status: 75, Code: []byte(args.CodeBusy)})
			all, _ := io.ReadAll(input())
			if o := await(t, "the call", call); o.err != nil || o.out != fmt.Sprint(len(all)) {
				t.Errorf("%q, error %v", o.out, o.err)
			}
		})
	}
}

// TestWorkerLost: the caller hears of it within a second.
func TestWorkerLost(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	p := watchPace(t)
	w := rawUnix(t, n, path).greet()
	w.offer("f", 3, 0)
	c := dial(t, path)
	calls := []<-chan outcome{
		post(bg(), c, bus.Request{Function: "f"}),
		post(bg(), c, bus.Request{Function: "f", Input: bytes.NewReader(make([]byte, 1<<20))}),
	}
	want[*wire.CallFrame](w)
	want[*wire.CallFrame](w)
	t0 := time.Now()
	w.nc.Close()
	for _, ch := range calls {
		o := await(t, "worker lost", ch)
		wantErr(t, o.err, bus.ErrWorkerLost)
		if o.res.Status != 74 || o.res.Source != args.FromBus || o.res.Worker != "raw" {
			t.Errorf("%+v", o.res)
		}
	}
	if d := time.Since(t0); d > p.limit(time.Second) {
		t.Errorf("after %v", d)
	}
}

// loser takes calls and vanishes.
func loser(t testing.TB, n *node.Node, path, name string, flags uint64, say ...wire.Frame) (gone <-chan struct{}) {
	w := rawUnix(t, n, path)
	w.send(&wire.HelloFrame{Major: 1, Name: []byte(name)})
	want[*wire.HelloFrame](w)
	w.offer("f", 50, flags)
	ch := make(chan struct{})
	go func() { // ends with the first call
		for {
			f, err := w.next()
			if err != nil {
				return
			}
			if _, ok := f.(*wire.CallFrame); ok {
				w.send(say...)
				close(ch)
				w.nc.Close()
				return
			}
		}
	}()
	return ch
}

func TestRunAgain(t *testing.T) {
	output := &wire.DataFrame{ID: 1, Stream: wire.Output, Payload: []byte("out")}
	stderr := &wire.DataFrame{ID: 1, Stream: wire.Stderr, Payload: []byte("err")}
	long := make([]byte, 1<<20)
	for _, tc := range []struct {
		name    string
		flags   uint64
		retries int
		input   []byte
		say     []wire.Frame
		again   bool
	}{
		{"neither", 0, 0, nil, nil, false},
		{"retries", 0, 1, []byte("x"), nil, true},
		{"idempotent", wire.FlagIdempotent, 0, []byte("x"), nil, true},
		{"stderr does not count", wire.FlagIdempotent, 0, []byte("x"), []wire.Frame{stderr}, true},
		{"stdout was passed on", wire.FlagIdempotent, 3, []byte("x"), []wire.Frame{output}, false},
		{"a long input, idempotent", wire.FlagIdempotent, 0, long, nil, false},
		{"a long input is rewound", 0, 1, long, nil, true},
		{"a long input after stdout", 0, 1, long, []wire.Frame{output}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t)
			n, path := start(t, node.Config{})
			lost := loser(t, n, path, "loser", tc.flags, tc.say...)
			offerFunc(t, dial(t, path), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
				k := len(inv.Head())
				if inv.Rest() != nil {
					more, _ := io.Copy(io.Discard, inv.Rest())
					k += int(more)
				}
				return bus.Result{Output: fmt.Append(nil, k)}
			})
			o := await(t, "the call", post(bg(), dial(t, path), bus.Request{Function: "f", Input: bytes.NewReader(tc.input), Retries: tc.retries}))
			await(t, "the loss", lost)
			if !tc.again {
				wantErr(t, o.err, bus.ErrWorkerLost)
			} else if o.err != nil || o.out != fmt.Sprint(len(tc.input)) {
				t.Errorf("%q, error %v", o.out, o.err)
			}
		})
	}
}

// TestKeeperKilled: a worker that has lost the process that held a program counts as lost. A
// crash of a program that serves many calls does not.
func TestKeeperKilled(t *testing.T) {
	for name, tc := range map[string]struct {
		flags   uint64
		message string
		runs    int
		code    string
	}{
		"neither":    {0, args.KeeperKilled, 1, args.CodeWorkerLost},
		"idempotent": {wire.FlagIdempotent, args.KeeperKilled, 2, ""},
		"a crash":    {wire.FlagIdempotent, "the program exited with status 1 before it answered", 1, "worker.worker_lost"},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			n, path := start(t, node.Config{})
			w := rawUnix(t, n, path)
			w.send(&wire.HelloFrame{Major: 1, Name: []byte("w")})
			want[*wire.HelloFrame](w)
			w.offer("f", 1, tc.flags)
			call := post(bg(), dial(t, path), bus.Request{Function: "f", Input: strings.NewReader("x")})
			for run := 1; run <= tc.runs; run++ {
				c := want[*wire.CallFrame](w)
				if string(c.Input) != "x" {
					t.Errorf("run %d: input %q", run, c.Input)
				}
				end := &wire.EndFrame{ID: c.ID, Source: args.FromBus, Status: 74, Code: []byte(args.CodeWorkerLost), Message: []byte(tc.message), Output: []byte("half")}
				if run == 2 {
					end = &wire.EndFrame{ID: c.ID, Code: []byte("exit"), Output: []byte("whole")}
				}
				w.send(end)
			}
			o := await(t, "the call", call)
			if tc.runs == 1 {
				wantErr(t, o.err, &args.Error{Code: tc.code})
			} else if o.err != nil || o.out != "whole" {
				t.Errorf("%q, error %v", o.out, o.err)
			}
		})
	}
}

// TestCodesOfWorkers: a caller gets every code that a worker has sent as it is, but for those that only
// a node can know. A worker that passes on what a call of its own has ended with does not get its own
// call again; one that has no slot does.
func TestCodesOfWorkers(t *testing.T) {
	n, path := start(t, node.Config{})
	worker := rawUnix(t, n, path).greet()
	worker.offer("f", 1, 0)
	caller := rawUnix(t, n, path).greet()
	id, served := uint64(0), uint64(0)
	begin := func(f *wire.CallFrame) {
		id++
		f.ID = id
		caller.send(f)
		served++
		if c := want[*wire.CallFrame](worker); c.ID != served {
			t.Fatalf("call %d of the worker, not %d", c.ID, served)
		}
	}
	ends := func(code string) *wire.EndFrame {
		worker.send(&wire.EndFrame{ID: served, Source: args.FromBus, Status: 99, Code: []byte(code), Message: []byte("why")})
		return want[*wire.EndFrame](caller)
	}
	codes := append(args.Codes(), "other_network", "storage", "damaged", "tls", "quota", "acme.quota", "")
	for _, code := range codes {
		for source := range args.FromBus + 1 {
			if source == args.FromBus && args.NotTaken(code) {
				continue
			}
			begin(callFrame(0, "f", ""))
			worker.send(&wire.EndFrame{ID: served, Source: source, Status: 99, Code: []byte(code), Message: []byte("why")})
			e, passed := want[*wire.EndFrame](caller), code
			if source == args.FromBus {
				passed = args.OfWorker(code)
			}
			if string(e.Code) != passed || e.Source != source || e.Status != 99 || string(e.Message) != "why" {
				t.Errorf("%s of source %d: %+v", code, source, e)
			}
		}
	}
	for _, code := range []string{"denied", "deadline", "worker_lost", "no_function", "node_lost", "cancelled", "superseded", "revoked", "storage"} {
		if args.OfWorker(code) != "worker."+code {
			t.Errorf("a worker can claim %s", code)
		}
	}

	timed := callFrame(0, "f", "")
	timed.Timeout = 50 // the worker's clock may be ahead
	begin(timed)
	if e := ends("deadline"); string(e.Code) != "deadline" {
		t.Errorf("at the deadline: %+v", e)
	}

	begin(callFrame(0, "f", ""))
	worker.send(&wire.EndFrame{ID: served, Source: args.FromBus, Status: 75, Code: []byte("busy")})
	served++
	want[*wire.CallFrame](worker) // it has made no call: it had no slot
	full := callFrame(1, "f", "")
	full.WaitSlot = 0
	worker.send(full)
	if e := want[*wire.EndFrame](worker); string(e.Code) != "busy" {
		t.Fatalf("%+v", e)
	}
	if e := ends("busy"); string(e.Code) != "worker.busy" {
		t.Errorf("a call of its own was refused: %+v", e)
	}

	begin(callFrame(0, "f", "")) // what was before it does not count
	worker.send(&wire.EndFrame{ID: served, Source: args.FromBus, Status: 75, Code: []byte("draining")})
	served++
	want[*wire.CallFrame](worker)
	full.ID++
	worker.send(full)
	want[*wire.EndFrame](worker)
	worker.send(&wire.OfferFrame{Seq: 9, Name: []byte("f")}) // now it has no slot, whatever its call
	want[*wire.OfferedFrame](worker)
	worker.send(&wire.EndFrame{ID: served, Source: args.FromBus, Status: 75, Code: []byte("draining")})
	worker.offer("f", 1, 0)
	served++
	want[*wire.CallFrame](worker)
	if e := ends("internal"); string(e.Code) != "internal" {
		t.Errorf("%+v", e)
	}
}

// TestLossIsBounded: a call that kills its workers does not go through all.
func TestLossIsBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		flags   uint64
		retries int
		most    int
	}{"idempotent": {wire.FlagIdempotent, 0, 4}, "retries": {0, 2, 3}} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			n, path := start(t, node.Config{})
			var lost []<-chan struct{}
			for i := range 8 {
				lost = append(lost, loser(t, n, path, fmt.Sprint(i), tc.flags))
			}
			o := await(t, "the call", post(bg(), dial(t, path), bus.Request{Function: "f", Retries: tc.retries}))
			wantErr(t, o.err, bus.ErrWorkerLost)
			killed := 0
			for _, ch := range lost {
				select {
				case <-ch:
					killed++
				default:
				}
			}
			if killed != tc.most {
				t.Errorf("%d workers were lost, want %d", killed, tc.most)
			}
		})
	}
}

// TestSupersede: the same instance takes the place of its older connection.
func TestSupersede(t *testing.T) {
	over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
		n, path := start(t, node.Config{})
		me := &wire.HelloFrame{Major: 1, Name: []byte("w"), Instance: []byte("same")}
		old := connect(t, n, path)
		old.send(me)
		want[*wire.HelloFrame](old)
		old.offer("f", 4, 0)
		lost := post(bg(), dial(t, path), bus.Request{Function: "f"})
		want[*wire.CallFrame](old)
		again := connect(t, n, path)
		again.send(me)
		want[*wire.HelloFrame](again)
		again.offer("f", 3, 0)
		if info := n.Functions("f"); info[0].Slots != 3 || info[0].Busy != 0 || len(info[0].Workers) != 1 {
			t.Errorf("%+v", info)
		}
		wantErr(t, await(t, "the old call", lost).err, bus.ErrWorkerLost)
		if code := old.closed(); code != args.CodeSuperseded {
			t.Errorf("code %q", code)
		}
	})
}

// TestSupersedeNeedsIdentity: nobody can end another's connection.
func TestSupersedeNeedsIdentity(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	me := &wire.HelloFrame{Major: 1, Name: []byte("w"), Instance: []byte("same")}
	a := rawUnix(t, n, path)
	a.send(me)
	want[*wire.HelloFrame](a)
	a.offer("f", 1, 0)
	near, served := newPipe(t, n, "uid:12345")
	b := newRaw(t, near)
	b.send(me)
	want[*wire.HelloFrame](b)
	a.offer("g", 1, 0) // is still there
	near.Close()
	await(t, "the end of ServeConn", served)
}

// TestOfferReplaces: an OFFER of the same name takes the place of the older one,
// running calls included.
func TestOfferReplaces(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	before := n.Books()
	w := rawUnix(t, n, path).greet()
	w.offer("f", 2, 0)
	c := rawUnix(t, n, path).greet()
	for id := uint64(1); id <= 4; id++ {
		c.send(callFrame(id, "f", ""))
	}
	want[*wire.CallFrame](w)
	want[*wire.CallFrame](w)
	eventually(t, "two queued", func() bool { return n.QueueLen("f") == 2 })
	w.offer("f", 1, 0) // two run: none may start before both have ended
	w.send(exit(1, 0))
	w.offer("f", 0, 0)
	w.offer("f", 2, 0) // withdrawn and back: one still runs
	if f := want[*wire.CallFrame](w); f.ID != 3 {
		t.Errorf("call %d", f.ID)
	}
	if info := n.Functions("f")[0]; info.Slots != 2 || info.Busy != 2 || info.Queued != 1 {
		t.Errorf("%+v", info)
	}
	w.send(exit(2, 0))
	want[*wire.CallFrame](w)
	w.send(exit(3, 0), exit(4, 0))
	for range 4 {
		if f := want[*wire.EndFrame](c); f.Status != 0 {
			t.Errorf("%+v", f)
		}
	}
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
	w.offer("f", 0, 0)
	c.nc.Close()
	w.nc.Close()
	settled(t, n, before)
}

// TestWithdrawnThenLost: the name of a withdrawn offer is forgotten with the
// last call of it.
func TestWithdrawnThenLost(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	before := n.Books()
	w := rawUnix(t, n, path).greet()
	w.offer("f", 1, 0)
	c := dial(t, path)
	call := post(bg(), c, bus.Request{Function: "f"})
	want[*wire.CallFrame](w)
	w.offer("f", 0, 0)
	w.nc.Close()
	wantErr(t, await(t, "the call", call).err, bus.ErrWorkerLost)
	c.Close()
	settled(t, n, before)
}

func TestWithdraw(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	g := newGate()
	off := offerFunc(t, dial(t, path), "f", 1, g.handle)
	c := dial(t, path)
	call := post(bg(), c, bus.Request{Function: "f", Input: strings.NewReader("x")})
	await(t, "the call", g.started)
	done := make(chan error, 1)
	go func() { done <- off.Withdraw(bg()) }()
	eventually(t, "no offer", func() bool {
		return errors.Is(await(t, "69", post(bg(), c, bus.Request{Function: "f", WaitSlot: bus.NoWait})).err, bus.ErrNoFunction)
	})
	select {
	case <-done:
		t.Error("withdrawn before the call had ended")
	default:
	}
	g.release <- struct{}{}
	if o := await(t, "the call", call); o.err != nil || o.out != "x" {
		t.Errorf("%q, error %v", o.out, o.err)
	}
	if err := await(t, "Withdraw", done); err != nil {
		t.Error(err)
	}
}

// TestDrain: new calls are refused, queued and running ones finish.
func TestDrain(t *testing.T) {
	noLeaks(t)
	log := newLog(t)
	n, path := start(t, node.Config{Log: log.Log})
	g := newGate()
	w := dial(t, path)
	off := offerFunc(t, w, "f", 2, g.handle)
	c := dial(t, path)
	var calls []<-chan outcome
	for range 5 {
		calls = append(calls, post(bg(), c, bus.Request{Function: "f", Input: strings.NewReader("x")}))
	}
	eventually(t, "a queue", func() bool { return n.QueueLen("f") == 3 })
	drained := make(chan error, 1)
	go func() { drained <- n.Drain(bg()) }()
	eventually(t, "75", func() bool {
		o := await(t, "a call", post(bg(), c, bus.Request{Function: "g"}))
		return errors.Is(o.err, bus.ErrDraining)
	})
	if log.all()["g fbus 75 draining"] != 1 {
		t.Errorf("the call that was refused is not in the log: %v", log.all())
	}
	_, err := w.Offer(bg(), bus.Offer{Name: "new", Slots: 1}, echo)
	wantErr(t, err, bus.ErrDraining)
	if err := off.SetSlots(bg(), 1); err != nil { // a worker may take slots back at any time
		t.Error(err)
	}
	if o := await(t, "fbus.calls", post(bg(), c, bus.Request{Function: "fbus.calls"})); o.err != nil || strings.Count(o.out, "\n") != 5 {
		t.Errorf("%q, error %v", o.out, o.err)
	}
	for range 5 {
		g.release <- struct{}{}
	}
	for _, ch := range calls {
		if o := await(t, "a call", ch); o.err != nil || o.out != "x" {
			t.Errorf("%q, error %v", o.out, o.err)
		}
	}
	if err := await(t, "Drain", drained); err != nil {
		t.Error(err)
	}
}

func TestDrainIsBounded(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	g := newGate()
	offerFunc(t, dial(t, path), "f", 1, g.handle)
	call := post(bg(), dial(t, path), bus.Request{Function: "f"})
	await(t, "the call", g.started)
	queued := post(bg(), dial(t, path), bus.Request{Function: "f"})
	eventually(t, "a queued call", func() bool { return n.QueueLen("f") == 1 })
	ctx, stop := context.WithCancel(bg())
	drained := make(chan error, 1)
	go func() { drained <- n.Drain(ctx) }()
	stop()
	wantErr(t, await(t, "Drain", drained), context.Canceled)
	n.Close()                                                  // the rest is ended, and told so
	wantErr(t, await(t, "the end", call).err, bus.ErrNodeLost) // it may have run
	wantErr(t, await(t, "the end", queued).err, bus.ErrDraining)
}

// TestDeniedNames: fbus.* is the node's, and wrong names are refused; neither
// costs the connection.
func TestDeniedNames(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	c := dial(t, path)
	for name, want := range map[string]string{
		"fbus.x": args.CodeDenied, "fbus.calls": args.CodeDenied, "": args.CodeUsage, "-x": args.CodeUsage, ".x": args.CodeUsage, "a b": args.CodeUsage,
		"a\x00": args.CodeUsage, "ä": args.CodeUsage, strings.Repeat("x", 129): args.CodeUsage, "fbus./": args.CodeUsage,
	} {
		_, err := c.Offer(bg(), bus.Offer{Name: name, Slots: 1}, echo)
		wantErr(t, err, &args.Error{Code: want})
		if want == args.CodeUsage {
			_, err = c.Call(bg(), &bus.Request{Function: name})
			wantErr(t, err, &args.Error{Code: want})
		}
	}
	for _, name := range []string{"fbus", "fbusx", strings.Repeat("x", 128), "_a-b.c", "0"} {
		offerFunc(t, c, name, 1, echo)
		if _, err := c.Call(bg(), &bus.Request{Function: name}); err != nil {
			t.Error(err)
		}
	}
}

// TestOwnFunctions: what they answer arrives whole, however long.
func TestOwnFunctions(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	w := dial(t, path)
	for i := range 1000 {
		offerFunc(t, w, fmt.Sprintf("function-%d", i), 1, echo)
	}
	o := await(t, "fbus.functions", post(bg(), dial(t, path), bus.Request{Function: "fbus.functions"}))
	if o.err != nil || strings.Count(o.out, "\n") != 1000 {
		t.Errorf("%d lines, error %v", strings.Count(o.out, "\n"), o.err)
	}
}

// TestCancelByID: fbus.cancel ends another's call, running or queued.
func TestCancelByID(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	g := newGate()
	offerFunc(t, dial(t, path), "f", 1, g.handle)
	c := dial(t, path)
	calls := []<-chan outcome{post(bg(), c, bus.Request{Function: "f"})}
	await(t, "the call", g.started)
	calls = append(calls, post(bg(), c, bus.Request{Function: "f"}))
	eventually(t, "a queued call", func() bool { return n.QueueLen("f") == 1 })
	for _, info := range n.Calls() {
		if o := await(t, "fbus.cancel", post(bg(), c, bus.Request{Function: "fbus.cancel", Args: args.List(info.Call)})); o.err != nil {
			t.Error(o.err)
		}
	}
	for _, ch := range calls {
		wantErr(t, await(t, "the end", ch).err, bus.ErrCancelled)
	}
	wantErr(t, await(t, "65", post(bg(), c, bus.Request{Function: "fbus.cancel", Args: args.List("no-such-1")})).err, bus.ErrBadInput)
}

// TestCallerGone: a caller that vanishes ends its calls, queued and running.
func TestCallerGone(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	g := newGate()
	offerFunc(t, dial(t, path), "f", 2, g.handle)
	before := n.Books()
	c := rawUnix(t, n, path).greet()
	for id := uint64(1); id <= 5; id++ {
		c.send(callFrame(id, "f", "x"))
	}
	await(t, "a call", g.started)
	await(t, "a call", g.started)
	eventually(t, "three queued", func() bool { return n.QueueLen("f") == 3 })
	c.nc.Close()
	settled(t, n, before)
	if g.now.Load() != 0 {
		eventually(t, "the handlers' end", func() bool { return g.now.Load() == 0 })
	}
	if len(g.started) != 0 {
		t.Error("a queued call was started after its caller had gone")
	}
}

// tally counts the entries of a log by function, source, status and code.
type tally struct {
	t testing.TB
	*calllog.Log
}

func newLog(t testing.TB) *tally {
	l, err := calllog.Open(calllog.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &tally{t, l}
}

func (l *tally) all() map[string]int {
	all := map[string]int{}
	for after := uint64(0); ; {
		entries, next, err := l.Read(bg(), calllog.Query{After: after})
		if err != nil {
			l.t.Fatal(err)
		}
		if len(entries) == 0 {
			return all
		}
		for _, e := range entries {
			all[fmt.Sprintf("%s %s %d %s", e.Function, e.Source, e.Status, e.Code)]++
		}
		after = next
	}
}

// TestLog: each call that ends, or is refused, leaves one entry, whatever the reason. The tests
// of the limits on open calls and buffers, and of drains, look for theirs.
func TestLog(t *testing.T) {
	noLeaks(t)
	log := newLog(t)
	_, path := start(t, node.Config{Log: log.Log, Queue: 1})
	w, c := dial(t, path), dial(t, path)
	offerFunc(t, w, "f", 1, echo)
	g := newGate()
	offerFunc(t, w, "wait", 1, g.handle)
	c.Call(bg(), &bus.Request{Function: "f"})
	c.Call(bg(), &bus.Request{Function: "none"})
	c.Call(bg(), &bus.Request{Function: "no name"})
	c.Call(bg(), &bus.Request{Function: "f", On: "["})
	c.Call(bg(), &bus.Request{Function: "fbus.calls"})
	held := post(bg(), c, bus.Request{Function: "wait"})
	await(t, "the call", g.started)
	c.Call(bg(), &bus.Request{Function: "wait", WaitSlot: bus.NoWait})
	c.Call(bg(), &bus.Request{Function: "wait", Timeout: time.Millisecond})
	g.release <- struct{}{}
	await(t, "its end", held)
	want := map[string]int{
		"f program 0 exit": 1, "none fbus 69 no_function": 1, "no name fbus 64 usage": 1, "f fbus 64 usage": 1,
		"wait program 0 exit": 1, "wait fbus 75 busy": 1, "wait fbus 124 deadline": 1,
	}
	if got := log.all(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}
