package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// relayTo connects a relay to a node, under the name of the node to which it leads.
func relayTo(t *testing.T, path, name string) *bus.Client {
	t.Helper()
	c, err := bus.Dial(bg(), bus.Unix(path), &bus.Options{Name: name, Relay: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// relayFor offers f there.
func relayFor(t *testing.T, c *bus.Client, o bus.Offer, h bus.Handler) *bus.Offering {
	t.Helper()
	o.Name, o.Relay = "f", true
	off, err := c.Offer(bg(), o, h)
	if err != nil {
		t.Fatal(err)
	}
	return off
}

func setSlots(t *testing.T, off *bus.Offering, slots int) {
	t.Helper()
	if err := off.SetSlots(bg(), slots); err != nil {
		t.Fatal(err)
	}
}

// ranAt waits for the end of a call and returns the name of its worker.
func ranAt(t *testing.T, ch <-chan outcome) string {
	t.Helper()
	o := await(t, "the end of the call", ch)
	if o.err != nil {
		t.Errorf("error %v", o.err)
	}
	return o.res.Worker
}

func functionOf(t *testing.T, n *node.Node) bus.FunctionInfo {
	t.Helper()
	list := n.Functions("f")
	if len(list) != 1 {
		t.Fatalf("%d functions are named f", len(list))
	}
	return list[0]
}

// TestRelayIsLast: calls and jobs go to a relay only while no other worker has a free slot.
func TestRelayIsLast(t *testing.T) {
	noLeaks(t)
	m, err := jobs.Open(jobs.Config{Dir: filepath.Join(t.TempDir(), "jobs"), Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	n, path := start(t, node.Config{Jobs: m})
	far, near := newGate(), newGate()
	relayFor(t, relayTo(t, path, "@b"), bus.Offer{Slots: 5}, far.handle)
	offerFunc(t, named(t, path, "w"), "f", 1, near.handle)
	c := dial(t, path)
	for range 2 {
		first := post(bg(), c, bus.Request{Function: "f"})
		await(t, "a call here", near.started)
		for _, on := range []string{"", "*", "@b"} {
			second := post(bg(), c, bus.Request{Function: "f", On: on})
			await(t, "a call at the relay", far.started)
			far.release <- struct{}{}
			if at := ranAt(t, second); at != "@b" {
				t.Errorf("it ran at %s", at)
			}
		}
		near.release <- struct{}{}
		if at := ranAt(t, first); at != "w" {
			t.Errorf("it ran at %s", at)
		}
	}
	for i, g := range []*gate{near, far} { // the first has the worker's slot
		if _, err := c.Call(bg(), &bus.Request{Function: "fbus.post", Args: args.List("f")}); err != nil {
			t.Fatal(err)
		}
		if inv := await(t, fmt.Sprint("job ", i), g.started); inv.Job == "" {
			t.Error("it is no job")
		}
	}
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
	near.release <- struct{}{}
	far.release <- struct{}{}
}

// TestRelayLeavesJobs: a relay takes no job of which a worker with a free slot is about to hear.
func TestRelayLeavesJobs(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	s := &shelf{p: &peers{T: t, n: n}, taken: map[*jobs.Taken]bool{}}
	n.SetSource(s)
	near := newGate()
	offerFunc(t, named(t, path, "w"), "f", 1, near.handle)
	s.post(rand.New(rand.NewPCG(1, 2)))
	relayFor(t, relayTo(t, path, "@b"), bus.Offer{Slots: 5}, func(context.Context, *bus.Invocation) bus.Result {
		t.Error("the relay has the job")
		return bus.Result{}
	})
	n.Audit() // its offer is made
	n.WakeJobs("f")
	await(t, "the worker has the job", near.started)
	near.release <- struct{}{}
}

// TestRelayHeld: of a function whose workers are held here and behind a relay, the node says so, and
// how to end that.
func TestRelayHeld(t *testing.T) {
	noLeaks(t)
	t.Cleanup(node.SetRelayTime(time.Millisecond)) // no slot comes
	n, path := start(t, node.Config{})
	c, relay := dial(t, path), relayTo(t, path, "@b")
	check := func(reason string, heldAll bool, held ...string) {
		t.Helper()
		f := functionOf(t, n)
		if w := f.Workers[0]; f.Waits != reason || w.Held != heldAll || !slices.Equal(w.BehindHeld, held) {
			t.Errorf("%s, %v and %v are held, want %s: %v", f.Waits, w.Held, w.BehindHeld, reason, held)
		}
		if strings.HasPrefix(reason, "no free slot") {
			reason = "no slot is free"
		}
		_, err := c.Call(bg(), &bus.Request{Function: "f", WaitSlot: bus.NoWait})
		if !errors.Is(err, bus.ErrBusy) || !strings.Contains(err.Error(), reason) {
			t.Errorf("the call ends with %v, want %s", err, reason)
		}
	}
	o := bus.Offer{Elsewhere: 2, Behind: []string{"w1", "w2"}, Held: []string{"w2"}}
	relayFor(t, relay, o, echo)
	check("no free slot here: a free one at another node is used", false, "w2")
	o.Held = o.Behind
	relayFor(t, relay, o, echo)
	check("all its workers are held: fbus hold, at node b, lists what is held", true, "w1", "w2")
	offerFunc(t, named(t, path, "w"), "f", 1, echo)
	n.HoldWorkers([]string{"w"})
	check("all its workers are held: fbus release --on 'w'", true, "w1", "w2")
	n.HoldWorkers(nil)
	if f := functionOf(t, n); f.Waits != "" {
		t.Errorf("a call would wait: %s", f.Waits)
	}
	n.HoldWorkers([]string{"w"})
	o.Held = nil
	relayFor(t, relay, o, echo)
	check("no free slot here: a free one at another node is used", false)
}

// TestRelayDescribes: a function is described by a relay only while no worker of this node offers it, so that no
// description is made of parts of two.
func TestRelayDescribes(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	relayFor(t, relayTo(t, path, "@b"), bus.Offer{Elsewhere: 1, Description: "theirs", Arguments: "X", Takes: "args", Attributes: map[string]string{"tool": ""}}, echo)
	check := func(description, arguments, takes string, attributes map[string]string) {
		t.Helper()
		if f := functionOf(t, n); f.Description != description || f.Arguments != arguments || f.Takes != takes || !maps.Equal(f.Attributes, attributes) {
			t.Errorf("%+v", f)
		}
	}
	check("theirs", "X", "args", map[string]string{"tool": ""})
	c := dial(t, path)
	offerFunc(t, c, "f", 1, echo)
	check("", "", "", nil)
	c.Close()
	eventually(t, "the worker has left", func() bool { return len(functionOf(t, n).Workers) == 1 })
	check("theirs", "X", "args", map[string]string{"tool": ""})
}

// TestRelayWithoutSlots: a relay's offer stays with no slots, and a call waits for one: it does not
// end because nobody offers the function, and one that waits for no slot waits for a moment.
func TestRelayWithoutSlots(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	off := relayFor(t, relayTo(t, path, "@b"), bus.Offer{Elsewhere: 8, Behind: []string{"w1", "w2"}}, echo)
	c := dial(t, path)

	waits := post(bg(), c, bus.Request{Function: "f"})
	eventually(t, "a call waits", func() bool { return n.QueueLen("f") == 1 })
	f := functionOf(t, n)
	want := bus.WorkerInfo{Name: "@b", Relay: true, Elsewhere: 8, Behind: []string{"w1", "w2"}}
	got := bus.WorkerInfo{Name: f.Workers[0].Name, Relay: f.Workers[0].Relay, Elsewhere: f.Workers[0].Elsewhere, Behind: f.Workers[0].Behind}
	if f.Slots != 0 || f.Elsewhere != 8 || f.Waits != "no free slot here: a free one at another node is used" || !reflect.DeepEqual(got, want) {
		t.Errorf("function %+v", f)
	}
	setSlots(t, off, 1)
	if at := ranAt(t, waits); at != "@b" {
		t.Errorf("it ran at %s", at)
	}
	setSlots(t, off, 0)

	impatient := post(bg(), c, bus.Request{Function: "f", WaitSlot: bus.NoWait})
	eventually(t, "it waits a moment", func() bool { return n.QueueLen("f") == 1 })
	setSlots(t, off, 1)
	ranAt(t, impatient)
	setSlots(t, off, 0)
	began := time.Now()
	o := await(t, "the end", post(bg(), c, bus.Request{Function: "f", WaitSlot: bus.NoWait}))
	wantErr(t, o.err, bus.ErrBusy)
	if took := time.Since(began); took < node.RelayTime {
		t.Errorf("it waited for %v", took)
	}

	if err := off.Withdraw(bg()); err != nil {
		t.Fatal(err)
	}
	o = await(t, "the end", post(bg(), c, bus.Request{Function: "f"}))
	wantErr(t, o.err, bus.ErrNoFunction)
	if list := n.Functions("f"); len(list) != 0 {
		t.Errorf("a withdrawn offer is still there: %+v", list)
	}
}

// TestHere: a call with the flag here never goes to a relay, neither at once nor from the queue, and
// none that waits for a slot waits for one of a relay.
func TestHere(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	relay, g := relayTo(t, path, "@b"), newGate()
	off := relayFor(t, relay, bus.Offer{Slots: 3}, echo)
	c := dial(t, path)
	for _, on := range []string{"", "*", "@b", "@*", "#" + functionOf(t, n).Workers[0].ID} {
		for _, wait := range []bus.Wait{bus.NoWait, bus.Forever} {
			o := await(t, "a call that may not leave", post(bg(), c, bus.Request{Function: "f", Here: true, On: on, WaitSlot: wait}))
			wantErr(t, o.err, bus.ErrNoFunction)
		}
	}
	later := post(bg(), c, bus.Request{Function: "f", Here: true, WaitFunction: bus.Forever})
	eventually(t, "it waits for a worker", func() bool { return n.QueueLen("f") == 1 })
	offerFunc(t, named(t, path, "w"), "f", 1, g.handle)
	await(t, "a worker has it", g.started)

	// The worker is busy.
	o := await(t, "a call that does not wait", post(bg(), c, bus.Request{Function: "f", Here: true, WaitSlot: bus.NoWait}))
	wantErr(t, o.err, bus.ErrBusy)
	setSlots(t, off, 0)
	began := time.Now()
	o = await(t, "a call that does not wait", post(bg(), c, bus.Request{Function: "f", Here: true, WaitSlot: bus.NoWait}))
	wantErr(t, o.err, bus.ErrBusy)
	if time.Since(began) >= node.RelayTime {
		t.Error("it has waited for a relay")
	}
	stays := post(bg(), c, bus.Request{Function: "f", Here: true})
	eventually(t, "it waits", func() bool { return n.QueueLen("f") == 1 })
	goes := post(bg(), c, bus.Request{Function: "f"})
	eventually(t, "both wait", func() bool { return n.QueueLen("f") == 2 })
	setSlots(t, off, 3)
	if at := ranAt(t, goes); at != "@b" {
		t.Errorf("it ran at %s", at)
	}
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
	g.release <- struct{}{}
	g.release <- struct{}{}
	for _, ch := range []<-chan outcome{later, stays} {
		if at := ranAt(t, ch); at != "w" {
			t.Errorf("it ran at %s", at)
		}
	}
}

// TestHereEndsLoops: two nodes pass each other's calls on. A call goes to the other node once, and
// not back.
func TestHereEndsLoops(t *testing.T) {
	noLeaks(t)
	var nodes [2]*node.Node
	var paths [2]string
	for i := range nodes {
		nodes[i], paths[i] = start(t, node.Config{})
	}
	passed := make(chan string, 100)
	for i := range nodes {
		to := dial(t, paths[1-i])
		relayFor(t, relayTo(t, paths[i], "@other"), bus.Offer{Slots: 1}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
			passed <- fmt.Sprint(i)
			var out bytes.Buffer
			res, _ := to.Call(ctx, &bus.Request{Function: inv.Function, Input: inv.Input, Stdout: &out, Here: true, WaitSlot: bus.NoWait})
			return bus.Result{End: res.End, Output: out.Bytes()}
		})
	}
	o := await(t, "the end", post(bg(), dial(t, paths[0]), bus.Request{Function: "f"}))
	wantErr(t, o.err, bus.ErrNoFunction)
	if at := <-passed; at != "0" || len(passed) != 0 {
		t.Errorf("it was passed on by %s, and %d times more", at, len(passed))
	}
	offerFunc(t, dial(t, paths[1]), "f", 1, echo)
	if at := ranAt(t, post(bg(), dial(t, paths[0]), bus.Request{Function: "f"})); at != "@other" {
		t.Errorf("it ran at %s", at)
	}
}

// busyFrame ends a call because its worker has no slot.
func busyFrame(id uint64) *wire.EndFrame {
	return &wire.EndFrame{ID: id, Source: args.FromBus, Status: 75, Code: []byte(args.CodeBusy)}
}

// relayRaw connects a relay that writes its frames itself.
func relayRaw(t *testing.T, n *node.Node, path, name string) *raw {
	t.Helper()
	p := rawUnix(t, n, path)
	h := relayHello()
	h.Name = []byte(name)
	p.send(h)
	if !want[*wire.HelloFrame](p).Has(wire.CapRelay) {
		t.Fatal("it may not relay")
	}
	return p
}

// relayWithJobs starts a node that keeps posted calls, and returns a relay that reads and writes frames.
func relayWithJobs(t *testing.T) (n *node.Node, r *raw, path string) {
	t.Helper()
	m, err := jobs.Open(jobs.Config{Dir: filepath.Join(t.TempDir(), "jobs"), Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	n, path = start(t, node.Config{Jobs: m})
	return n, relayRaw(t, n, path, "@b"), path
}

// TestRelayRefuses: a relay may refuse a call as often as it offers a slot anew; without that it
// gets the call no second time. A refusal is no end of a call, nor of a job.
func TestRelayRefuses(t *testing.T) {
	noLeaks(t)
	n, r, path := relayWithJobs(t)
	c := dial(t, path)
	r.offer("f", 1, wire.FlagRelay)
	for _, what := range []string{"call", "job"} {
		var ended <-chan outcome
		if what == "call" {
			ended = post(bg(), c, bus.Request{Function: "f"})
		} else if _, err := c.Call(bg(), &bus.Request{Function: "fbus.post", Args: args.List("f")}); err != nil {
			t.Fatal(err)
		}
		last := uint64(0)
		for i := range 30 {
			f := want[*wire.CallFrame](r)
			last = f.ID
			switch i % 3 {
			case 0: // the offer first
				r.offer("f", 0, wire.FlagRelay)
				r.send(busyFrame(f.ID))
				r.offer("f", 1, wire.FlagRelay)
			case 1: // a further slot was offered when the call came
				r.offer("f", 2, wire.FlagRelay)
				r.send(busyFrame(f.ID))
				for range 2 { // both slots
					last = want[*wire.CallFrame](r).ID
					r.send(busyFrame(last))
				}
				r.offer("f", 1, wire.FlagRelay)
			case 2: // the node counts
				r.send(busyFrame(f.ID))
				if what == "call" {
					eventually(t, "it waits", func() bool { return n.QueueLen("f") == 1 })
				}
				r.offer("probe", 1, 0) // a CALL would come before the answer
				r.offer("f", 1, wire.FlagRelay)
			}
		}
		f := want[*wire.CallFrame](r)
		if f.ID <= last {
			t.Fatalf("call %d after %d", f.ID, last)
		}
		r.send(exit(f.ID, 0))
		if what == "call" {
			ranAt(t, ended)
			continue
		}
		eventually(t, "the job is done", func() bool {
			var out bytes.Buffer
			_, err := c.Call(bg(), &bus.Request{Function: "fbus.jobs", Stdout: &out})
			var j bus.JobInfo
			return err == nil && json.NewDecoder(&out).Decode(&j) == nil && j.State == "done" && j.Used == 0
		})
	}
}

// TestRelayBusyEnds: a call that waits for no slot ends as busy when the relay refuses it after its
// moment, one that may not leave when its worker does, and a program's own 75 counts for the relay as for a worker.
func TestRelayBusyEnds(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	r := relayRaw(t, n, path, "@b")
	r.offer("f", 1, wire.FlagRelay)
	c := dial(t, path)

	impatient := post(bg(), c, bus.Request{Function: "f", WaitSlot: bus.NoWait})
	f := want[*wire.CallFrame](r)
	time.Sleep(node.RelayTime)
	r.send(busyFrame(f.ID))
	wantErr(t, await(t, "the end", impatient).err, bus.ErrBusy)

	r.offer("f", 2, wire.FlagRelay)
	busy := post(bg(), c, bus.Request{Function: "f"})
	r.send(exit(want[*wire.CallFrame](r).ID, 75))
	if o := await(t, "the end", busy); o.res.Status != 75 || o.res.Source != args.FromProgram {
		t.Errorf("it ended with %+v", o.res)
	}
	r.offer("f", 0, wire.FlagRelay)

	w := rawUnix(t, n, path).named("w")
	w.offer("f", 1, 0)
	crossed := post(bg(), c, bus.Request{Function: "f", Here: true, WaitSlot: bus.NoWait})
	f = want[*wire.CallFrame](w)
	w.offer("f", 0, 0)
	w.offer("other", 1, 0)
	w.send(busyFrame(f.ID))
	wantErr(t, await(t, "the end", crossed).err, bus.ErrBusy)
}

// TestRelayLosesWorker: when a relay has lost the worker, the call is run again as after a loss here.
func TestRelayLosesWorker(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	r := relayRaw(t, n, path, "@b")
	r.offer("f", 1, wire.FlagRelay)
	for retries := range 2 {
		call := post(bg(), dial(t, path), bus.Request{Function: "f", Retries: retries})
		for range retries + 1 {
			r.send(&wire.EndFrame{ID: want[*wire.CallFrame](r).ID, Source: args.FromBus, Status: 74, Code: []byte(args.CodeWorkerLost)})
		}
		wantErr(t, await(t, "the end", call).err, bus.ErrWorkerLost)
	}
}

// TestRelaySelects: a relay is selected as any worker is, and gets what selects the worker at its
// node.
func TestRelaySelects(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	ons := make(chan string, 10)
	report := func(name string) bus.Handler {
		return func(_ context.Context, inv *bus.Invocation) bus.Result {
			ons <- name + " " + inv.On
			return bus.Result{}
		}
	}
	relayFor(t, relayTo(t, path, "@b"), bus.Offer{Slots: 1}, report("@b"))
	relayFor(t, relayTo(t, path, "@c"), bus.Offer{Slots: 2}, report("@c"))
	offerFunc(t, named(t, path, "w"), "f", 9, report("w"))
	workers := functionOf(t, n).Workers
	at := func(name string) string {
		return "#" + workers[slices.IndexFunc(workers, func(w bus.WorkerInfo) bool { return w.Name == name })].ID
	}
	for on, want := range map[string]string{
		"": "w ", "*": "w ", "@b": "@b ", "@*": "@c ", "[@]b": "@b ", at("@b"): "@b ", at("@b") + "/w1": "@b w1", at("@c") + "/#x-1/y*": "@c #x-1/y*", at("w") + "/x": "w ",
	} {
		ranAt(t, post(bg(), dial(t, path), bus.Request{Function: "f", On: on}))
		if got := <-ons; got != want {
			t.Errorf("on %q: %q, not %q", on, got, want)
		}
	}
}

// TestRelayNeedsRight: only a connection that may relay makes such an offer, and one that changes
// takes its place among the others.
func TestRelayNeedsRight(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	p := rawUnix(t, n, path).greet()
	p.send(&wire.OfferFrame{Seq: 1, Name: []byte("f"), Slots: 1, Flags: wire.FlagRelay})
	if a := want[*wire.OfferedFrame](p); string(a.Code) != args.CodeDenied {
		t.Errorf("it was accepted: %q", a.Code)
	}
	r := relayRaw(t, n, path, "@b")
	slots := [2]int{3, 3}
	for i, flags := range []uint64{0, wire.FlagRelay, wire.FlagRelay | wire.FlagCannotStart, 0, wire.FlagCannotStart, wire.FlagRelay, 0} {
		slots[0] = 3
		if flags&wire.FlagCannotStart != 0 {
			slots[0] = 0
		}
		r.offer("f", uint64(slots[0]), flags)
		f := functionOf(t, n)
		if got := [2]int{f.Slots, f.Elsewhere}; flags&wire.FlagRelay != 0 && got != [2]int{0, slots[0]} || flags&wire.FlagRelay == 0 && got != [2]int{slots[0], 0} {
			t.Errorf("%d: flags %d: slots %v", i, flags, got)
		}
		if err := n.Audit(); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestWatchRelays: fbus.watch counts free slots here and elsewhere.
func TestWatchRelays(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	w := watch(t, dial(t, path), "")
	off := relayFor(t, relayTo(t, path, "@b"), bus.Offer{Elsewhere: 4}, echo)
	w.until(`{"type":"function","name":"f","slots":0,"elsewhere":4,"free":0}`)
	w.until(`{"type":"worker","function":"f","name":"@b","relay":true,"elsewhere":4}`)
	offerFunc(t, dial(t, path), "f", 2, echo)
	setSlots(t, off, 1)
	w.until(`{"type":"function","name":"f","slots":2,"elsewhere":4,"free":2,"free_elsewhere":1}`)
}

// A watcher can do without what only relays change.
func TestWatchWithoutRelays(t *testing.T) {
	_, path := start(t, node.Config{})
	all, some := watch(t, dial(t, path), ""), watch(t, dial(t, path), `{"relays":false}`)
	offerFunc(t, dial(t, path), "first", 1, echo)
	some.until(`{"type":"worker","function":"first"}`) // it has its snapshot
	off := relayFor(t, relayTo(t, path, "@b"), bus.Offer{Slots: 1}, echo)
	all.until(`{"type":"function","name":"f","free_elsewhere":1}`)
	all.until(`{"type":"worker","name":"@b","slots":1}`)
	setSlots(t, off, 2)
	all.until(`{"type":"function","name":"f","free_elsewhere":2}`)
	offerFunc(t, dial(t, path), "g", 1, echo)
	for line := range some.lines {
		if line["type"] == "worker" && line["function"] == "g" {
			break
		}
		if line["name"] == "f" || line["function"] == "f" {
			t.Errorf("it gets %v", line)
		}
	}
}

// TestNotARelay: nobody but a relay offers under the name of another node, and nobody but one that
// administers the node passes for its mesh. What the mesh knows is not for guests.
func TestNotARelay(t *testing.T) {
	g := newGuests(t)
	offer := func(ticket *trust.Ticket, name, function string, relay bool) string {
		t.Helper()
		o := &bus.Options{Name: name, Relay: relay}
		addr := bus.Unix(g.path)
		if ticket != nil {
			addr, o.Identity = bus.TCP(g.addr), find.ForTicket(ticket)
		}
		c, err := bus.Dial(bg(), addr, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err = c.Offer(bg(), bus.Offer{Name: function, Slots: 1}, func(context.Context, *bus.Invocation) bus.Result {
			return bus.Result{Output: []byte(name)}
		}); err != nil {
			return err.(*bus.Error).Code
		}
		return ""
	}
	guest, relay, admin := g.ticket("guest", "call:*", "offer:*"), g.ticket("relay", "call:*", "offer:*", "relay"), g.ticket("admin", "relay", "admin")
	for _, x := range []struct {
		ticket         *trust.Ticket
		name, function string
		relay          bool
		code           string
	}{
		{nil, "@b", "f", false, args.CodeDenied},
		{guest, "@b", "f", false, args.CodeDenied},
		{relay, "@b", "f", true, ""},
		{nil, "w", bus.MeshFunction, false, args.CodeDenied},
		{guest, "w", bus.MeshFunction, false, args.CodeDenied},
		{relay, "w", bus.MeshFunction, true, args.CodeDenied},
		{relay, "w", "fbus.meshes", true, args.CodeDenied},
		{admin, "w", bus.MeshFunction, true, ""},
	} {
		if code := offer(x.ticket, x.name, x.function, x.relay); code != x.code {
			t.Errorf("%s offers %s, relay %v: %q, want %q", x.name, x.function, x.relay, code, x.code)
		}
	}
	for i, ticket := range []*trust.Ticket{guest, relay, admin} {
		want := []string{"77 denied: ticket:guest may not call fbus.mesh", "w", "w"}[i]
		if got := g.enter(ticket).says(callFrame(1, bus.MeshFunction, "")); got != want {
			t.Errorf("the mesh tells %d: %s, want %s", i, got, want)
		}
	}
	forAnother := callFrame(1, bus.MeshFunction, "")
	forAnother.Caller = []byte("somebody")
	p := dialTLS(t, g.addr, relay.ClientConfig(nil))
	p.send(relayHello())
	want[*wire.HelloFrame](p)
	if got, want := p.says(forAnother), "77 denied: ticket:relay/somebody may not call fbus.mesh"; got != want {
		t.Errorf("the mesh tells a relay's caller: %s, want %s", got, want)
	}
}

// TestRelayDenied: that another node denies a relay something is no end of a call that a worker can
// take, nor of a job.
func TestRelayDenied(t *testing.T) {
	noLeaks(t)
	_, r, path := relayWithJobs(t)
	c := dial(t, path)
	deny := func() {
		t.Helper()
		f := want[*wire.CallFrame](r)
		r.send(&wire.EndFrame{ID: f.ID, Source: args.FromBus, Status: 77, Code: []byte(args.CodeDenied), Message: []byte("ticket:m may not call f")})
	}
	r.offer("f", 3, wire.FlagRelay)
	ch := post(bg(), c, bus.Request{Function: "f"})
	deny()
	if o := await(t, "the end of the call", ch); o.res.Status != 77 || o.err.Error() != "ticket:m may not call f" {
		t.Errorf("without another worker: %+v", o)
	}
	relayFor(t, relayTo(t, path, "@c"), bus.Offer{Slots: 1}, echo)
	ch = post(bg(), c, bus.Request{Function: "f"})
	deny()
	if at := ranAt(t, ch); at != "@c" {
		t.Errorf("the call runs at %q", at)
	}
	if _, err := c.Call(bg(), &bus.Request{Function: "fbus.post", Args: args.List("f")}); err != nil {
		t.Fatal(err)
	}
	f := want[*wire.CallFrame](r)
	r.offer("f", 0, 0) // so does a mesh
	r.send(&wire.EndFrame{ID: f.ID, Source: args.FromBus, Status: 77, Code: []byte(args.CodeDenied)})
	eventually(t, "the job is done", func() bool {
		var out bytes.Buffer
		_, err := c.Call(bg(), &bus.Request{Function: "fbus.jobs", Stdout: &out})
		var j bus.JobInfo
		return err == nil && json.NewDecoder(&out).Decode(&j) == nil && j.State == "done" && j.Worker == "@c"
	})
}
