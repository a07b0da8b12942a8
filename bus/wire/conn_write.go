package wire

import (
	"net"
	"runtime"
	"syscall"
	"time"
)

// append encodes f behind the backlog. c.mu is held.
func (c *Conn) append(f Frame) error {
	if c.err != nil {
		return c.err
	}
	if c.closing {
		return net.ErrClosed
	}
	if k := c.backlog() + c.under; k > MaxBacklog || k > sendMark && c.budget.exhausted() {
		c.fail(ErrBacklog)
		return c.err
	}
	if c.writing {
		if l := c.laneFor(f); l != nil {
			n := l.append(f)
			c.laned += n
			c.budget.Add(n)
			return nil
		}
	}
	before := len(c.out)
	if d, ok := f.(*DataFrame); ok && cap(c.out) < readBuffer && before+len(d.Payload)+32 > cap(c.out) {
		c.out = append(readPool.Get().(*[readBuffer]byte)[:0], c.out...)
	}
	c.out = Append(c.out, f)
	c.budget.Add(len(c.out) - before)
	return nil
}

// Send writes f now, as far as the peer takes it without waiting; the rest
// follows by itself.
func (c *Conn) Send(f Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := f.(*DataFrame); ok && c.direct(d) {
		return c.err
	}
	if err := c.append(f); err != nil {
		return err
	}
	if !c.dirty {
		c.flush()
	}
	return c.err
}

// Queue appends f to the backlog. If flush is true the caller must
// call [Conn.Flush], and holds no lock that a reader of the connection takes.
func (c *Conn) Queue(f Frame) (flush bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.append(f); err != nil {
		return false, err
	}
	if c.dirty || c.writing {
		return false, nil
	}
	c.dirty = true
	return true, nil
}

// Flush writes the backlog. If others are likely to have something to send
// too, they get their turn first: what they queue goes out with the same write.
func (c *Conn) Flush(others bool) {
	if others {
		runtime.Gosched()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty = false
	c.flush()
}

// directSize is the payload from which copying costs more than a write of its
// own does.
const directSize = 16 << 10

// direct writes a large payload from where it lies, if nothing is before it in
// the backlog, which gets the bytes that the peer does not take. c.mu is held.
func (c *Conn) direct(d *DataFrame) bool {
	if c.raw == nil || len(d.Payload) < directSize || len(c.out) > 0 || c.writing || c.closing || c.err != nil {
		return false
	}
	c.head = d.AppendHead(c.head[:0])
	n, ok := c.tryWrite(c.head, d.Payload)
	if !ok {
		return true
	}
	if n == len(c.head)+len(d.Payload) {
		if c.sealed() > 0 {
			c.startWriter()
		}
		return true
	}
	if n < len(c.head) {
		c.out = append(c.out, c.head[n:]...)
		n = len(c.head)
	}
	rest := d.Payload[n-len(c.head):]
	if cap(c.out) < readBuffer {
		c.out = append(readPool.Get().(*[readBuffer]byte)[:0], c.out...)
	}
	c.out = append(c.out, rest...)
	c.budget.Add(len(c.out))
	if c.sock != nil && c.sealed() == 0 {
		c.flush() // there was more than is sealed at once
	} else {
		c.startWriter()
	}
	return true
}

// tryWrite writes as much as the peer takes at once; ok is false if the connection
// has failed.
func (c *Conn) tryWrite(p, payload []byte) (n int, ok bool) {
	if c.sock != nil {
		return c.trySeal(p, payload)
	}
	c.wbuf[0], c.wbuf[1] = p, payload
	err := c.raw.Write(c.writeFn)
	c.wbuf[0], c.wbuf[1] = nil, nil
	switch {
	case err != nil:
		c.fail(err)
		return 0, false
	case c.werr == nil:
		return c.wn, true
	case c.werr == syscall.EAGAIN:
		return 0, true
	}
	c.failWrite(c.werr)
	return 0, false
}

// failWrite makes a failed write final. The peer has gone, but may have sent an ERROR
// before it went: the reader gets a moment to find that. c.mu is held.
func (c *Conn) failWrite(err error) {
	if c.err != nil || c.closing {
		c.fail(err)
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(c.patience))
	c.drop(err)
}

// startWriter leaves the backlog to a goroutine.
func (c *Conn) startWriter() {
	c.writing = true
	go c.writeLoop() // ends when the backlog is written or the connection fails
}

// writable is one non-blocking write of wbuf.
func (c *Conn) writable(fd uintptr) bool {
	for {
		if c.wbuf[1] == nil {
			c.wn, c.werr = rawWrite(int(fd), c.wbuf[0])
		} else {
			c.wn, c.werr = rawWritev(int(fd), c.wbuf[:])
		}
		if c.werr != syscall.EINTR {
			return true
		}
	}
}

// flush tries to write the backlog and starts a writer for what the peer does
// not take. c.mu is held.
func (c *Conn) flush() {
	if c.writing || len(c.out) == 0 || c.err != nil {
		return
	}
	n, ok := 0, true
	if c.raw != nil {
		if n, ok = c.tryWrite(c.out, nil); !ok {
			return
		}
	}
	c.budget.Add(-n)
	if n == len(c.out) && c.sealed() == 0 {
		c.emptied()
		return
	}
	c.out = c.out[:copy(c.out, c.out[n:])]
	c.startWriter()
}

// emptied keeps a small buffer for the next frames and gives a larger one back.
// c.mu is held.
func (c *Conn) emptied() {
	c.out = recycle(c.out)
	c.spaced()
	switch {
	case c.closing && c.linger:
		c.hangUp()
	case c.closing:
		c.fail(net.ErrClosed)
	}
}

// spaced wakes the senders that wait for space. c.mu is held.
func (c *Conn) spaced() {
	if c.space != nil {
		close(c.space)
		c.space = nil
	}
}

// recycle returns the part of a written buffer to keep.
func recycle(buf []byte) []byte {
	if cap(buf) == readBuffer {
		readPool.Put((*[readBuffer]byte)(buf[:readBuffer]))
	}
	if cap(buf) > SmallRest {
		return nil
	}
	return buf[:0]
}

// writeLoop writes the backlog, waiting for the peer.
func (c *Conn) writeLoop() {
	c.mu.Lock()
	for c.err == nil && c.backlog()+c.sealed() > 0 {
		buf := c.out
		chunk, spent := c.takeLane()
		c.out, c.under = nil, len(buf)+len(chunk)+c.sealed()
		c.mu.Unlock()
		err := c.writeAll(buf)
		if err == nil && len(chunk) > 0 {
			err = c.writeAll(chunk)
		}
		c.budget.Add(-len(buf) - len(chunk))
		recycle(buf)
		recycle(spent)
		c.mu.Lock()
		c.under = 0
		if err != nil {
			c.failWrite(err)
		}
		if c.backlog() < sendMark {
			c.spaced()
		}
	}
	c.writing = false
	if c.err == nil {
		c.emptied()
	}
	drained := c.OnDrain
	c.mu.Unlock()
	if drained != nil {
		drained()
	}
}

// writeAll writes buf, waiting for the peer.
func (c *Conn) writeAll(buf []byte) error {
	if c.sock != nil {
		return c.writeSealed(buf)
	}
	if len(buf) == 0 {
		return nil // a pipe would wait for a reader
	}
	_, err := c.nc.Write(buf)
	return err
}

// backlog returns how many bytes the writer has not taken. c.mu is held.
func (c *Conn) backlog() int { return len(c.out) + c.laned }

// Stalled reports whether the peer does not take frames at once.
func (c *Conn) Stalled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writing
}

// Batch collects the connections that the handling of some frames has written
// to, so that each is flushed once behind them. It belongs to one goroutine.
type Batch struct {
	conns []*Conn
	dec   Decoder
}

// Send appends f to the bytes that c writes when the batch is flushed.
func (b *Batch) Send(c *Conn, f Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := f.(*DataFrame); ok && c.direct(d) {
		return c.err
	}
	if err := c.append(f); err != nil {
		return err
	}
	if !c.dirty && !c.writing {
		c.dirty = true
		b.conns = append(b.conns, c)
	}
	return nil
}

// Flush writes all that was sent through the batch.
func (b *Batch) Flush() {
	for i, c := range b.conns {
		c.mu.Lock()
		c.dirty = false
		c.flush()
		c.mu.Unlock()
		b.conns[i] = nil
	}
	b.conns = b.conns[:0]
}
