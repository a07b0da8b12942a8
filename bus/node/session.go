package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"fbus/bus"
)

// session is one connection: it may call, offer, or both. Its fields below conn
// are protected by the node's mu once the session is registered.
type session struct {
	node       *Node
	conn       *bus.Conn
	id         uint64
	peer       Peer // who it is
	internal   bool // the node's own: may offer fbus.*
	background bool // the node's own: makes the attempts at posted calls, and says whose they are
	greeted    bool // its reader's alone

	prefix     []byte // of the ids of calls that are opened here
	callerText []byte // caller, for frames
	nameText   []byte // name, for frames

	name      string
	instance  string
	in        map[uint64]*call // calls that the peer opened
	lastIn    uint64
	out       map[uint64]*call // calls that the node opened at the peer
	lastOut   uint64
	offers    map[string]*offer
	text      int     // bytes of text that they hold
	own       int     // of in, calls of the node's own functions
	ownLong   int     // and of those of them that may wait
	exposure  int64   // credit given to others for sending here
	held      []*flow // credit kept back until the peer reads on
	gone      bool
	dismissed string    // the code with which the node ends it
	fresh     bool      // has asked for nothing yet
	began     time.Time // when it connected
}

func (s *session) limit() int {
	if s.greeted {
		return bus.MaxFrame
	}
	return bus.MaxHelloFrame
}

// Handle implements [bus.Handler].
func (s *session) Handle(b *bus.Batch, f bus.Frame) error {
	if !s.greeted {
		return s.greet(b, f)
	}
	switch f := f.(type) {
	case *bus.CallFrame:
		return s.handleCall(b, f)
	case *bus.DataFrame:
		return s.handleData(b, f)
	case *bus.EOFFrame:
		return s.handleEOF(b, f)
	case *bus.GrantFrame:
		return s.handleGrant(b, f)
	case *bus.CancelFrame:
		return s.handleCancel(b, f)
	case *bus.EndFrame:
		return s.handleEnd(b, f)
	case *bus.OfferFrame:
		return s.handleOffer(b, f)
	case *bus.ErrorFrame:
		return fmt.Errorf("peer gave up: %s: %s", f.Code, f.Message)
	case *bus.HelloFrame:
		return protocol("second HELLO")
	}
	return protocol("OFFERED is not for a node")
}

func protocol(format string, args ...any) error {
	return &bus.Error{Code: bus.CodeProtocol, Message: fmt.Sprintf(format, args...)}
}

// greet takes the first frame, which must be HELLO, and answers it.
func (s *session) greet(b *bus.Batch, f bus.Frame) error {
	h, ok := f.(*bus.HelloFrame)
	if !ok {
		return protocol("the first frame must be HELLO")
	}
	n := s.node
	if h.Major != bus.Major {
		return &bus.Error{Code: bus.CodeVersion, Message: fmt.Sprintf("version %d of the protocol is not spoken here: this node speaks version %d", h.Major, bus.Major)}
	}
	if len(h.Network) > 0 && string(h.Network) != n.cfg.Network {
		return &bus.Error{Code: bus.CodeNetwork, Message: fmt.Sprintf("this node is in network %s, not in %s", n.cfg.Network, clean(h.Network))}
	}
	s.greeted = true
	s.conn.NetConn().SetReadDeadline(time.Time{})
	s.register(h)
	if !s.internal {
		n.cfg.Note("connection %d: %s as %s", s.id, s.peer.Caller, s.name)
	}
	return b.Send(s.conn, &bus.HelloFrame{
		Major: bus.Major, Minor: bus.Minor, Network: []byte(n.cfg.Network), Instance: []byte(n.instance), Name: []byte(n.cfg.Name),
		Connection: s.prefix,
	})
}

// appendCall appends the id on the network of a call that is opened here.
func (s *session) appendCall(dst []byte, id uint64) []byte {
	dst = append(append(dst, s.prefix...), '-')
	return strconv.AppendUint(dst, id, 10)
}

// clean makes a peer's text fit for a message: short and printable.
func clean(p []byte) string {
	if len(p) > 200 {
		p = p[:200]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return '?'
		}
		return r
	}, string(p))
}

// register notes who the peer is. An older connection of the same instance and
// identity is closed first: the peer has lost it, and its slots must not count
// twice.
func (s *session) register(h *bus.HelloFrame) {
	n := s.node
	key := s.peer.Caller + " " + string(h.Instance)
	n.mu.Lock()
	s.name = clean(h.Name)
	s.nameText = []byte(s.name)
	if len(h.Instance) == 0 {
		n.mu.Unlock()
		return
	}
	old := n.instances[key]
	s.instance = key
	n.instances[key] = s
	n.mu.Unlock()
	if old != nil {
		old.conn.CloseWith(&bus.Error{Code: bus.CodeSuperseded, Message: "this instance has connected anew"})
		old.close()
	}
}

// close takes everything back that the session stood for. It may be called
// twice.
func (s *session) close() {
	n := s.node
	var b bus.Batch
	n.mu.Lock()
	if s.gone {
		n.mu.Unlock()
		return
	}
	s.gone = true
	delete(n.sessions, s.id)
	if !s.internal {
		n.leave(s.peer.Caller)
	}
	if n.instances[s.instance] == s {
		delete(n.instances, s.instance)
	}
	for _, c := range s.in {
		c.callerLost(&b)
	}
	touched := make([]*function, 0, len(s.offers))
	for _, o := range s.offers {
		o.fn.remove(o)
		touched = append(touched, o.fn)
	}
	for _, c := range s.out {
		c.workerLost(&b)
		c.fn.tidy() // its offer may have been withdrawn before
	}
	for _, fn := range touched {
		fn.settle(&b)
	}
	n.mu.Unlock()
	b.Flush()
}

// handleOffer adds, replaces or withdraws an offer.
func (s *session) handleOffer(b *bus.Batch, f *bus.OfferFrame) error {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	s.fresh = false
	answer := &bus.OfferedFrame{Seq: f.Seq}
	if code, msg := s.refuseOffer(f); code != "" {
		answer.Code, answer.Message = []byte(code), []byte(msg)
		if code == bus.CodeDenied {
			s.node.denied(&s.peer, clean(f.Name), msg)
		}
	} else if !s.gone {
		// The answer goes first: a call may follow at once.
		b.Send(s.conn, answer)
		s.setOffer(b, f)
		return nil
	}
	return b.Send(s.conn, answer)
}

// refuseOffer says why an offer can not stand.
func (s *session) refuseOffer(f *bus.OfferFrame) (code, msg string) {
	switch {
	case !ValidName(f.Name):
		return bus.CodeUsage, fmt.Sprintf("%q is no function name: letters, digits, _ . - are due, at most 128, not . or - first", clean(f.Name))
	case bytes.HasPrefix(f.Name, []byte("fbus.")) && !s.internal:
		return bus.CodeDenied, "names that begin with fbus. are the node's own"
	case f.Slots > 0 && !s.peer.mayOffer(string(f.Name)):
		return bus.CodeDenied, fmt.Sprintf("%s may not offer %s", s.peer.Caller, f.Name)
	case s.node.draining && s.offers[string(f.Name)] == nil && f.Slots > 0:
		return bus.CodeDraining, "the node is shutting down"
	case s.textWith(f) > maxOfferText:
		return bus.CodeBusy, fmt.Sprintf("%d bytes of descriptions and schemas on one connection are the limit", maxOfferText)
	case len(f.Schema) > 0 && !json.Valid(f.Schema):
		return bus.CodeUsage, "the schema is no JSON"
	case s.offers[string(f.Name)] == nil && len(s.offers) >= maxOffers:
		return bus.CodeBusy, fmt.Sprintf("%d offers on one connection are the limit", maxOffers)
	}
	return "", ""
}

// textWith is how many bytes of text the session's offers hold, with f among them.
func (s *session) textWith(f *bus.OfferFrame) int {
	n := s.text + len(f.Description) + len(f.Arguments) + len(f.Note) + len(f.Schema)
	if o := s.offers[string(f.Name)]; o != nil {
		n -= o.text()
	}
	return n
}

// ValidName reports whether a function may have that name:
// [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}.
func ValidName[T string | []byte](name T) bool {
	if len(name) == 0 || len(name) > 128 {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		word := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return true
}

func (s *session) setOffer(b *bus.Batch, f *bus.OfferFrame) {
	n := s.node
	name := string(f.Name)
	o := s.offers[name]
	fresh := o == nil
	if f.Slots == 0 {
		if o != nil {
			delete(s.offers, name)
			s.text -= o.text()
			o.fn.remove(o)
			o.fn.settle(b)
		}
		return
	}
	if o == nil {
		fn := n.function(name)
		o = &offer{session: s, fn: fn}
		for _, c := range s.out { // calls of an offer withdrawn before still take slots
			if c.fn == fn {
				c.offer = o // its own is out of the registry
				o.busy++
			}
		}
		n.tick++
		o.used = n.tick
		s.offers[name] = o
		fn.offers = append(fn.offers, o)
	}
	s.text = s.textWith(f)
	slots := int(f.Slots)
	changed := o.slots != slots
	o.slots = slots
	o.idempotent = f.Flags&bus.FlagIdempotent != 0
	o.description, o.arguments = string(f.Description), string(f.Arguments)
	o.note, o.schema = string(f.Note), string(f.Schema)
	o.fn.settle(b)
	if fresh && n.cfg.Jobs != nil && !s.internal {
		n.cfg.Jobs.Appeared(name)
	}
	if !s.internal && changed {
		n.cfg.Note("connection %d offers %s with %d slots", s.id, name, o.slots)
	}
}

// incoming finds a call that the peer opened; nil if it has ended.
func (s *session) incoming(id uint64) (*call, error) {
	if c := s.in[id]; c != nil {
		return c, nil
	}
	if id == 0 || id > s.lastIn {
		return nil, protocol("frame for call %d, which was never opened", id)
	}
	return nil, nil
}

// outgoing finds a call that the node opened at the peer; nil if it has ended.
func (s *session) outgoing(id uint64) (*call, error) {
	if c := s.out[id]; c != nil {
		return c, nil
	}
	if id == 0 || id > s.lastOut {
		return nil, protocol("frame for call %d, which was never opened", id)
	}
	return nil, nil
}

// sender finds the call that a peer sends a stream of: the opener sends input,
// the acceptor output.
func (s *session) sender(id uint64, stream bus.Stream) (*call, error) {
	if stream == bus.Input {
		return s.incoming(id)
	}
	return s.outgoing(id)
}

// receiver is the other end of sender.
func (s *session) receiver(id uint64, stream bus.Stream) (*call, error) {
	if stream == bus.Input {
		return s.outgoing(id)
	}
	return s.incoming(id)
}

// handleData passes bytes on to the call's other end.
func (s *session) handleData(b *bus.Batch, f *bus.DataFrame) error {
	n := s.node
	n.mu.Lock()
	c, err := s.sender(f.ID, f.Stream)
	if c == nil {
		n.mu.Unlock()
		return err
	}
	to, id, err := c.pass(b, f)
	n.mu.Unlock()
	if to == nil {
		return err
	}
	if k := len(f.Payload); k > longest { // with a longer id it might not fit a frame
		b.Send(to.conn, &bus.DataFrame{ID: id, Stream: f.Stream, Payload: f.Payload[:k/2]})
		f.Payload = f.Payload[k/2:]
	}
	f.ID = id // the rest is passed on as it came
	b.Send(to.conn, f)
	return nil
}

func (s *session) handleEOF(b *bus.Batch, f *bus.EOFFrame) error {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	c, err := s.incoming(f.ID)
	if c == nil {
		return err
	}
	if c.inputEnded {
		return protocol("EOF after the input's end")
	}
	c.inputEnded = true
	if c.offer == nil { // still queued: what CALL brought is all of it
		c.whole = true
		return nil
	}
	b.Send(c.offer.session.conn, &bus.EOFFrame{ID: c.workerID})
	return nil
}

func (s *session) handleGrant(b *bus.Batch, f *bus.GrantFrame) error {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	c, err := s.receiver(f.ID, f.Stream)
	if c == nil {
		return err
	}
	fl := &c.flows[f.Stream]
	if fl.held+fl.out+int64(f.Bytes) > bus.MaxWindow {
		return protocol("credit of %d bytes exceeds the limit of %d", fl.held+fl.out+int64(f.Bytes), bus.MaxWindow)
	}
	fl.held += int64(f.Bytes)
	fl.give(b)
	return nil
}

func (s *session) handleCancel(b *bus.Batch, f *bus.CancelFrame) error {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	c, err := s.incoming(f.ID)
	if c == nil {
		return err
	}
	code, msg := bus.CodeCancelled, "cancelled by the caller"
	if string(f.Code) == bus.CodeDeadline {
		code, msg = bus.CodeDeadline, "deadline exceeded"
	}
	c.endFor(b, code, msg)
	return nil
}
