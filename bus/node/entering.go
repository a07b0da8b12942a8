package node

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxEntering is how many may be at their handshake.
	maxEntering = 512
	// crowd is the number from which handshakes that have computed for restAfter rest for
	// as long: calls come first, and a handshake cannot be interrupted.
	crowd     = 4
	restAfter = 200 * time.Microsecond
	restMost  = 2 * time.Millisecond
)

// entering holds the connections whose handshake is not done. Their number is bounded: the
// oldest that waits for its peer makes room for the next, since an honest peer needs
// milliseconds. One at a time computes, and the addresses that they come from take turns, so
// that a flood blocks only itself.
type entering struct {
	mu      sync.Mutex // protects the fields below, and those of sources and arrivals
	n       int
	sources map[netip.Prefix]*source
	turns   []*source     // that have arrivals in their queue; the next first
	taken   bool          // the place: somebody computes, or it rests
	worked  time.Duration // since the last rest
	done    bool
}

// source is an address that connections come from. It exists while there are some.
type source struct {
	key   netip.Prefix
	all   list.List  // of *arrival, oldest first
	queue []*arrival // those that want the place, in their order
}

// arrival is one connection. Its goroutine acquires and releases the place.
type arrival struct {
	in     *entering
	nc     net.Conn
	source *source
	at     *list.Element // nil: it has left
	queued bool
	since  time.Time // it computes; zero: it waits
	turn   chan bool // has room for one: whether it got the place
}

// begin notes a connection.
func (e *entering) begin(nc net.Conn) *arrival {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := &arrival{in: e, nc: nc, turn: make(chan bool, 1)}
	if e.done {
		nc.Close()
		return a
	}
	if e.n >= maxEntering {
		e.evict()
	}
	if e.sources == nil {
		e.sources = map[netip.Prefix]*source{}
	}
	key := sourceOf(nc.RemoteAddr())
	s := e.sources[key]
	if s == nil {
		s = &source{key: key}
		e.sources[key] = s
	}
	a.source, a.at = s, s.all.PushBack(a)
	e.n++
	return a
}

// sourceOf returns an IPv4 address, or the /64 network of an IPv6 address.
func sourceOf(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	p, _ := ip.Prefix(min(ip.BitLen(), 64))
	return p
}

// evict closes one connection of the source that has the most. e.mu is held.
func (e *entering) evict() {
	var most *source
	for _, s := range e.sources {
		if most == nil || s.all.Len() > most.all.Len() {
			most = s
		}
	}
	var victim *arrival
	for at := most.all.Front(); at != nil; at = at.Next() {
		a := at.Value.(*arrival)
		if victim == nil && a.since.IsZero() {
			victim = a
		}
		if a.since.IsZero() && !a.queued {
			victim = a
			break
		}
	}
	if victim != nil {
		victim.leave()
		victim.nc.Close()
	}
}

// end may be called twice.
func (a *arrival) end() {
	a.in.mu.Lock()
	defer a.in.mu.Unlock()
	a.leave()
}

// leave takes the arrival off the lists. The mu is held.
func (a *arrival) leave() {
	if a.at == nil {
		return
	}
	e, s := a.in, a.source
	s.all.Remove(a.at)
	a.at = nil
	e.n--
	if s.all.Len() == 0 {
		delete(e.sources, s.key)
	}
	if a.queued { // its turn will be passed over
		a.queued = false
		a.turn <- false
	}
}

// acquire waits for the place. It returns false if the arrival has left.
func (a *arrival) acquire() bool {
	e := a.in
	e.mu.Lock()
	switch {
	case a.at == nil:
		e.mu.Unlock()
		return false
	case !e.taken:
		e.taken, a.since = true, time.Now()
		e.mu.Unlock()
		return true
	}
	a.queued = true
	if a.source.queue = append(a.source.queue, a); len(a.source.queue) == 1 {
		e.turns = append(e.turns, a.source)
	}
	e.mu.Unlock()
	return <-a.turn
}

// release passes the place on, after a rest if enough was computed.
func (a *arrival) release() {
	e := a.in
	e.mu.Lock()
	defer e.mu.Unlock()
	e.worked += time.Since(a.since)
	a.since = time.Time{}
	switch {
	case e.n <= crowd:
		e.worked = 0
		e.next()
	case e.worked < restAfter:
		e.next()
	default:
		rest := min(e.worked, restMost)
		e.worked = 0
		time.AfterFunc(rest, func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.next()
		})
	}
}

// next gives the place to the next source's first arrival. e.mu is held.
func (e *entering) next() {
	for len(e.turns) > 0 {
		s := e.turns[0]
		e.turns = e.turns[1:]
		a := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		if len(s.queue) > 0 {
			e.turns = append(e.turns, s)
		}
		if a.queued {
			a.queued, a.since = false, time.Now()
			a.turn <- true
			return
		}
	}
	e.taken = false
}

// crowded reports whether more than a few are at their handshake.
func (e *entering) crowded() bool { return e.size() > crowd }

func (e *entering) size() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n
}

// close closes all connections, and those that come later.
func (e *entering) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done = true
	for _, s := range e.sources {
		for at := s.all.Front(); at != nil; at = at.Next() {
			at.Value.(*arrival).nc.Close()
		}
	}
}
