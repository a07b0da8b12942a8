package wire

import "encoding/binary"

// While a writer waits for the peer, frames queue up. So that a call with
// megabytes granted does not delay the small answers of others, data that
// finds a backlog goes to a lane of its call, and the writer takes a chunk of one
// lane after the other, each behind all that is in no lane then. What goes to the
// peer in another order than it was sent, the protocol leaves open: only frames
// of one call's data and its end wait for each other, and CALLs, which are in no
// lane, are written before whatever of their call was sent later.

const (
	// laneMark is the backlog at which data goes to lanes.
	laneMark = 64 << 10
	// laneChunk is how much is taken from a lane at once: one DATA frame of the longest
	// that this package sends, or some that are smaller.
	laneChunk = ChunkSize + 4<<10
	// laneEnd is the output from which an END is data, too.
	laneEnd = 4 << 10
)

// laneKey names the data that a call sends on a connection. The two sides choose
// ids by themselves, so a frame's type and stream identify the call.
type laneKey struct {
	id     uint64
	opener bool // this side opened the call
}

// lane is encoded frames of one call. It exists while it holds some.
type lane struct {
	key  laneKey
	buf  []byte
	next int // taken by the writer up to here
}

// keyOf returns the lane of f, if it has to use one; data reports that f is one
// to begin a lane with.
func keyOf(f Frame) (key laneKey, data, ok bool) {
	switch f := f.(type) {
	case *DataFrame:
		return laneKey{f.ID, f.Stream == Input}, true, true
	case *EOFFrame:
		return laneKey{f.ID, true}, false, true
	case *EndFrame:
		return laneKey{f.ID, false}, len(f.Output) >= laneEnd, true
	}
	return laneKey{}, false, false
}

// laneFor returns f's lane, nil if f goes with the frames outside lanes. c.mu is held,
// and a writer is at work.
func (c *Conn) laneFor(f Frame) *lane {
	if len(c.lanes) == 0 && len(c.out) < laneMark {
		return nil
	}
	key, data, ok := keyOf(f)
	if !ok {
		return nil
	}
	l := c.lanes[key]
	if l != nil || !data || len(c.out) < laneMark {
		return l
	}
	l = &lane{key: key}
	if c.lanes == nil {
		c.lanes = map[laneKey]*lane{}
	}
	c.lanes[key] = l
	c.turns = append(c.turns, l)
	return l
}

// append encodes f behind the frames in the lane, and returns its size. What the writer has taken is
// not moved: it is being written.
func (l *lane) append(f Frame) int {
	if d, ok := f.(*DataFrame); ok {
		l.room(len(d.Payload) + 32)
	}
	before := len(l.buf)
	l.buf = Append(l.buf, f)
	return len(l.buf) - before
}

// room makes room for n bytes, and leaves behind what was taken.
func (l *lane) room(n int) {
	if len(l.buf)+n <= cap(l.buf) {
		return
	}
	held := l.buf[l.next:]
	var buf []byte
	if size := len(held) + n; size > readBuffer/2 && size <= readBuffer {
		buf = readPool.Get().(*[readBuffer]byte)[:0]
	} else {
		buf = make([]byte, 0, size+len(held))
	}
	l.buf, l.next = append(buf, held...), 0
}

// take is whole frames from the front of the lane.
func (l *lane) take() []byte {
	n := 0
	for rest := l.buf[l.next:]; n < len(rest); {
		size := 4 + int(binary.BigEndian.Uint32(rest[n:]))
		if n > 0 && n+size > laneChunk {
			break
		}
		n += size
	}
	p := l.buf[l.next : l.next+n]
	l.next += n
	return p
}

// takeLane is a chunk of the lane whose turn it is, and a buffer that can be used
// again when that is written. c.mu is held.
func (c *Conn) takeLane() (p, spent []byte) {
	if len(c.turns) == 0 {
		return nil, nil
	}
	l := c.turns[0]
	c.turns[0] = nil
	c.turns = c.turns[1:]
	p = l.take()
	c.laned -= len(p)
	if l.next < len(l.buf) {
		c.turns = append(c.turns, l)
		return p, nil
	}
	delete(c.lanes, l.key)
	return p, l.buf
}

// merge puts all that is in lanes behind the rest. c.mu is held.
func (c *Conn) merge() {
	for len(c.turns) > 0 {
		p, _ := c.takeLane()
		c.out = append(c.out, p...)
	}
}
