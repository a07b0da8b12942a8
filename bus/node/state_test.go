package node_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"fbus/bus/args"
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
		x.send(&wire.OfferFrame{Seq: uint64(p.rand.IntN(1000)), Name: []byte(name), Slots: slots, Flags: uint64(p.rand.IntN(2)) * wire.FlagIdempotent})
		return fmt.Sprintf("%s offers %s with %d slots", x.name, name, slots)
	case k < 50:
		x.calls++
		f := callFrame(x.calls, name, strings.Repeat("x", p.rand.IntN(100)))
		f.WaitFunction, f.WaitSlot = []uint64{0, 1, wire.Forever}[p.rand.IntN(3)], []uint64{0, 1, wire.Forever, wire.Forever}[p.rand.IntN(4)]
		f.Retries = uint64(p.rand.IntN(2))
		if p.rand.IntN(4) == 0 {
			f.Flags &^= wire.FlagInputEnd
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
			}
			x.send(f)
			return fmt.Sprintf("%s ends %d with %d", x.name, id, f.Status)
		}
	}
	return ""
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
		before := n.Books()
		p := &peers{T: t, n: n, rand: rand.New(rand.NewPCG(seed, 0))}
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
	}
}
