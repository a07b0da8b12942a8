// Package node routes calls: it is what `fbus serve` runs. A [Node] takes
// connections, keeps the registry of what they offer, and hands each call to a
// worker that has a free slot, or queues it.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"fbus/bus"
)

const (
	// DefaultQueue is how many calls may wait for one function.
	DefaultQueue = 1000
	// MaxBuffers bounds what a node holds for others: queued calls and output
	// that its reader has not taken. Past it new calls are busy.
	MaxBuffers = 32 << 20
	// maxOpen is how many calls one connection may have open.
	maxOpen = 10000
	// maxOffers is how many functions one connection may offer.
	maxOffers = 10000
	// maxOfferText bounds the descriptions, notes and schemas of all that one
	// connection offers.
	maxOfferText = 2 << 20
	// goneTime is how long the queue of a function stays when its last offer has
	// gone: a worker that restarts finds it again.
	goneTime = 5 * time.Second
	// greetTime bounds how long a connection may take to say HELLO.
	greetTime = 10 * time.Second
	// maxLost is how often a call of an idempotent function is run again
	// unasked: a call that kills its workers must not go through all of them.
	maxLost = 3
	// maxBounces is how often a call may cross a worker's change of its offer.
	maxBounces = 10
)

// Config says how a node behaves. Network is required.
type Config struct {
	Network string // network id
	Name    string // default: the host's name
	Address string // where it listens, for people
	Version string // of the program, for people
	Queue   int    // calls that may wait for one function; default DefaultQueue
	UIDs    []int  // further users that may connect; the node's own and root always may

	// Log takes one record for each ended call; nil keeps none. It must be
	// quick: the node's work waits for it.
	Log func(*Record)
	// Warn takes messages for the node's operator; nil discards them.
	Warn func(format string, args ...any)
	// Note takes messages about connections and offers that come and go; nil
	// discards them.
	Note func(format string, args ...any)
}

// Node routes calls between the connections it is given.
type Node struct {
	cfg      Config
	instance string
	prefix   string // of call ids: tells this run of the node from earlier ones
	started  time.Time
	budget   bus.Budget

	mu        sync.Mutex // protects all state below, and of sessions, functions, offers and calls
	sessions  map[uint64]*session
	instances map[string]*session
	functions map[string]*function
	lastConn  uint64
	tick      uint64 // rises with each use of an offer: orders idle ones
	exposure  int64  // credit given out, not used yet
	open      int    // calls that some worker or queue holds, the node's own functions not counted
	scratch   scratch
	draining  bool
	idle      chan struct{} // closed when open falls to 0, if somebody waits
	closed    bool

	serving sync.WaitGroup
	own     *bus.Client // offers the node's own functions
}

// scratch is what frames are put together in: they are encoded at once.
type scratch struct {
	call bus.CallFrame
	name [64]byte
}

// New makes a node. It has no connection yet, and offers its own functions.
func New(cfg Config) (*Node, error) {
	if err := CheckNetwork(cfg.Network); err != nil {
		return nil, err
	}
	if cfg.Queue <= 0 {
		cfg.Queue = DefaultQueue
	}
	if cfg.Name == "" {
		cfg.Name, _ = os.Hostname()
	}
	if cfg.Note == nil {
		cfg.Note = func(string, ...any) {}
	}
	if cfg.Warn == nil {
		cfg.Warn = func(string, ...any) {}
	}
	n := &Node{
		cfg: cfg, instance: bus.NewInstance(), prefix: bus.NewInstance()[:5], started: time.Now(),
		sessions: map[uint64]*session{}, instances: map[string]*session{}, functions: map[string]*function{},
	}
	n.budget.Max = MaxBuffers
	if err := n.offerOwn(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// CheckNetwork says what is wrong with a network id.
func CheckNetwork(id string) error {
	if id == "" || len(id) > 63 {
		return fmt.Errorf("network id %q: 1 to 63 characters are due", id)
	}
	for _, r := range id {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-') {
			return fmt.Errorf("network id %q: only a-z, 0-9 and - may stand in it", id)
		}
	}
	return nil
}

// Serve accepts connections until the listener is closed.
func (n *Node) Serve(l *Listener) error {
	for {
		nc, err := l.accept(n.cfg.Warn)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go n.accept(nc) // ends with the connection
	}
}

// accept checks who connects before a byte is handled.
func (n *Node) accept(nc net.Conn) {
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		return
	}
	uid, err := bus.PeerUID(uc)
	if err != nil || !n.admits(uid) {
		n.cfg.Warn("connection of uid %d refused", uid)
		bus.NewConn(nc, nil).CloseWith(&bus.Error{Code: bus.CodeDenied, Message: fmt.Sprintf("uid %d may not use this node", uid)})
		return
	}
	n.ServeConn(nc, fmt.Sprintf("uid:%d", uid))
}

func (n *Node) admits(uid int) bool {
	if uid == os.Getuid() || uid == 0 {
		return true
	}
	for _, u := range n.cfg.UIDs {
		if u == uid {
			return true
		}
	}
	return false
}

// ServeConn serves one connection whose peer is known as caller, until it ends.
func (n *Node) ServeConn(nc net.Conn, caller string) {
	n.serve(nc, caller, false)
}

func (n *Node) serve(nc net.Conn, caller string, internal bool) {
	s := &session{
		node: n, conn: bus.NewConn(nc, &n.budget), caller: caller, internal: internal,
		in: map[uint64]*call{}, out: map[uint64]*call{}, offers: map[string]*offer{},
	}
	s.conn.OnDrain = s.drained
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		nc.Close()
		return
	}
	n.lastConn++
	s.id = n.lastConn
	s.prefix = fmt.Appendf(nil, "%s-%d", n.prefix, s.id)
	s.callerText = []byte(caller)
	n.sessions[s.id] = s
	n.serving.Add(1)
	n.mu.Unlock()
	defer n.serving.Done()
	nc.SetReadDeadline(time.Now().Add(greetTime))
	err := s.conn.Serve(s, s.limit)
	if errors.Is(err, bus.ErrMalformed) || errors.As(err, new(*bus.Error)) {
		n.cfg.Warn("connection %d of %s closed: %v", s.id, caller, err)
	}
	s.close()
	if !internal {
		n.cfg.Note("connection %d of %s has ended: %v", s.id, caller, err)
	}
}

// Drain refuses new calls and waits until all that are queued or running have
// ended, or ctx has. The listener is its owner's to close, before.
func (n *Node) Drain(ctx context.Context) error {
	n.mu.Lock()
	n.draining = true
	if n.open == 0 {
		n.mu.Unlock()
		return nil
	}
	if n.idle == nil {
		n.idle = make(chan struct{})
	}
	idle := n.idle
	n.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close ends every connection, and with them every call. Callers are told.
func (n *Node) Close() {
	n.mu.Lock()
	n.closed = true
	var b bus.Batch
	for _, s := range n.sessions {
		for _, c := range s.in {
			if c.offer == nil {
				c.endFor(&b, bus.CodeDraining, "the node is shutting down")
			} else { // not to be taken for one that never ran
				c.endFor(&b, bus.CodeNodeLost, c.fn.name+": the node is shutting down: the call may have run")
			}
		}
	}
	conns := make([]*bus.Conn, 0, len(n.sessions))
	for _, s := range n.sessions {
		conns = append(conns, s.conn)
	}
	n.mu.Unlock()
	b.Flush()
	for _, c := range conns {
		c.Finish(nil)
	}
	n.serving.Wait()
}

// Open is how many calls are queued or running.
func (n *Node) Open() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open
}

var _ io.Closer = (*Listener)(nil)
