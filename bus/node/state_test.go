package node_test

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/wire"
)

var stateSeed = flag.Uint64("state-seed", 0, "repeat the random events of TestStates with that seed")

// peers are connections whose frames a test writes itself, and which it reads without
// minding what comes: the node's counts are what is looked at.
type peers struct {
	*testing.T
	n      *node.Node
	rand   *rand.Rand
	shelf  *shelf
	last   *jobs.Taken // posted
	all    []*peer
	nextID int
	events strings.Builder
}

type peer struct {
	name   string
	nc     net.Conn
	calls  uint64           // opened
	open   map[uint64]bool  // of these, those that may still get frames
	frames chan wire.Frame  // that came
	worker map[uint64]int64 // calls here, and the credit for their output
}

// connect adds a peer. What it gets is decoded by a goroutine that ends with the connection.
func (p *peers) connect() {
	near, far := net.Pipe()
	go p.n.ServeConn(far, node.Peer{Caller: "uid:1"}) // ends with the connection
	p.nextID++
	x := &peer{name: fmt.Sprintf("p%d", p.nextID), nc: near, open: map[uint64]bool{}, worker: map[uint64]int64{}, frames: make(chan wire.Frame, 1<<14)}
	r := newRaw(p.T, near)
	go func() {
		defer close(x.frames)
		for {
			f, err := r.next()
			if err != nil {
				return
			}
			x.frames <- f
		}
	}()
	h := hello()
	h.Name = []byte(x.name)
	h.Caps = [][]byte{[]byte(wire.CapRelay)}
	x.send(h)
	p.all = append(p.all, x)
}

// send writes frames; the node reads them soon.
func (x *peer) send(frames ...wire.Frame) { x.nc.Write(encode(frames...)) }

// take looks at the frames that have come.
func (x *peer) take() {
	for {
		select {
		case f, ok := <-x.frames:
			if !ok {
				return
			}
			switch f := f.(type) {
			case *wire.CallFrame:
				x.worker[f.ID] = int64(f.WindowOutput)
			case *wire.GrantFrame:
				if _, here := x.worker[f.ID]; here && f.Stream == wire.Output {
					x.worker[f.ID] += int64(f.Bytes)
				}
			case *wire.EndFrame:
				delete(x.open, f.ID)
			}
		default:
			return
		}
	}
}

func anyOf[K comparable, V any](r *rand.Rand, m map[K]V) (k K, ok bool) {
	i := r.IntN(max(1, len(m)))
	for k = range m {
		if i--; i < 0 {
			return k, true
		}
	}
	return k, false
}

// event does something at random. It returns a description.
func (p *peers) event() string {
	if len(p.all) < 2 || len(p.all) < 6 && p.rand.IntN(30) == 0 {
		p.connect()
		return "connect"
	}
	i := p.rand.IntN(len(p.all))
	x := p.all[i]
	x.take()
	name := string(rune('f' + p.rand.IntN(3)))
	switch k := p.rand.IntN(100); {
	case k < 2:
		x.nc.Close()
		p.all = append(p.all[:i], p.all[i+1:]...)
		return x.name + " goes"
	case k < 15:
		slots := uint64(p.rand.IntN(3))
		flags := uint64(p.rand.IntN(8)) | []uint64{0, 0, wire.FlagRelay}[p.rand.IntN(3)]
		x.send(&wire.OfferFrame{Seq: uint64(p.rand.IntN(1000)), Name: []byte(name), Slots: slots, Flags: flags})
		return fmt.Sprintf("%s offers %s with %d slots, flags %d", x.name, name, slots, flags)
	case k < 48:
		x.calls++
		f := callFrame(x.calls, name, strings.Repeat("x", p.rand.IntN(100)))
		f.WaitFunction, f.WaitSlot = []uint64{0, 1, wire.Forever}[p.rand.IntN(3)], []uint64{0, 1, wire.Forever, wire.Forever}[p.rand.IntN(4)]
		f.Retries = uint64(p.rand.IntN(2))
		if p.rand.IntN(4) == 0 {
			f.Flags &^= wire.FlagInputEnd
		}
		if p.rand.IntN(5) == 0 {
			f.Flags |= wire.FlagHere
		}
		if p.rand.IntN(5) == 0 {
			f.Timeout = 1 + uint64(p.rand.IntN(3))
		}
		if p.rand.IntN(6) == 0 {
			f.On = []byte([]string{"p*", "p1", "p[2-9]", "nobody", "["}[p.rand.IntN(5)])
		}
		if p.rand.IntN(20) == 0 {
			f.Name = []byte("no name")
		}
		x.open[x.calls] = true
		x.send(f)
		return fmt.Sprintf("%s calls %s: %d", x.name, name, x.calls)
	case k < 54:
		p.last = p.shelf.post(p.rand)
		p.n.WakeJobs("f")
		return "a job of f"
	case k < 55:
		if t := p.last; t != nil {
			t.Cause.Store(&args.Error{Code: args.CodeCancelled})
			p.n.CancelJob(t.ID, args.CodeCancelled, "")
			return "its end"
		}
	case k < 60:
		if id, ok := anyOf(p.rand, x.open); ok {
			x.send(&wire.CancelFrame{ID: id})
			return fmt.Sprintf("%s cancels %d", x.name, id)
		}
	case k < 64:
		if id, ok := anyOf(p.rand, x.open); ok {
			x.send(&wire.GrantFrame{ID: id, Stream: wire.Output, Bytes: 1000})
			return fmt.Sprintf("%s grants %d", x.name, id)
		}
	case k < 70:
		if id, ok := anyOf(p.rand, x.worker); ok && x.worker[id] > 10 {
			x.worker[id] -= 10
			x.send(&wire.DataFrame{ID: id, Stream: wire.Output, Payload: []byte("ten bytes.")})
			return fmt.Sprintf("%s writes for %d", x.name, id)
		}
	case k < 74:
		if id, ok := anyOf(p.rand, x.worker); ok {
			x.send(&wire.GrantFrame{ID: id, Stream: wire.Input, Bytes: 1000})
			return fmt.Sprintf("%s takes input of %d", x.name, id)
		}
	default:
		if id, ok := anyOf(p.rand, x.worker); ok {
			delete(x.worker, id)
			f := exit(id, []uint64{0, 0, 1, 75}[p.rand.IntN(4)])
			if p.rand.IntN(8) == 0 {
				f.Source, f.Status, f.Code = args.FromBus, 75, []byte(args.CodeBusy)
			} else if p.rand.IntN(6) == 0 {
				if p.rand.IntN(2) == 0 {
					x.send(&wire.OfferFrame{Seq: 1, Name: []byte(name), Flags: wire.FlagCannotStart, Note: []byte("gone")})
				}
				f.Source, f.Status, f.Code = args.FromBus, 126, []byte(args.CodeCannotStart)
			}
			x.send(f)
			return fmt.Sprintf("%s ends %d with %d", x.name, id, f.Status)
		}
	}
	return ""
}

// shelf is a store of jobs: what is taken is on it, waits to be taken again, or has ended.
type shelf struct {
	p *peers

	mu    sync.Mutex // protects the fields below
	ready []*jobs.Taken
	taken map[*jobs.Taken]bool // and whether it has started
	ended int
	bad   string
}

func (s *shelf) ReadyOn(string) map[string]int { return nil }

func (s *shelf) Ready(function string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ready)
}

func (s *shelf) Take(function, worker, connection string, refused []jobs.ID) (*jobs.Taken, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, t := range s.ready {
		if !slices.Contains(refused, t.ID) {
			s.ready = slices.Delete(s.ready, i, i+1)
			s.taken[t] = false
			return t, nil
		}
	}
	return nil, nil
}

func (s *shelf) Started(t *jobs.Taken, worker, call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if started, there := s.taken[t]; started || !there {
		s.bad = "a job that was not taken has started"
	}
	s.taken[t] = true
}

func (s *shelf) Return(t *jobs.Taken, busy bool) {
	s.mu.Lock()
	if started, there := s.taken[t]; !there || busy && !started {
		s.bad = "a job that was not taken, or has not started, came back"
	}
	delete(s.taken, t)
	s.ready = append(s.ready, t)
	s.mu.Unlock()
	s.p.n.WakeJobs("f")
}

func (s *shelf) Ended(t *jobs.Taken, end jobs.End) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.taken[t] {
		s.bad = "a job that has not started has ended"
	}
	delete(s.taken, t)
	s.ended++
}

// post adds a job of f.
func (s *shelf) post(r *rand.Rand) *jobs.Taken {
	t := &jobs.Taken{ID: jobs.ID{1: byte(r.IntN(256)), 2: byte(r.IntN(256)), 3: byte(r.IntN(256)), 4: 1}, Poster: jobs.Poster{Caller: "uid:7"}, Attempt: 1, Input: []byte("job"), Stdout: io.Discard, Stderr: io.Discard}
	if r.IntN(4) == 0 {
		t.Rest = strings.NewReader(strings.Repeat("x", r.IntN(100000)))
	}
	if r.IntN(4) == 0 {
		t.Timeout = time.Millisecond
	}
	s.mu.Lock()
	s.ready = append(s.ready, t)
	s.mu.Unlock()
	return t
}

// TestStates: whatever peers do, in whatever order, a call makes only legal transitions, and the
// counts and the budget agree with the calls that are there after each event.
func TestStates(t *testing.T) {
	noLeaks(t)
	runs, events := 20, 400
	if testing.Short() || raceEnabled {
		runs = 5
	}
	for range runs {
		seed := *stateSeed
		if seed == 0 {
			seed = rand.Uint64()
		}
		n, err := node.New(node.Config{Network: "test", Queue: 5})
		if err != nil {
			t.Fatal(err)
		}
		p := &peers{T: t, n: n, rand: rand.New(rand.NewPCG(seed, 0))}
		p.shelf = &shelf{p: p, taken: map[*jobs.Taken]bool{}}
		n.SetSource(p.shelf)
		before := n.Books()
		for range events {
			if what := p.event(); what != "" {
				fmt.Fprintln(&p.events, what)
			}
			if err := n.Audit(); err != nil {
				t.Fatalf("%v\nafter -state-seed=%d:\n%s", err, seed, p.events.String())
			}
		}
		for _, x := range p.all {
			x.nc.Close()
		}
		settled(t, n, before)
		n.Close()
		if s := p.shelf; s.bad != "" || len(s.taken) > 0 {
			t.Fatalf("%s, %d jobs are with nobody: -state-seed=%d:\n%s", s.bad, len(s.taken), seed, p.events.String())
		}
	}
}
