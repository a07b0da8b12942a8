package wire

import (
	"encoding/binary"
	"fbus/bus/args"
	"fmt"
	"io"
	"syscall"
	"time"
)

// readable reads all bytes that are there into a pooled buffer, or into rbuf if that holds
// half a frame already. While nothing is there an idle connection has no buffer, and
// one with the beginning of a frame no more than that needs.
func (c *Conn) readable(fd uintptr) bool {
	buf := c.rbuf
	var pooled *[readBuffer]byte
	if buf == nil {
		pooled = readPool.Get().(*[readBuffer]byte)
		buf = pooled[:]
	}
	if c.Turns != nil && !c.eager {
		buf = buf[:min(len(buf), SmallRest)]
	}
	c.room = len(buf)
	for {
		c.rn, c.rerr = rawRead(int(fd), buf)
		if c.rerr != syscall.EINTR {
			break
		}
	}
	if c.rerr == syscall.EAGAIN {
		if pooled != nil {
			readPool.Put(pooled)
		}
		c.streak = 0
		if c.eager {
			c.rerr = errWait
			return true
		}
		if c.in.shrink(c.budget) && c.sock == nil {
			c.rbuf = c.in.buf[c.in.end:]
		}
		return false
	}
	if pooled != nil {
		c.rbuf = pooled[:]
	}
	return true
}

// input is the read side's buffer: bytes start to end are not handled yet.
type input struct {
	buf        []byte // nil while idle
	start, end int
	held       int // bytes counted in the budget
}

// fill reads more bytes behind those in the buffer.
func (c *Conn) fill(in *input) error {
	if in.buf != nil {
		in.compact()
	}
	if c.sock != nil {
		return c.fillSealed(in)
	}
	if c.raw == nil {
		return c.fillWaiting(in)
	}
	c.rbuf = nil
	if in.buf != nil {
		c.rbuf = in.buf[in.end:]
	}
	if err := c.raw.Read(c.readFn); err != nil {
		return err
	}
	switch {
	case c.rerr != nil:
		return c.rerr
	case c.rn <= 0:
		return io.EOF
	}
	if in.buf == nil {
		in.buf = c.rbuf
	}
	in.end += c.rn
	return nil
}

// fillWaiting has to hold a buffer while it waits: a small one, unless the read
// before has filled what it had.
func (c *Conn) fillWaiting(in *input) error {
	if in.buf == nil && c.rn > SmallRest/2 {
		in.buf = readPool.Get().(*[readBuffer]byte)[:]
	} else if in.buf == nil {
		in.buf = make([]byte, SmallRest)
	}
	n, err := c.nc.Read(in.buf[in.end:])
	c.rn = n
	in.end += n
	if n > 0 {
		return nil
	}
	return err
}

// compact moves the unhandled bytes to the front.
func (in *input) compact() {
	if in.start > 0 {
		in.end = copy(in.buf, in.buf[in.start:in.end])
		in.start = 0
	}
}

func (in *input) release(b *Budget) {
	if cap(in.buf) == readBuffer {
		readPool.Put((*[readBuffer]byte)(in.buf[:readBuffer]))
	}
	b.Add(-in.held)
	*in = input{}
}

// settle fits the buffer to the missing bytes before the reader waits: gone if
// nothing is held, small for a short rest, and larger once it is full.
func (in *input) settle(b *Budget, frame int) error {
	rest := in.end - in.start
	need := max(frame, rest+1)
	switch {
	case rest == 0:
		in.release(b)
		return nil
	case need <= SmallRest && len(in.buf) != SmallRest:
		return in.move(b, SmallRest)
	case rest < len(in.buf):
		b.Add(len(in.buf) - in.held)
		in.held = len(in.buf)
		return nil
	case need <= readBuffer, len(in.buf) < readBuffer:
		return in.move(b, readBuffer)
	}
	return in.move(b, need)
}

// shrink leaves a buffer that is much too large for the bytes in it, before the peer
// is waited for: a peer that sends little of a long frame, and then nothing, holds little.
func (in *input) shrink(b *Budget) bool {
	if in == nil {
		return false
	}
	size := SmallRest
	for size < in.end-in.start+1 {
		size *= 2
	}
	if len(in.buf) < 16*size {
		return false
	}
	in.move(b, size)
	return true
}

func (in *input) move(b *Budget, size int) error {
	old := *in
	if size > readBuffer && b.exhausted() {
		return ErrBudget
	}
	var buf []byte
	if size == readBuffer {
		buf = readPool.Get().(*[readBuffer]byte)[:]
	} else {
		buf = make([]byte, size)
	}
	*in = input{buf: buf, end: copy(buf, old.buf[old.start:old.end]), held: size}
	b.Add(size)
	old.release(b)
	return nil
}

// Serve reads frames and hands them to h until the connection fails, is closed
// or h returns an error, and returns why: io.EOF for a clean close by the peer.
// Frames are at most limit() bytes. Then the connection is closed.
func (c *Conn) Serve(h Handler, limit func() int) error {
	var in input
	b := &Batch{}
	c.mu.Lock()
	c.serving = true
	c.mu.Unlock()
	c.in = &in
	defer func() {
		in.release(c.budget)
		if c.sock != nil {
			c.sock.drop()
		}
	}()
	for {
		if c.eager = c.Turns != nil && c.raw != nil && c.rn > 0 && c.rn == c.room; c.eager {
			c.Turns.lock() // more bytes are probably there
		}
		err := c.fill(&in)
		if c.eager && err == errWait {
			c.Turns.unlock()
			c.rn = 0
			continue
		}
		if !c.eager && c.Turns != nil && !c.Turns.tryLock() {
			in.shrink(c.budget)
			c.Turns.lock()
		}
		if err == nil {
			err = c.handle(b, h, &in, limit)
		} else if err == io.EOF && in.end > in.start {
			err = io.ErrUnexpectedEOF
		}
		if c.Turns != nil {
			c.Turns.unlock()
		}
		b.Flush()
		if err != nil {
			return c.finish(err)
		}
	}
}

// pauseAfter is how much a connection costs before it pauses, with its turn: Go looks at other
// connections only while there is nothing else to do. It is about a number of frames, or of
// microseconds: see Charge.
const pauseAfter = 256

// Charge adds to what the frames that are handled have cost. It is for Handle.
func (c *Conn) Charge(d time.Duration) { c.streak += int(d.Microseconds()) }

// longestBatch is for how long what the frames of a connection with a Pause have sent to others waits
// for the frames behind them, each of which may wait for a lock.
const longestBatch = time.Millisecond

// handle passes every complete frame in the buffer on.
func (c *Conn) handle(b *Batch, h Handler, in *input, limit func() int) error {
	size := 0
	var since time.Time // when something was sent and not written
	for in.end-in.start >= 4 {
		if c.Pause != nil && c.streak >= pauseAfter {
			c.streak = 0
			b.Flush()
			time.Sleep(c.Pause())
		}
		size = int(binary.BigEndian.Uint32(in.buf[in.start:]))
		if max := limit(); size > max {
			return fmt.Errorf("%w: frame of %d bytes exceeds the limit of %d", args.ErrMalformed, size, max)
		}
		size += 4
		if in.end-in.start < size {
			break
		}
		body := in.buf[in.start+4 : in.start+size]
		in.start += size
		size = 0
		f, err := b.dec.Decode(body)
		if err == nil && f != nil {
			err = h.Handle(b, f)
		}
		if c.Pause != nil && len(b.conns) > 0 {
			switch now := time.Now(); {
			case since.IsZero():
				since = now
			case now.Sub(since) > longestBatch:
				b.Flush()
				since = time.Time{}
			}
		}
		c.streak++
		if _, data := f.(*DataFrame); !data { // its bytes are looked at, not only passed on
			c.streak += len(body) / 256
		}
		if err != nil {
			return err
		}
	}
	return in.settle(c.budget, size)
}
