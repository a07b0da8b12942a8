package node

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// session is one connection: it may call, offer, or both. Its fields below conn
// are protected by the node's mu once the session is registered.
type session struct {
	node     *Node
	conn     *wire.Conn // nil: the node itself, as the caller of jobs
	id       uint64
	peer     Peer
	identity *identity
	internal bool // the node's own: may offer fbus.*
	greeted  bool // its reader's alone

	prefix   []byte // of the ids of calls that are opened here
	nameText []byte // name, for frames

	name      string
	ons       []string // what selects it by equality: nothing, its name, its id
	instance  string
	in        map[uint64]*call // calls that the peer opened
	lastIn    uint64
	out       map[uint64]*call // calls that the node opened at the peer
	lastOut   uint64
	offers    map[string]*offer
	withdrawn map[string]*offer // of which calls still take slots
	most      int               // calls that the worker takes at once, over all its offers; 0: maxOpen
	taking    int               // slots of its offers that ask for a job
	text      int64             // bytes of text that the offers hold
	exposure  int64             // credit given to others for sending here
	held      []*flow           // credit kept back until the peer reads on
	heldBy    string            // a glob of fbus.hold: it gets nothing new; "": it is not held
	gone      bool
	dismissed *args.Error // why the node ends it: nothing that it sends is acted on any more
	fresh     bool        // has asked for nothing yet
	progress  bool        // takes PROGRESS frames
	relays    bool        // may make calls for others, and knows it
	notTaken  time.Time   // when a call that it had opened last ended with a code of [args.NotTaken]
	began     time.Time   // when it connected
}

func (s *session) limit() int {
	if s.greeted {
		return wire.MaxFrame
	}
	return wire.MaxHelloFrame
}

// Handle implements [wire.Handler].
func (s *session) Handle(b *wire.Batch, f wire.Frame) error {
	if !s.greeted {
		return s.greet(b, f)
	}
	if data, ok := f.(*wire.DataFrame); ok {
		return s.handleData(b, data)
	}
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	if s.dismissed != nil {
		return s.dismissed
	}
	if s.identity.rank != owner {
		defer func(began time.Time) { s.conn.Charge(time.Since(began)) }(time.Now())
	}
	switch f := f.(type) {
	case *wire.CallFrame:
		return s.handleCall(b, f)
	case *wire.EOFFrame:
		return s.handleEOF(b, f)
	case *wire.GrantFrame:
		return s.handleGrant(b, f)
	case *wire.CancelFrame:
		return s.handleCancel(b, f)
	case *wire.EndFrame:
		return s.handleEnd(b, f)
	case *wire.OfferFrame:
		return s.handleOffer(b, f)
	case *wire.ProgressFrame:
		return s.handleProgress(b, f)
	case *wire.ErrorFrame:
		return fmt.Errorf("peer gave up: %s: %s", args.Shown(f.Code), args.Shown(f.Message))
	case *wire.HelloFrame:
		return protocol("second HELLO")
	}
	return protocol("%s is sent by a node, not by a client", wire.Name(f))
}

func protocol(format string, a ...any) error { return args.Errorf(args.CodeProtocol, format, a...) }

// greet takes the first frame, which must be HELLO, and answers it.
func (s *session) greet(b *wire.Batch, f wire.Frame) error {
	h, ok := f.(*wire.HelloFrame)
	if !ok {
		return protocol("%s before HELLO: the first frame must be HELLO", wire.Name(f))
	}
	n := s.node
	if h.Major != wire.Major {
		return args.Errorf(args.CodeVersion, "unsupported protocol version %d: this node has version %d", h.Major, wire.Major)
	}
	if len(h.Network) > 0 && string(h.Network) != n.cfg.Network {
		return args.Errorf(args.CodeNetwork, "this node is in network %s, not in %s", n.cfg.Network, args.Shown(h.Network))
	}
	lowered, err := loweredRights(h)
	if err != nil {
		return &args.Error{Code: args.CodeUsage, Message: "HELLO: " + err.Error()}
	}
	s.greeted = true
	s.conn.NetConn().SetReadDeadline(time.Time{})
	s.register(h, lowered)
	if !s.internal {
		n.cfg.Note("connection %d: %s as %s", s.id, s.peer.Caller, s.name)
	}
	return b.Send(s.conn, &wire.HelloFrame{
		Major: wire.Major, Minor: wire.Minor, Network: []byte(n.cfg.Network), Instance: []byte(n.instance), Name: []byte(n.cfg.Name),
		Connection: s.prefix, Caps: s.caps(),
	})
}

// caps returns the capabilities that the node names to the peer. That it may make calls for others
// is something that a peer has to know before it does.
func (s *session) caps() [][]byte {
	caps := [][]byte{[]byte(wire.CapProgress)}
	if s.relays {
		caps = append(caps, []byte(wire.CapRelay))
	}
	return caps
}

// loweredRights returns the rights that a client wants at most; nil: all that it has.
func loweredRights(h *wire.HelloFrame) (*trust.Rights, error) {
	if h.Rights == nil {
		return nil, nil
	}
	words := make([]string, len(h.Rights))
	for i, w := range h.Rights {
		words[i] = string(w)
	}
	rights, err := trust.ParseRights(words...)
	return &rights, cmp.Or(err, args.CheckNoToken("rights", strings.Join(words, " ")))
}

// appendCall appends the id on the network of a call that is opened here.
func (s *session) appendCall(dst []byte, id uint64) []byte {
	dst = append(append(dst, s.prefix...), '-')
	return strconv.AppendUint(dst, id, 10)
}

// register notes the peer's name and instance. An older connection of the same instance and
// identity is closed: the peer has lost it, and its slots must not count twice.
func (s *session) register(h *wire.HelloFrame, lowered *trust.Rights) {
	n := s.node
	key := s.peer.Caller + " " + string(h.Instance)
	n.mu.Lock()
	s.peer.Lowered = lowered
	s.name = args.Shown(h.Name)
	s.progress = h.Has(wire.CapProgress)
	s.relays = h.Has(wire.CapRelay) && s.peer.relay()
	s.nameText = []byte(s.name)
	s.ons = []string{"", "#" + string(s.prefix)}
	if on, err := wire.ParseOn(s.name); err == nil && !on.Glob() && s.name != "" && s.name[0] != '#' {
		s.ons = append(s.ons, s.name)
	}
	s.heldBy = n.holds(s)
	if len(h.Instance) == 0 {
		n.mu.Unlock()
		return
	}
	old := n.instances[key]
	s.instance = key
	n.instances[key] = s
	n.mu.Unlock()
	if old != nil {
		old.conn.CloseWith(&args.Error{Code: args.CodeSuperseded, Message: "this instance has connected again"})
		old.close()
	}
}

// closeStep is how many calls of a session that has gone are ended with the lock held once.
const closeStep = 256

// close ends the session's calls and withdraws its offers. It may be called twice.
func (s *session) close() {
	n := s.node
	n.mu.Lock()
	if s.gone {
		n.mu.Unlock()
		return
	}
	s.gone = true
	delete(s.identity.sessions, s)
	n.forget(s.identity)
	if !s.internal {
		n.guests--
	}
	if n.instances[s.instance] == s {
		delete(n.instances, s.instance)
	}
	n.mu.Unlock()
	n.locked(s.withdraw)
	for more := true; more; {
		n.locked(func(b *wire.Batch) {
			if more = s.endCalls(b, closeStep); !more {
				delete(n.sessions, s.id)
			}
		})
	}
}

// withdraw withdraws all offers.
func (s *session) withdraw(b *wire.Batch) {
	for name, o := range s.offers {
		s.drop(b, name, o)
	}
}

// full reports whether the worker takes no further call of any function.
func (s *session) full() bool { return s.left() <= 0 }

// left returns how many further calls the worker takes, over all its functions. Whatever their slots,
// one connection has no more than maxOpen: a call that is cancelled stays with its worker, and a
// worker that never ends calls would make the node grow without bound.
func (s *session) left() int {
	most := maxOpen
	if s.most > 0 {
		most = min(s.most, maxOpen)
	}
	return most - len(s.out) - s.taking
}

// bound changes how many calls the worker takes at once.
func (s *session) bound(b *wire.Batch, most int) {
	if s.most == most {
		return
	}
	s.most = most
	for _, o := range s.offers {
		o.fn.fix(o)
	}
	s.fill(b)
}

// fill gives slots of a worker that was full to the calls and jobs of its functions, to the one that has been
// idle longest first.
func (s *session) fill(b *wire.Batch) {
	for _, o := range slices.SortedFunc(maps.Values(s.offers), func(a, b *offer) int { return cmp.Compare(a.used, b.used) }) {
		if s.full() {
			return
		}
		o.fill(b)
	}
}

// endCalls ends some of the calls of a session that has gone, and reports whether there are more.
func (s *session) endCalls(b *wire.Batch, most int) bool {
	for _, c := range s.in {
		if most--; most < 0 {
			return true
		}
		c.callerLost(b)
	}
	for _, c := range s.out {
		if most--; most < 0 {
			return true
		}
		c.workerLost(b)
		c.fn.tidy() // its offer may have been withdrawn before
	}
	return false
}

// find finds the call of a frame by its id; nil if it has ended. last is the highest id of the
// side that sends such a frame, other are the calls of the other side.
func find(f wire.Frame, id uint64, calls, other map[uint64]*call, last uint64) (*call, error) {
	if c := calls[id]; c != nil {
		return c, nil
	}
	if id == 0 || id > last {
		return nil, wire.NotOpen(f, id, other[id] != nil)
	}
	return nil, nil
}

// incoming finds a call that the peer opened.
func (s *session) incoming(f wire.Frame, id uint64) (*call, error) {
	return find(f, id, s.in, s.out, s.lastIn)
}

// outgoing finds a call that the node opened at the peer.
func (s *session) outgoing(f wire.Frame, id uint64) (*call, error) {
	return find(f, id, s.out, s.in, s.lastOut)
}

// handleData passes bytes on to the call's other end.
func (s *session) handleData(b *wire.Batch, f *wire.DataFrame) error {
	n := s.node
	n.mu.Lock()
	if s.dismissed != nil {
		n.mu.Unlock()
		return s.dismissed
	}
	owner := s.outgoing // the side that opened a call sends its input, the other its output
	if f.Stream == wire.Input {
		owner = s.incoming
	}
	c, err := owner(f, f.ID)
	if c == nil {
		n.mu.Unlock()
		return err
	}
	to, id, err := c.pass(b, f)
	n.mu.Unlock()
	if to == nil {
		return err
	}
	if to.conn == nil {
		c.posted.write(c, f.Stream, f.Payload)
		return nil
	}
	if k := len(f.Payload); k > longest { // with a longer id it might not fit a frame
		b.Send(to.conn, &wire.DataFrame{ID: id, Stream: f.Stream, Payload: f.Payload[:k/2]})
		f.Payload = f.Payload[k/2:]
	}
	f.ID = id // the rest is passed on as it came
	b.Send(to.conn, f)
	return nil
}

// handleEOF ends a call's input. As in the functions below, n.mu is held.
func (s *session) handleEOF(b *wire.Batch, f *wire.EOFFrame) error {
	c, err := s.incoming(f, f.ID)
	if c == nil {
		return err
	}
	if c.input != inputOpen {
		return wire.Broken(f, f.ID, "it comes after the input's end")
	}
	if c.offer == nil { // still queued: CALL has brought all of it
		c.input = inputWhole
		return nil
	}
	c.input = inputEnded
	b.Send(c.offer.session.conn, &wire.EOFFrame{ID: c.workerID})
	return nil
}

func (s *session) handleGrant(b *wire.Batch, f *wire.GrantFrame) error {
	owner := s.incoming
	if f.Stream == wire.Input {
		owner = s.outgoing
	}
	c, err := owner(f, f.ID)
	if c == nil {
		return err
	}
	fl := &c.flows[f.Stream]
	if fl.held+fl.out+int64(f.Bytes) > wire.MaxWindow {
		return wire.Broken(f, f.ID, "credit of %d bytes exceeds the limit of %d", fl.held+fl.out+int64(f.Bytes), wire.MaxWindow)
	}
	fl.held += int64(f.Bytes)
	fl.give(b)
	return nil
}

func (s *session) handleCancel(b *wire.Batch, f *wire.CancelFrame) error {
	c, err := s.incoming(f, f.ID)
	if c == nil {
		return err
	}
	code, msg := args.CodeCancelled, "cancelled by the caller"
	if string(f.Code) == args.CodeDeadline {
		code, msg = args.CodeDeadline, args.DeadlineMessage
	}
	c.endFor(b, code, msg)
	return nil
}

// maxProgress bounds how many reports of a call are passed on in a second. The last of them is kept for
// the report that comes last.
const maxProgress = 10

// progress is the last report of how far a call is.
type progress struct {
	bus.Progress
	second time.Time           // when the current second began
	passed int                 // reports in it that were passed on
	held   *wire.ProgressFrame // the last report, if it was not passed on yet
	timer  *time.Timer         // of held; nil: none
}

// last returns the last report for people; nil: there was none.
func (p *progress) last() *bus.Progress {
	if p == nil {
		return nil
	}
	report := p.Progress
	return &report
}

// handleProgress keeps a worker's report, and passes it on to a caller that takes such and keeps
// up. n.mu is held.
func (s *session) handleProgress(b *wire.Batch, f *wire.ProgressFrame) error {
	c, err := s.outgoing(f, f.ID)
	if c == nil || c.state.ended() {
		return err
	}
	p := c.progress
	if p == nil {
		p = &progress{}
		c.progress = p
	}
	p.Progress = bus.Progress{Done: f.Done, Total: f.Total, Text: args.Shown(args.WithoutSequences(string(f.Text)))}
	s.node.changes.call(c)
	if c.posted != nil {
		c.posted.job.Reported.Store(&jobs.Reported{Progress: p.Progress, At: time.Now()})
	}
	if !c.session.progress || c.session.conn == nil {
		return nil
	}
	p.held = &wire.ProgressFrame{ID: c.id, Done: f.Done, Total: f.Total, Text: bytes.Clone(f.Text)}
	c.passProgress(b, maxProgress-1)
	return nil
}

// passProgress passes the last report on, if fewer than most were passed on in this second, or else later.
func (c *call) passProgress(b *wire.Batch, most int) {
	p := c.progress
	if p == nil || p.held == nil || c.state.ended() {
		return
	}
	if now := time.Now(); now.Sub(p.second) >= time.Second {
		p.second, p.passed = now, 0
	}
	if p.passed < most && !c.session.stalled() {
		p.passed++
		b.Send(c.session.conn, p.held)
		p.held = nil
		return
	}
	if p.timer == nil {
		p.timer = time.AfterFunc(max(time.Until(p.second.Add(time.Second)), time.Second/maxProgress), func() {
			c.node.locked(func(b *wire.Batch) {
				p.timer = nil
				c.passProgress(b, maxProgress-1)
			})
		})
	}
}
