package node

import (
	"net"
	"net/netip"
	"slices"
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
	mu     sync.Mutex              // protects the fields below, and those of arrivals
	all    []*arrival              // oldest first
	queue  []*arrival              // those that want the place, in their order
	turns  map[netip.Prefix]uint64 // the last turn of each address
	turn   uint64                  // rises with each
	taken  bool                    // the place: somebody computes, or it rests
	worked time.Duration           // since the last rest
	done   bool
}

// arrival is one connection. Its goroutine acquires and releases the place.
type arrival struct {
	in     *entering
	nc     net.Conn
	source netip.Prefix
	left   bool
	since  time.Time // it computes; zero: it waits
	turn   chan bool // has room for one: whether it got the place
}

// begin notes a connection.
func (e *entering) begin(nc net.Conn) *arrival {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := &arrival{in: e, nc: nc, source: sourceOf(nc.RemoteAddr()), turn: make(chan bool, 1)}
	if e.done {
		a.left = true
		nc.Close()
		return a
	}
	if len(e.all) >= maxEntering {
		e.evict()
	}
	e.all = append(e.all, a)
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

// evict closes one connection of the source that has the most: the oldest that waits for its
// peer, or else for the place. e.mu is held.
func (e *entering) evict() {
	count, most := map[netip.Prefix]int{}, 0
	for _, a := range e.all {
		count[a.source]++
		most = max(most, count[a.source])
	}
	var victim *arrival
	for _, a := range e.all {
		if a.since.IsZero() && count[a.source] == most && (victim == nil || slices.Contains(e.queue, victim) && !slices.Contains(e.queue, a)) {
			victim = a
		}
	}
	if victim != nil {
		victim.leave()
		victim.nc.Close()
	}
}

// end takes the arrival off the lists. It may be called twice.
func (a *arrival) end() {
	a.in.mu.Lock()
	defer a.in.mu.Unlock()
	if !a.left {
		a.leave()
	}
}

// leave is end for a caller that holds the mu.
func (a *arrival) leave() {
	e := a.in
	a.left = true
	e.all = without(e.all, a)
	if slices.Contains(e.queue, a) {
		e.queue = without(e.queue, a)
		a.turn <- false
	}
	if !a.since.IsZero() {
		e.pass(a)
	}
}

// acquire waits for the place. It returns false if the arrival has left.
func (a *arrival) acquire() bool {
	e := a.in
	e.mu.Lock()
	if a.left {
		e.mu.Unlock()
		return false
	}
	e.queue = append(e.queue, a)
	if !e.taken {
		e.next()
	}
	e.mu.Unlock()
	return <-a.turn
}

// release passes the place on, if the arrival has it.
func (a *arrival) release() {
	a.in.mu.Lock()
	defer a.in.mu.Unlock()
	if !a.since.IsZero() {
		a.in.pass(a)
	}
}

// pass takes the place from an arrival and gives it to the next, after a rest if enough was
// computed. e.mu is held.
func (e *entering) pass(a *arrival) {
	e.worked += time.Since(a.since)
	a.since = time.Time{}
	if len(e.all) <= crowd {
		e.worked = 0
	}
	if e.worked < restAfter {
		e.next()
		return
	}
	rest := min(e.worked, restMost)
	e.worked = 0
	time.AfterFunc(rest, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.next()
	})
}

// next gives the place to the first arrival of the source that had it least recently. e.mu is
// held.
func (e *entering) next() {
	var a *arrival
	for _, other := range e.queue {
		if a == nil || e.turns[other.source] < e.turns[a.source] {
			a = other
		}
	}
	if e.taken = a != nil; !e.taken {
		e.turns = nil
		return
	}
	if e.turns == nil || len(e.turns) > 2*maxEntering {
		e.turns = map[netip.Prefix]uint64{}
	}
	e.turn++
	e.turns[a.source] = e.turn
	e.queue = without(e.queue, a)
	a.since = time.Now()
	a.turn <- true
}

// crowded reports whether more than a few are at their handshake.
func (e *entering) crowded() bool { return e.size() > crowd }

func (e *entering) size() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.all)
}

// close closes all connections, and those that come later.
func (e *entering) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done = true
	for _, a := range e.all {
		a.nc.Close()
	}
}

// handshaking is a connection at its handshake. It holds the place while it computes, not
// while it waits for the peer.
type handshaking struct {
	*net.TCPConn
	at *arrival // nil once that is over
}

func (h *handshaking) Read(p []byte) (int, error) {
	if h.at == nil {
		return h.TCPConn.Read(p)
	}
	h.at.release()
	n, err := h.TCPConn.Read(p)
	if !h.at.acquire() {
		return 0, net.ErrClosed
	}
	return n, err
}
