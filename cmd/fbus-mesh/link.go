package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
	"fbus/cmd/fbus-mesh/slots"
)

// end is one connection of a link: to the own node, as a worker, or to the peer's, as a caller.
type end struct {
	conn   *wire.Conn
	handle func(b *wire.Batch, f wire.Frame) error
	hello  chan struct{} // closed at the node's HELLO
	done   chan struct{} // closed when the connection is gone
	err    error         // why; valid after done

	greeted  atomic.Bool
	progress bool   // the node takes PROGRESS frames; valid after hello
	relay    bool   // and lets this end make calls for others
	instance string // the node's
	id       string // prefix of the ids of calls of this connection
}

// greetTime bounds the exchange of HELLO frames.
const greetTime = 10 * time.Second

// open connects, and returns when both sides have sent HELLO. Frames after that go to handle.
func open(ctx context.Context, addr bus.Addr, o *bus.Options, handle func(b *wire.Batch, f wire.Frame) error) (*end, error) {
	line, err := bus.DialLine(ctx, addr, o)
	if err != nil {
		return nil, err
	}
	e, err := greet(ctx, line.Conn, o, handle)
	if err != nil {
		return nil, err
	}
	go line.Watch(e.done) // ends with the connection
	return e, nil
}

// greet begins the protocol on a connection.
func greet(ctx context.Context, nc net.Conn, o *bus.Options, handle func(b *wire.Batch, f wire.Frame) error) (*end, error) {
	e := &end{conn: wire.NewConn(nc, nil), handle: handle, hello: make(chan struct{}), done: make(chan struct{})}
	nc.SetReadDeadline(time.Now().Add(greetTime))
	e.conn.Send(&wire.HelloFrame{
		Major: wire.Major, Minor: wire.Minor, Network: []byte(o.Network), Instance: []byte(o.Instance), Name: []byte(o.Name),
		Caps: [][]byte{[]byte(wire.CapProgress), []byte(wire.CapRelay)},
	})
	go e.serve() // ends with the connection
	select {
	case <-e.hello:
		if !e.relay {
			e.close()
			return nil, args.Errorf(args.CodeDenied, "the node does not let this mesh relay calls: its ticket has no right to")
		}
		return e, nil
	case <-e.done:
		return nil, e.err
	case <-ctx.Done():
		e.close()
		return nil, context.Cause(ctx)
	}
}

func (e *end) serve() {
	err := e.conn.Serve(e, func() int {
		if e.greeted.Load() {
			return wire.MaxFrame
		}
		return wire.MaxHelloFrame
	})
	var ae *args.Error
	switch {
	case errors.As(err, &ae):
		e.err = ae
	case errors.Is(err, os.ErrDeadlineExceeded):
		e.err = args.Errorf(args.CodeNoNode, "node did not answer the handshake in time")
	case errors.Is(err, net.ErrClosed):
		e.err = args.Errorf(args.CodeNodeLost, "connection closed")
	default:
		e.err = &args.Error{Code: args.CodeNodeLost, Message: "connection to the node was lost: " + err.Error(), Err: err}
	}
	close(e.done)
}

// close ends the connection when everything is written.
func (e *end) close() { e.conn.Finish(nil) }

// Handle implements [wire.Handler].
func (e *end) Handle(b *wire.Batch, f wire.Frame) error {
	switch f := f.(type) {
	case *wire.ErrorFrame:
		return args.FromWire(string(f.Code), string(f.Message), 0)
	case *wire.HelloFrame:
		if e.greeted.Load() || f.Major != wire.Major {
			return args.Errorf(args.CodeVersion, "the node speaks another version of the protocol")
		}
		e.conn.NetConn().SetReadDeadline(time.Time{})
		e.progress, e.relay = f.Has(wire.CapProgress), f.Has(wire.CapRelay)
		e.instance, e.id = string(f.Instance), string(f.Connection)
		e.greeted.Store(true)
		close(e.hello)
		return nil
	}
	if !e.greeted.Load() {
		return args.Errorf(args.CodeProtocol, "a frame before HELLO")
	}
	return e.handle(b, f)
}

// A link passes calls of the own node on to one peer's node, frame by frame: windows and grants
// pass as they are, so it never holds more than what one of the nodes has granted. The mesh's
// mu protects it.
type link struct {
	peer *peer
	near *end // to the own node: where the peer's slots are offered
	far  *end // to the peer's node
	may  permissions

	seq     uint64 // of the last OFFER, and of the last OFFERED
	offered uint64
	again   bool   // all offers are made again soon
	last    uint64 // id of the last call at the far end
	byNear  map[uint64]*relayed
	byFar   map[uint64]*relayed
	gone    bool
	leaving bool // it ends with its last call
}

// relayed is a call that is passed on.
type relayed struct {
	near, far uint64 // its ids
	fn        *function
	slot      *slots.Slot // nil: see named
	named     *offered    // a call for the peer by its name, which has no slot; nil: it has one
	own       *inquiry    // it is the mesh's own, and not passed on; nil: it is
}

// fromNear handles a frame of the own node.
func (l *link) fromNear(b *wire.Batch, f wire.Frame) error {
	m := l.peer.mesh
	m.pulse.shows()
	switch f := f.(type) {
	case *wire.OfferedFrame:
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(f.Code) > 0 {
			l.refused(f)
		}
		l.offered = f.Seq
		l.closeNear()
		return nil
	case *wire.CallFrame:
		m.mu.Lock()
		defer m.mu.Unlock()
		return l.call(b, f)
	case *wire.DataFrame:
		return l.toFar(b, &f.ID, f)
	case *wire.EOFFrame:
		return l.toFar(b, &f.ID, f)
	case *wire.GrantFrame:
		return l.toFar(b, &f.ID, f)
	case *wire.CancelFrame:
		return l.toFar(b, &f.ID, f)
	}
	return args.Errorf(args.CodeProtocol, "%s is not for a relay", wire.Name(f))
}

// fromFar handles a frame of the peer's node.
func (l *link) fromFar(b *wire.Batch, f wire.Frame) error {
	switch f := f.(type) {
	case *wire.DataFrame:
		return l.toNear(b, &f.ID, f)
	case *wire.GrantFrame:
		return l.toNear(b, &f.ID, f)
	case *wire.ProgressFrame:
		return l.toNear(b, &f.ID, f)
	case *wire.EndFrame:
		m := l.peer.mesh
		m.mu.Lock()
		defer m.mu.Unlock()
		return l.end(b, f)
	}
	return args.Errorf(args.CodeProtocol, "%s is not for a caller", wire.Name(f))
}

// toFar passes a frame of a call on to the peer's node, under the id there. One for a call that has ended is
// dropped.
func (l *link) toFar(b *wire.Batch, id *uint64, f wire.Frame) error {
	c := l.find(l.byNear, *id)
	if c == nil {
		return nil
	}
	*id = c.far
	l.pass(b, l.far, f)
	return nil
}

// toNear does the same the other way, and takes what is for the mesh itself.
func (l *link) toNear(b *wire.Batch, id *uint64, f wire.Frame) error {
	c := l.find(l.byFar, *id)
	if c == nil {
		return nil
	}
	if c.own != nil {
		return l.take(c, f)
	}
	if _, progress := f.(*wire.ProgressFrame); progress && !l.near.progress {
		return nil
	}
	*id = c.near
	l.pass(b, l.near, f)
	return nil
}

func (l *link) find(calls map[uint64]*relayed, id uint64) *relayed {
	m := l.peer.mesh
	m.mu.Lock()
	defer m.mu.Unlock()
	return calls[id]
}

// pass sends a frame.
func (l *link) pass(b *wire.Batch, to *end, f wire.Frame) {
	b.Send(to.conn, f) // if it fails, the reader of that connection ends the call
	if to.conn.Stalled() {
		// What the peer's node has granted to all calls may be more than a connection holds
		// back. So the reader waits here, and the sender's node grants no more. No frame is
		// needed from it for that to end: nodes always read.
		b.Flush()
		to.conn.WaitSpace(context.Background())
	}
}

// maxCaller bounds what a relay may call its caller.
const maxCaller = 128

// callerAt returns what another node is told about a caller of this one. A long name is replaced, not
// cut: two callers must not become one.
func callerAt(node, caller string) string {
	if long := len(node) + len("@/") + len(caller); long > maxCaller {
		caller = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(caller)))[:39]
	}
	return "@" + node + "/" + caller
}

// call passes on a call of the own node. The mesh's mu is held.
func (l *link) call(b *wire.Batch, f *wire.CallFrame) error {
	m := l.peer.mesh
	if _, again := l.byNear[f.ID]; again {
		return args.Errorf(args.CodeProtocol, "call %d comes twice", f.ID)
	}
	fn := m.functions[string(f.Name)]
	c := &relayed{near: f.ID, fn: fn}
	if fn != nil {
		c.slot = fn.Started(m.now(), l.peer.id)
	}
	if fn != nil && c.slot == nil {
		if o := m.offered(fn.name, l.peer.id); o != nil && o.direct() > o.running {
			c.named = o
		}
	}
	if l.gone || c.slot == nil && c.named == nil {
		return b.Send(l.near.conn, &wire.EndFrame{ID: f.ID, Source: args.FromBus, Status: 75, Code: []byte(args.CodeBusy), Message: []byte("no slot is held for it")})
	}
	if c.named != nil {
		c.named.running++
	}
	l.last++
	c.far = l.last
	l.byNear[c.near], l.byFar[c.far] = c, c
	out := *f
	out.ID, out.Flags, out.WaitFunction, out.WaitSlot, out.Retries = c.far, f.Flags|wire.FlagHere, 0, 0, 0
	out.Caller = []byte(callerAt(m.self.Node, string(f.Caller)))
	b.Send(l.far.conn, &out)
	return nil
}

// end passes the end of a call on. The mesh's mu is held.
func (l *link) end(b *wire.Batch, f *wire.EndFrame) error {
	c := l.byFar[f.ID]
	switch {
	case c == nil:
		return nil
	case c.own != nil:
		l.answered(c, f)
		return nil
	}
	how := slots.Served
	if f.Source == args.FromBus {
		switch string(f.Code) {
		case args.CodeBusy, args.CodeDraining, args.CodeNoFunction: // it has not run: the own node places it again
			how = slots.Refused
			f.Status, f.Code = 75, []byte(args.CodeBusy)
		case args.CodeCannotStart, args.CodeDenied: // nor has this
			how = slots.Refused
		case args.CodeNodeLost: // the peer's node has stopped
			f.Status, f.Code = 74, []byte(args.CodeWorkerLost)
		}
	}
	l.ended(c, how)
	if f.Source == args.FromBus && string(f.Code) == args.CodeDenied {
		l.deny(c.fn, args.Shown(f.Message))
	}
	f.ID, f.Call, f.Worker = c.near, nil, nil
	b.Send(l.near.conn, f)
	if l.leaving && len(l.byNear) == 0 {
		l.far.close()
	}
	return nil
}

// ended forgets a call. What that changes of the offer is sent to the node before the END is.
// The mesh's mu is held.
func (l *link) ended(c *relayed, how slots.Outcome) {
	delete(l.byNear, c.near)
	delete(l.byFar, c.far)
	m := l.peer.mesh
	if l.gone || l.peer.gone {
		how = slots.Lost
	}
	if c.slot != nil {
		c.fn.Ended(m.now(), c.slot, how)
	} else if c.named != nil {
		c.named.ended(how)
	}
}

// offer offers a function of the peer to the own node. The mesh's mu is held.
func (l *link) offer(e *entry, n int) {
	l.seq++
	if e.stopped() {
		n = 0
	}
	f := &wire.OfferFrame{
		Seq: l.seq, Name: []byte(e.Name), Slots: uint64(n), Flags: wire.FlagRelay | e.Flags,
		Description: []byte(e.Description), Arguments: []byte(e.Arguments), Schema: []byte(e.Schema), Note: []byte(e.Note), Elsewhere: uint64(e.Slots),
	}
	for _, on := range e.Behind {
		f.Behind = append(f.Behind, []byte(on))
	}
	for _, on := range e.Held {
		f.Held = append(f.Held, []byte(on))
	}
	for k, v := range e.Attributes {
		f.Attributes = append(f.Attributes, []byte(k), []byte(v))
	}
	l.near.conn.Send(f)
}

// offerAgain is when a peer's functions are offered again if the own node had no room for some of them.
const offerAgain = 5 * time.Second

// refused notes that the own node has refused an offer. The mesh's mu is held.
func (l *link) refused(f *wire.OfferedFrame) {
	m := l.peer.mesh
	m.once("node refuses an offer of %s: %s", l.peer.name, args.Shown(f.Message))
	if l.again || string(f.Code) != args.CodeBusy {
		return
	}
	l.again = true
	time.AfterFunc(offerAgain, func() { // ends by itself
		m.mu.Lock()
		defer m.mu.Unlock()
		l.again = false
		if l.peer.link != l {
			return
		}
		for name := range l.peer.list {
			if o := m.offered(name, l.peer.id); o != nil {
				o.announce()
			}
		}
	})
}

// withdraw takes back the offer of a function. The mesh's mu is held.
func (l *link) withdraw(name string) {
	l.seq++
	l.near.conn.Send(&wire.OfferFrame{Seq: l.seq, Name: []byte(name), Note: []byte(l.peer.final)})
}

// lost ends all calls of a link whose far end is gone. A node that shuts down has ended all calls that it has
// taken before. The mesh's mu is held.
func (l *link) lost(reason error) {
	l.gone = true
	for _, c := range l.byFar {
		if c.own != nil {
			l.answered(c, nil)
		}
	}
	status, code := uint64(74), args.CodeWorkerLost
	if errors.Is(reason, bus.ErrDraining) {
		status, code = 75, args.CodeBusy
	}
	for _, c := range l.byNear {
		l.ended(c, slots.Lost)
		l.near.conn.Send(&wire.EndFrame{
			ID: c.near, Source: args.FromBus, Status: status, Code: []byte(code), Message: []byte(args.OneLine("node " + l.peer.name + ": " + reason.Error())),
		})
	}
}

// closeNear closes the connection to the own node when the far end is gone, all offers are withdrawn, and the
// node has answered that: the calls that it had sent before are refused, and not lost. The mesh's mu is held.
func (l *link) closeNear() {
	if l.gone && l.offered == l.seq {
		l.near.close()
	}
}
