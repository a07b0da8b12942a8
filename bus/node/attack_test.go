package node_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// What a guest that has a ticket can try: each of these has stopped a node, or kept its
// administrators out.

// owns makes calls that the node's own user must always be able to make.
func owns(t *testing.T, path string, functions ...string) {
	t.Helper()
	c := dial(t, path)
	for _, name := range functions {
		req := bus.Request{Function: name}
		if name == "fbus.cancel" {
			req.Args = args.List("nosuch-1-1")
		}
		if o := await(t, name, post(bg(), c, req)); o.err != nil && (name != "fbus.cancel" || !strings.Contains(o.err.Error(), "no call has the id")) {
			t.Errorf("%s of the node's own user: %v", name, o.err)
		}
	}
}

// TestGuestFillsBuffers: a guest's waiting calls with long arguments leave room for others, over
// however many connections it makes them.
func TestGuestFillsBuffers(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	w := rawUnix(t, n, path).greet()
	w.offer("slow", 1, 0)
	peers := []*raw{rawGuest(t, n, "ticket:bad"), rawGuest(t, n, "ticket:bad"), rawGuest(t, n, "ticket:worse")}
	long := strings.Repeat("x", 1<<19)
	for _, p := range peers {
		for id := uint64(1); ; id++ {
			f := callFrame(2*id, "slow", "")
			f.Kind, f.Args = args.KindList, args.List(long).Data()
			p.send(f, callFrame(2*id+1, "-", "")) // the second is refused at once
			e := want[*wire.EndFrame](p)
			if e.ID != 2*id {
				continue
			}
			if e.Status != 75 || !strings.HasPrefix(string(e.Message), "the node's buffers are full for ticket:") {
				t.Errorf("%d %s", e.Status, e.Message)
			}
			break
		}
	}
	if used := n.BudgetUsed(); used > node.DefaultBuffers*3/4 {
		t.Errorf("%d bytes are held", used)
	}
	dialled := dial(t, path)
	offerFunc(t, dialled, "f", 1, echo)
	for _, size := range []int{0, 1 << 20} {
		if o := await(t, "a call", post(bg(), dialled, bus.Request{Function: "f", Input: strings.NewReader(long + long[:size/2])})); o.err != nil {
			t.Error(o.err)
		}
	}
	owns(t, path, "fbus.functions", "fbus.calls", "fbus.nodes", "fbus.cancel", "fbus.metrics")
}

// TestGuestOpensCalls: a call without bytes counts what it costs, so that many connections of one
// guest do not open more than one would.
func TestGuestOpensCalls(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	owns(t, path, "fbus.nodes")
	const peers, each = 20, 2000
	var all sync.WaitGroup
	refused := make(chan string, peers*each)
	for range peers {
		p := rawGuest(t, n, "ticket:bad")
		all.Go(func() {
			for id := uint64(1); id <= each; id++ {
				f := callFrame(id, "nobody", "")
				f.WaitFunction = wire.Forever
				p.send(f)
			}
			p.send(callFrame(each+1, "-", ""))
			for {
				switch e := want[*wire.EndFrame](p); {
				case e.ID == each+1:
					return
				default:
					refused <- string(e.Message)
				}
			}
		})
	}
	all.Wait()
	if live := n.Live(); live > node.DefaultBuffers/4/1024 || live < 2000 {
		t.Errorf("%d calls wait", live)
	}
	if !strings.Contains(<-refused, "the node's buffers are full for ticket:bad") {
		t.Error("the message lacks the bound")
	}
}

// TestUnplacedCalls: calls that no worker can take do not use the places of others in a queue.
func TestUnplacedCalls(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{Queue: 4})
	w := rawUnix(t, n, path).greet()
	w.offer("f", 1, 0)
	bad, good := rawGuest(t, n, "ticket:bad"), rawGuest(t, n, "ticket:good")
	good.send(callFrame(1, "f", "first"))
	want[*wire.CallFrame](w)
	for id := uint64(1); id <= 1000; id++ {
		f := callFrame(id, "f", "")
		f.On, f.WaitFunction = []byte("nosuch"), wire.Forever
		bad.send(f)
	}
	eventually(t, "all wait", func() bool { return n.QueueLen("f") == 1000 })
	good.send(callFrame(2, "f", "second"))
	eventually(t, "it waits", func() bool { return n.QueueLen("f") == 1001 })
	w.send(exit(1, 0))
	if f := want[*wire.CallFrame](w); string(f.Input) != "second" {
		t.Errorf("%s comes next", f.Input)
	}
	// Their worker comes: now they have places, as many as there are.
	it := rawUnix(t, n, path)
	it.named("nosuch").offer("f", 2000, 0)
	for range 1000 {
		want[*wire.CallFrame](it)
	}
}

// TestGlobsAreBounded: the different globs for which calls of a function wait are bounded, and long
// ones are refused.
func TestGlobsAreBounded(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	w := rawUnix(t, n, path).greet()
	w.offer("f", 1, 0)
	p := rawGuest(t, n, "ticket:bad")
	p.send(callFrame(1, "f", ""))
	want[*wire.CallFrame](w)
	for id := uint64(2); ; id++ {
		f := callFrame(2*id, "f", "")
		f.On, f.WaitFunction = fmt.Appendf(nil, "*%d", id), wire.Forever
		p.send(f, callFrame(2*id+1, "-", ""))
		if e := want[*wire.EndFrame](p); e.ID == 2*id {
			if id < 20 || id > 30 || string(e.Message) != "f: the list of globs for which calls wait is full for ticket:bad (limit 25 globs)" {
				t.Errorf("call %d: %s", id, e.Message)
			}
			p.send(callFrame(999, "-", ""))
			break
		}
	}
	f := callFrame(1000, "f", "")
	f.On = []byte(strings.Repeat("*", 257))
	p.send(f)
	for {
		if e := want[*wire.EndFrame](p); e.ID == 1000 {
			if e.Status != 64 || string(e.Message) != "glob of 257 bytes exceeds the limit of 256" {
				t.Errorf("%d %s", e.Status, e.Message)
			}
			return
		}
	}
}

// TestFollowedLog: an administrator's ticket that waits for entries of the log does not hold up the
// answers to others.
func TestFollowedLog(t *testing.T) {
	g := newGuests(t)
	f := callFrame(1, "fbus.log", "")
	f.Kind, f.Args = args.KindJSON, []byte(`{"wait":8,"event":"nosuch"}`)
	admin, other := g.enter(g.ticket("boss", "admin")), g.guest("call:a")
	admin.send(f)
	eventually(t, "it waits", func() bool { return g.n.Answering() == 1 })
	other.says(wordsFrame(1, "fbus.functions"))
	admin.send(&wire.CancelFrame{ID: 1})
	if e := want[*wire.EndFrame](admin); string(e.Code) != args.CodeCancelled {
		t.Errorf("the log ended first: %d %s", e.Status, e.Code)
	}
}

// TestOwnFunctionsAreShared: a guest that does not read its answers takes only its share of the
// slots of the node's own functions.
func TestOwnFunctionsAreShared(t *testing.T) {
	noLeaks(t)
	m, err := jobs.Open(jobs.Config{Dir: t.TempDir(), Warn: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	n, path := start(t, node.Config{Jobs: m})
	for range 3 {
		p := rawGuest(t, n, "ticket:bad")
		id := uint64(0)
		for range 100 {
			for _, name := range []string{"fbus.functions", "fbus.calls", "fbus.cancel", "fbus.post", "fbus.jobs"} {
				id++
				f := openFrame(id, name) // its input never ends
				f.WindowOutput, f.WindowStderr = 0, 0
				p.send(f)
			}
		}
		p.send(callFrame(id+1, "-", ""))
		for want[*wire.EndFrame](p).ID != id+1 {
		}
	}
	good := rawGuest(t, n, "ticket:good")
	if got := good.says(wordsFrame(1, "fbus.functions")); got != "" {
		t.Errorf("another guest is told %q", got)
	}
	good.says(wordsFrame(2, "fbus.calls"))
	if got := good.says(wordsFrame(3, "fbus.post", "f")); len(got) != 27 {
		t.Errorf("another guest's job has the id %q", got)
	}
	owns(t, path, "fbus.functions", "fbus.calls", "fbus.nodes", "fbus.cancel", "fbus.jobs", "fbus.metrics")
}

// TestOffersOfOneGuest: offers and their text are counted over all connections of an identity.
func TestOffersOfOneGuest(t *testing.T) {
	noLeaks(t)
	n, _ := start(t, node.Config{})
	rawGuest(t, n, "ticket:good")
	refused := ""
	text := []byte(strings.Repeat("x", 4000))
	for range 4 {
		p := rawGuest(t, n, "ticket:bad")
		for i := 0; i < 300 && refused == ""; i++ {
			p.send(&wire.OfferFrame{Seq: 1, Name: fmt.Appendf(nil, "f%d", i), Slots: 1, Description: text})
			if f := want[*wire.OfferedFrame](p); len(f.Code) > 0 {
				refused = string(f.Code) + ": " + string(f.Message)
			}
		}
	}
	if refused != "busy: too much text in the descriptions and schemas of ticket:bad (limit 2097152 bytes)" {
		t.Error(refused)
	}
	if names := len(n.Functions()); names > 300 {
		t.Errorf("%d functions", names)
	}
}

// TestOffersInALoop: ten connections that make and withdraw offers as fast as they can, while calls wait
// for expensive globs, keep neither other callers nor the node's own user waiting.
func TestOffersInALoop(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	b := beside(t, path)
	caller := rawGuest(t, n, "ticket:bad")
	for id := uint64(1); id <= 1000; id++ {
		f := callFrame(id, "g", "")
		f.On, f.WaitFunction = []byte(strings.Repeat("*a", 120)+fmt.Sprint(id%20)), wire.Forever
		caller.send(f)
	}
	var flood sync.WaitGroup
	stop := make(chan struct{})
	peers := 10
	if raceEnabled {
		peers = 2
	}
	for range peers {
		p := rawGuest(t, n, "ticket:bad")
		go io.Copy(io.Discard, p.nc) // ends with the connection
		frames := encode(&wire.OfferFrame{Seq: 1, Name: []byte("g"), Slots: 1}, &wire.OfferFrame{Seq: 2, Name: []byte("g")})
		loop := []byte(strings.Repeat(string(frames), 100))
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					p.write(loop)
				}
			}
		})
	}
	for range 20 {
		b.works()
	}
	owns(t, path, "fbus.functions", "fbus.calls", "fbus.nodes", "fbus.cancel")
	close(stop)
	flood.Wait()
	b.sane(time.Second)
}

// TestManyNames: a look at more functions than there can be use for is refused.
func TestManyNames(t *testing.T) {
	noLeaks(t)
	n, _ := start(t, node.Config{})
	p := rawGuest(t, n, "ticket:bad")
	words := make([]string, 100000)
	for i := range words {
		words[i] = fmt.Sprint("f", i)
	}
	f := callFrame(1, "fbus.functions", "")
	f.Kind, f.Args = args.KindList, args.List(words...).Data()
	if got := p.says(f); got != "64 usage: fbus.functions takes at most 1000 names" {
		t.Error(got)
	}
}

// TestRevokeBesideAFlood: an administrator's ticket with many connections and waiting calls that keeps
// inviting is out when fbus.revoke returns, with all that it has issued.
func TestRevokeBesideAFlood(t *testing.T) {
	g := newGuests(t)
	bad := g.ticket("bad", "admin", "call:*")
	var flood sync.WaitGroup
	for range 20 {
		p := g.enter(bad)
		flood.Go(func() {
			for id := uint64(1); id <= 300; id++ {
				f := callFrame(id, "nobody", "")
				f.WaitFunction = wire.Forever
				p.send(f)
			}
			for id := uint64(301); ; id++ {
				f := callFrame(id, "fbus.invite", "")
				f.Kind, f.Args = args.KindJSON, []byte(`{"admin":true,"addresses":["127.0.0.1:1"]}`)
				p.send(f)
				for {
					next, err := p.next()
					if err != nil {
						return
					}
					if e, ok := next.(*wire.EndFrame); ok && e.ID == id {
						break
					}
				}
			}
		})
	}
	eventually(t, "it invites", func() bool { return len(g.live()) > 5 })
	if got := g.root.says(wordsFrame(1, "fbus.revoke", "bad")); !strings.Contains(got, bad.Serial) {
		t.Fatal(got)
	}
	if left := g.live(); len(left) > 0 {
		t.Errorf("these are left: %v", left)
	}
	eventually(t, "its calls have ended", func() bool { return g.n.Live() == 0 }) // a busy machine takes longer than closeTime
	flood.Wait()
	if left := g.live(); len(left) > 0 {
		t.Errorf("these came after: %v", left)
	}
}

// live returns the names of the tickets that are not revoked.
func (g *guests) live() (names []string) {
	g.t.Helper()
	records, err := g.a.Tickets()
	if err != nil {
		g.t.Fatal(err)
	}
	for _, r := range records {
		if r.Live(time.Now()) {
			names = append(names, r.Name)
		}
	}
	return names
}
