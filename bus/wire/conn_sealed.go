package wire

import (
	"io"
	"net"
	"time"
)

// What a Conn does otherwise over TLS. c.nc is the TLS connection and c.sock the
// Socket below it: plaintext goes into the one, and ciphertext comes out of the
// other.

// fillSealed is fill over TLS. While nothing is there an idle connection has no
// buffer here.
func (c *Conn) fillSealed(in *input) error {
	for {
		n, err := c.unseal(in)
		if c.sealed() > 0 {
			c.answer()
		}
		switch {
		case n > 0:
			c.rerr = err // nil or errWait, or to be found next
			return nil
		case err != errWait:
			return err
		}
		c.rbuf = nil
		if err := c.raw.Read(c.readFn); err != nil {
			return err
		}
		if c.rerr != nil {
			return c.rerr
		}
		c.sock.eof = c.rn <= 0
		c.sock.ahead, c.sock.unread = c.rbuf, c.rbuf[:max(c.rn, 0)]
		c.rbuf = nil
	}
}

// unseal reads all that TLS has, into a pooled buffer if there is none.
func (c *Conn) unseal(in *input) (n int, err error) {
	if c.rerr != nil && c.rerr != errWait {
		return 0, c.rerr
	}
	fresh := in.buf == nil
	if fresh {
		in.buf = readPool.Get().(*[readBuffer]byte)[:]
	}
	from := in.end
	for err == nil && in.end < len(in.buf) {
		var k int
		k, err = c.nc.Read(in.buf[in.end:])
		in.end += k
	}
	if fresh && in.end == 0 {
		in.release(c.budget)
	}
	return in.end - from, err
}

// answer writes messages of TLS itself (a key that was renewed), if no
// writer does.
func (c *Conn) answer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writing || c.err != nil {
		return
	}
	if c.push() && c.sealed() > 0 {
		c.startWriter()
	}
}

// push is one non-blocking write of ciphertext; false if the connection has
// failed. c.mu is held, and no writer is at work.
func (c *Conn) push() bool {
	if err := c.raw.Write(c.putFn); err != nil {
		c.fail(err)
		return false
	}
	if c.werr != nil {
		c.failWrite(c.werr)
		return false
	}
	return true
}

func (c *Conn) puttable(fd uintptr) bool {
	_, c.werr = c.sock.put(fd)
	return true
}

// trySeal is tryWrite over TLS: what it seals counts as written, and the caller
// starts a writer if ciphertext is left.
func (c *Conn) trySeal(p, payload []byte) (n int, ok bool) {
	if len(p) > sealSize {
		p, payload = p[:sealSize], nil
	}
	payload = payload[:min(len(payload), sealSize-len(p))]
	for _, part := range [2][]byte{p, payload} {
		if len(part) == 0 {
			continue
		}
		if _, err := c.nc.Write(part); err != nil {
			c.fail(err)
			return 0, false
		}
	}
	return len(p) + len(payload), c.push()
}

// sealed returns how many bytes of ciphertext wait for the peer.
func (c *Conn) sealed() int {
	if c.sock == nil {
		return 0
	}
	return int(c.sock.waiting.Load())
}

// writeSealed seals all of buf and waits until the kernel has taken it. It belongs
// to the writer goroutine.
func (c *Conn) writeSealed(buf []byte) error {
	for {
		if err := c.pushAll(); err != nil || len(buf) == 0 {
			return err
		}
		n := min(len(buf), sealSize)
		if _, err := c.nc.Write(buf[:n]); err != nil {
			return err
		}
		buf = buf[n:]
	}
}

// pushAll waits until no ciphertext is left.
func (c *Conn) pushAll() error {
	var err error
	if rerr := c.raw.Write(func(fd uintptr) (done bool) {
		done, err = c.sock.put(fd)
		return done
	}); rerr != nil {
		return rerr
	}
	return err
}

// hangUp ends a TLS connection of which the peer is to get all that was written. Were it
// closed while bytes of the peer are unread, or on their way, the kernel would
// send a reset and drop what is not sent yet: so this side's end goes out, and
// bytes from the peer are dropped until it closes, or for a second. c.mu is held.
func (c *Conn) hangUp() {
	c.drop(net.ErrClosed)
	c.hungUp = true
	if tc, ok := c.nc.(interface{ CloseWrite() error }); ok {
		tc.CloseWrite() // close_notify
	}
	c.raw.Control(func(fd uintptr) { c.sock.put(fd) })
	c.sock.CloseWrite()
	time.AfterFunc(c.patience, func() { c.nc.Close() })
	if c.serving {
		c.nc.SetReadDeadline(time.Unix(1, 0)) // its reader does the rest
		return
	}
	go c.drain() // ends in time
}

// drain drops all that the peer still sends, and closes.
func (c *Conn) drain() {
	nc := c.sock.Conn
	nc.SetReadDeadline(time.Now().Add(c.patience))
	io.CopyN(io.Discard, nc, MaxBacklog)
	c.nc.Close()
}
