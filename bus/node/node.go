// Package node routes calls: `fbus serve` runs it. A [Node] takes connections, keeps
// the registry of their offers, and hands each call to a worker that has a free slot,
// or queues it.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"

	"golang.org/x/sys/unix"
)

const (
	// DefaultQueue is how many calls may wait for one function.
	DefaultQueue = 1000
	// DefaultBuffers bounds the bytes that a node holds for its peers: calls, offers, and
	// bytes that were not passed on yet. Past it new calls are busy.
	DefaultBuffers = 32 << 20
	// MinBuffers is the least that works: a quarter of it holds a frame.
	MinBuffers = 8 << 20
	// maxOpen is how many calls one connection may have open.
	maxOpen = 10000
	// maxOffers is how many functions one connection may offer.
	maxOffers = 10000
	// maxOfferText bounds the descriptions, notes and schemas of one connection's
	// offers, in bytes.
	maxOfferText = 2 << 20
	// greetTime bounds how long a connection may take to send HELLO.
	greetTime = 10 * time.Second
	// maxLost is how often a call of an idempotent function is run again by itself:
	// a call that kills its workers must not go through all of them.
	maxLost = 3
	// maxBounces is how often a call may cross a worker's change of its offer.
	maxBounces = 10
)

// goneTime is how long the queue of a function stays when its last offer has gone: a worker
// that restarts finds it again.
var goneTime = 5 * time.Second

// Config describes how a node behaves. Network is required.
type Config struct {
	Network string // network id
	Name    string // default: the host's name
	Address string // where it listens, for people
	Version string // of the program, for people
	Queue   int    // calls that may wait for one function; default DefaultQueue
	Buffers int64  // bytes held for peers; default DefaultBuffers
	// Successor is set if another node ran here just before: its callers may be back
	// before its workers. For a moment a call waits for a function that nobody offers.
	Successor bool

	// Local returns the rights of another user of this machine, and whether they may
	// connect at all; nil admits only the node's own user and root.
	Local func(uid int, gids []int) (trust.Rights, bool)
	// Groups returns a user's groups as the accounts of this machine are now: a job runs
	// with what its poster may do then. nil: there are none.
	Groups func(uid int) ([]int, error)
	// Gate decides who enters over TCP.
	Gate Gate
	// Authority issues tickets; nil: none are issued here, for the reason NoTickets.
	Authority *trust.Authority
	NoTickets error
	// NoTCP is why the node does not listen on TCP.
	NoTCP error

	KeepAlive      time.Duration // how long a peer over TCP may be silent; default wire.DefaultKeepAlive
	MaxConnections int           // default DefaultConnections; the node's own user is not held to it
	MaxPerTicket   int           // default DefaultPerTicket

	// Log takes every call that ended, and every refusal; nil keeps none. Its owner
	// closes it, after the node.
	Log *calllog.Log
	// Jobs keeps posted calls; nil: none can be posted. Its owner closes it, after the
	// node.
	Jobs *jobs.Manager
	// NoJobs is why nothing can be posted, if Jobs is nil.
	NoJobs error
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
	prefix   string // of call ids: differs from that of earlier runs of the node
	started  time.Time
	budget   wire.Budget

	mu        sync.Mutex // protects all state below, and of sessions, functions, offers and calls
	sessions  map[uint64]*session
	instances map[string]*session
	functions map[string]*function
	offered   int               // of these, less the node's own: they have offers
	posted    map[jobs.ID]*call // that run jobs
	heldOn    []wire.On         // workers that get nothing new
	lastConn  uint64
	tick      uint64 // rises with each use of an offer: it orders the idle ones
	exposure  int64  // credit given out, not used yet
	taking    int    // slots that ask for a job
	open      int    // calls that some worker or queue holds, the node's own functions not counted
	scratch   scratch
	changes   changes
	counters
	draining   bool
	closed     bool
	identities map[string]*identity // of those that are connected
	ownBusy    [classes]int         // calls of its own functions that run
	self       *identity            // the node's own
	guests     int                  // connections, less the node's own
	listening  []*net.TCPAddr

	entering  entering
	done      chan struct{} // closed by Close
	arriving  atomic.Int64  // accepted connections that are not sessions yet
	pressed   atomic.Int64  // when a guest last wanted more than its share of the processors
	serving   sync.WaitGroup
	answering chan struct{} // has room for the answers to guests that are computed at once
	own       *bus.Client   // offers the node's own functions
	forJobs   *session      // the caller of jobs; nil without a store
	source    jobSource     // nil without a store
	first     *first        // nil at the network's first node
}

// scratch is memory that is used again and again under the node's lock: frames are encoded
// at once.
type scratch struct {
	call wire.CallFrame
	edge []int // of a search for an offer
	name [64]byte
}

// New makes a node. It has no connection yet, and offers its own functions.
func New(cfg Config) (*Node, error) {
	if err := args.CheckNetwork(cfg.Network); err != nil {
		return nil, err
	}
	if cfg.Queue <= 0 {
		cfg.Queue = DefaultQueue
	}
	cfg.KeepAlive = max(cmp.Or(cfg.KeepAlive, wire.DefaultKeepAlive), wire.MinKeepAlive)
	cfg.MaxConnections = min(cmp.Or(cfg.MaxConnections, DefaultConnections), descriptors())
	if cfg.MaxPerTicket = cmp.Or(cfg.MaxPerTicket, DefaultPerTicket); cfg.MaxPerTicket == DefaultPerTicket {
		cfg.MaxPerTicket = min(DefaultPerTicket, max(1, cfg.MaxConnections/4))
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
		cfg: cfg, instance: wire.NewInstance(), prefix: wire.NewInstance()[:5], started: time.Now(),
		sessions: map[uint64]*session{}, instances: map[string]*session{}, functions: map[string]*function{}, posted: map[jobs.ID]*call{},
		identities: map[string]*identity{}, counters: newCounters(), done: make(chan struct{}),
		answering: make(chan struct{}, max(1, runtime.NumCPU()/2)),
	}
	n.budget.Max = max(cmp.Or(cfg.Buffers, DefaultBuffers), MinBuffers)
	n.self = n.newIdentity(&Peer{Caller: "node"})
	if cfg.Gate != nil {
		switch gate := cfg.Gate.(type) {
		case *trust.Authority:
			gate.OnRevoke(n.Revoked)
		case *trust.Second:
			n.first = &first{node: n, second: gate, err: errors.New("no answer yet")}
			gate.OnRevoke(n.first.revoked)
		case *trust.Files:
			gate.OnChange(n.checkPeers)
		}
		gate := gateWatch{node: n}
		gate.look() // a wrong clock is reported at once
		// Each ends with the node. A disk that hangs holds up the first alone.
		n.serving.Go(func() { n.every(refreshTime, gate.refresh) })
		n.serving.Go(func() { n.every(refreshTime, n.dismissExpired) })
		n.serving.Go(func() { n.every(cfg.KeepAlive/3, n.checkPulses) })
		if cfg.Authority != nil {
			n.dropAbsent()
			n.serving.Go(func() { n.every(absentTime, n.dropAbsent) })
		}
	}
	err := n.offerOwn()
	if err == nil && n.first != nil {
		n.serving.Go(n.first.run) // ends with the node
	}
	if err == nil && cfg.Jobs != nil {
		n.forJobs = n.itself()
		n.source = cfg.Jobs
		err = cfg.Jobs.Start(n)
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// descriptors returns how many connections of guests there may be, so that file descriptors are left
// for handshakes, the node's own files and its own user.
func descriptors() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt
	}
	return max(int(min(limit.Cur, math.MaxInt32))-maxEntering-128, 16)
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
		n.arriving.Add(1)
		go n.accept(nc.(*net.UnixConn)) // ends with the connection
	}
}

// ServeConn serves one connection with that peer, until it ends.
func (n *Node) ServeConn(nc net.Conn, peer Peer) {
	n.arriving.Add(1)
	n.serve(nc, peer, false)
}

// serve serves a connection. An internal one is the node's own, for its own functions.
func (n *Node) serve(nc net.Conn, peer Peer, internal bool) {
	s := &session{
		node: n, peer: peer, internal: internal, fresh: !internal, began: time.Now(),
		in: map[uint64]*call{}, out: map[uint64]*call{}, offers: map[string]*offer{},
	}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		nc.Close()
		return
	}
	if s.identity = n.self; !internal {
		s.identity = n.identity(&peer)
	}
	s.identity.sessions[s] = true
	s.conn = wire.NewConn(nc, &s.identity.budget)
	s.conn.OnDrain = func() { n.locked(s.giveHeld) }
	if s.identity.rank != owner {
		s.conn.Turns, s.conn.Pause = s.identity.turns, func() time.Duration { return n.pause(s.identity) }
	}
	n.lastConn++
	s.id = n.lastConn
	s.prefix = fmt.Appendf(nil, "%s-%d", n.prefix, s.id)
	n.sessions[s.id] = s
	if !internal {
		n.arriving.Add(-1)
	}
	switch {
	case peer.placed:
		s.identity.reserved--
	case !internal:
		n.guests++
	}
	n.serving.Add(1)
	n.mu.Unlock()
	defer n.serving.Done()
	if peer.identity != nil { // it may have been revoked before this session was registered
		if err := n.cfg.Gate.Check(peer.identity); err != nil {
			n.refused(peer.From, peer.Caller, peer.identity, err)
			s.conn.CloseWith(denial(err))
			s.close()
			return
		}
	}
	nc.SetReadDeadline(time.Now().Add(greetTime))
	err := s.conn.Serve(s, s.limit)
	if e := (*args.Error)(nil); errors.Is(err, args.ErrMalformed) || errors.As(err, &e) && e.Code != args.CodeDraining {
		n.cfg.Warn("connection %d of %s closed: %v", s.id, peer.Caller, err)
	}
	s.close()
	if peer.Serial != "" && n.cfg.Authority != nil {
		n.cfg.Authority.Left(peer.Serial)
	}
	if !internal {
		n.cfg.Note("connection %d of %s has ended: %v", s.id, peer.Caller, err)
	}
}

// Close ends every connection, and with them every call. Callers get an END, and then an ERROR: a call
// without an END has come too late, and was not run.
func (n *Node) Close() {
	n.entering.close()
	n.mu.Lock()
	if !n.closed {
		close(n.done)
	}
	n.closed = true
	var b wire.Batch
	closing := &args.Error{Code: args.CodeDraining, Message: "the node is shutting down"}
	for _, s := range n.sessions {
		s.dismissed = cmp.Or(s.dismissed, closing)
		for _, c := range s.in {
			if c.offer == nil {
				c.endWith(&b, closing)
			} else { // it must not look like one that never ran
				c.endFor(&b, args.CodeNodeLost, c.fn.name+": the node is shutting down: the call may have run")
			}
		}
	}
	conns := make([]*wire.Conn, 0, len(n.sessions))
	for _, s := range n.sessions {
		if s.conn != nil {
			conns = append(conns, s.conn)
		}
	}
	n.mu.Unlock()
	b.Flush()
	for _, c := range conns {
		c.CloseWith(closing)
	}
	n.serving.Wait()
	if n.own != nil {
		<-n.own.Done()
		n.own.Close() // its handlers may still be at the store
	}
}

// Connections returns how many connections there are, less the node's own.
func (n *Node) Connections() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.guests
}

// Crowded reports whether many connections are at their handshake, or guests want more than
// their share, so that calls need all processors.
func (n *Node) Crowded() bool {
	return n.entering.crowded() || time.Now().UnixNano()-n.pressed.Load() < int64(time.Second)
}

// press notes that a guest wants more than its share of the processors.
func (n *Node) press() { n.pressed.Store(time.Now().UnixNano()) }

// Writing returns how long the store of jobs has waited for the disk in all.
func (n *Node) Writing() time.Duration {
	if n.cfg.Jobs == nil {
		return 0
	}
	return n.cfg.Jobs.Writing()
}

// Open returns how many calls are queued or running.
func (n *Node) Open() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open
}

// lateTime is how long a drain waits for the first frame of clients that have connected
// just before: a call that is on its way still finds the node. Clients that only wait do
// not hold it up longer.
var lateTime = 2 * time.Second

// changesTime is how long a drain waits for calls of the node's own functions that change
// something, so that their callers get the answer.
var changesTime = time.Second

// Drain refuses new calls and waits until all that are queued or running have
// ended, or ctx has. The owner of the listener closes that before. A client that has
// connected just before may still make its first call.
func (n *Node) Drain(ctx context.Context) error {
	n.mu.Lock()
	n.draining = true
	n.mu.Unlock()
	n.poll(ctx, lateTime, func() bool { return !n.late() })
	n.mu.Lock()
	for _, s := range n.sessions {
		s.fresh = false
	}
	n.mu.Unlock()
	err := n.poll(ctx, math.MaxInt64, func() bool { return n.open+n.taking == 0 })
	if err == nil {
		n.poll(ctx, changesTime, func() bool { return !n.changing() })
	}
	return err
}

// poll returns when it is done, or with an error after the time. A channel in place of
// looking again and again would cost each connection something all its life. done is called
// with n.mu held.
func (n *Node) poll(ctx context.Context, most time.Duration, done func() bool) error {
	limit := time.NewTimer(most)
	defer limit.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		n.mu.Lock()
		ok := done()
		n.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-again.C:
		case <-limit.C:
			return context.DeadlineExceeded
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// late reports whether a client has connected just now and sent neither a call nor an offer.
// n.mu is held.
func (n *Node) late() bool {
	for _, s := range n.sessions {
		if s.fresh && time.Since(s.began) < lateTime {
			return true
		}
	}
	return n.arriving.Load() > 0 || n.entering.size() > 0
}

// changing reports whether a call of the node's own functions is under way that changes
// something. n.mu is held.
func (n *Node) changing() bool {
	for _, s := range n.sessions {
		for _, c := range s.in {
			if c.fn.own != nil && c.fn.own.changes {
				return true
			}
		}
	}
	return false
}
