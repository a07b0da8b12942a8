package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readBuffer = 128 << 10 // two full DATA frames
	// smallRest is how much of a half frame may be kept in a buffer of its own
	// while a connection is idle, so that a thousand of them stay cheap.
	smallRest = 4 << 10
	// MaxBacklog bounds what waits to be written to one peer: all that it may
	// have granted and as much again. A peer that reads nothing loses the
	// connection there.
	MaxBacklog = 16 << 20
	// sendMark is the backlog over which senders that can wait, do.
	sendMark = 256 << 10
	// ChunkSize is the payload of a DATA frame that this package sends.
	ChunkSize = 64 << 10
	// flushTime bounds how long a closing connection tries to say why.
	flushTime = time.Second
)

// ErrBacklog ends a connection whose peer does not read.
var ErrBacklog = errors.New("peer does not read: backlog exceeds the limit")

// ErrBudget ends a connection whose half-sent frame does not fit the buffers.
var ErrBudget = errors.New("no buffer left for an unfinished frame")

// Handler takes the frames of a connection, one at a time, in order. Handle
// must not block: other frames of the connection wait for it. An error closes
// the connection, after an ERROR frame that says why.
type Handler interface {
	Handle(b *Batch, f Frame) error
}

// Budget counts bytes that connections hold in buffers, over all that share it.
type Budget struct {
	used atomic.Int64
	Max  int64
}

// Used is how many bytes are held now.
func (b *Budget) Used() int64 { return b.used.Load() }

// Add takes n bytes, or gives them back if n is negative.
func (b *Budget) Add(n int) {
	if b != nil {
		b.used.Add(int64(n))
	}
}

// Full reports whether the budget is used up.
func (b *Budget) Full() bool { return b.full(0) }

// full reports whether as much more is used, too.
func (b *Budget) full(more int64) bool { return b != nil && b.used.Load() >= b.Max+more }

// spare is what unfinished long frames may take beyond the budget: a call whose
// arguments come when that is full is to be refused, not its connection closed.
func (b *Budget) spare() int64 {
	if b == nil {
		return 0
	}
	return b.Max / 2
}

// Conn frames one stream connection. One goroutine runs [Conn.Serve]; any may
// send. A frame is written at once, by whoever sends it, as one non-blocking
// try; what does not fit is left to a writer goroutine, so no sender waits for
// a slow peer.
type Conn struct {
	nc     net.Conn
	raw    syscall.RawConn // nil: nc can not be tried without blocking
	budget *Budget

	// OnDrain, if set before Serve, is called when a backlog has been written.
	OnDrain func()

	mu      sync.Mutex // protects the fields down to the blank line
	out     []byte     // encoded frames not written yet
	under   int        // bytes that the writer goroutine is writing
	writing bool       // a writer goroutine has the socket
	dirty   bool       // a Batch will flush it
	closing bool       // close once out is written
	err     error      // why the connection can not be used any more
	space   chan struct{}

	rn, wn     int
	rerr, werr error
	rbuf       []byte
	wbuf       [2][]byte // what one write takes: bytes, and a payload behind them
	head       []byte    // of a DATA frame that is written without being copied
	readFn     func(fd uintptr) bool
	writeFn    func(fd uintptr) bool
}

// NewConn frames nc. Buffers are counted in budget, which may be nil.
func NewConn(nc net.Conn, budget *Budget) *Conn {
	c := &Conn{nc: nc, budget: budget}
	c.readFn, c.writeFn = c.readable, c.writable
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	return c
}

// NetConn is the connection below.
func (c *Conn) NetConn() net.Conn { return c.nc }

var readPool = sync.Pool{New: func() any { return new([readBuffer]byte) }}

// readable reads what is there into a pooled buffer, or into rbuf if that holds
// half a frame already. While nothing is there an idle connection has no buffer.
func (c *Conn) readable(fd uintptr) bool {
	buf := c.rbuf
	var pooled *[readBuffer]byte
	if buf == nil {
		pooled = readPool.Get().(*[readBuffer]byte)
		buf = pooled[:]
	}
	for {
		c.rn, c.rerr = syscall.Read(int(fd), buf)
		if c.rerr != syscall.EINTR {
			break
		}
	}
	if c.rerr == syscall.EAGAIN {
		if pooled != nil {
			readPool.Put(pooled)
		}
		return false
	}
	if pooled != nil {
		c.rbuf = buf
	}
	return true
}

// input is the read side's buffer: bytes start to end are not handled yet.
type input struct {
	buf        []byte // nil while idle
	start, end int
	held       int // bytes counted in the budget
}

// fill reads more bytes behind what the buffer holds.
func (c *Conn) fill(in *input) error {
	if in.buf != nil {
		in.compact()
	}
	if c.raw == nil {
		if in.buf == nil {
			in.buf = make([]byte, 4<<10)
		}
		n, err := c.nc.Read(in.buf[in.end:])
		in.end += n
		if n > 0 {
			return nil
		}
		return err
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

// settle makes the buffer fit what is missing before the reader waits: gone if
// nothing is held, small for a short rest, and large enough for the frame.
func (in *input) settle(b *Budget, frame int) error {
	rest := in.end - in.start
	need := max(frame, rest+1)
	switch {
	case rest == 0:
		in.release(b)
		return nil
	case need <= smallRest && len(in.buf) != smallRest:
		return in.move(b, smallRest)
	case need <= smallRest, need <= len(in.buf) && len(in.buf) != smallRest:
		b.Add(len(in.buf) - in.held)
		in.held = len(in.buf)
		return nil
	case need <= readBuffer:
		return in.move(b, readBuffer)
	}
	return in.move(b, need)
}

func (in *input) move(b *Budget, size int) error {
	old := *in
	if size > readBuffer && b.full(b.spare()) {
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
	defer func() { in.release(c.budget) }()
	for {
		err := c.fill(&in)
		if err == nil {
			err = c.handle(b, h, &in, limit)
		} else if err == io.EOF && in.end > in.start {
			err = io.ErrUnexpectedEOF
		}
		b.Flush()
		if err != nil {
			return c.finish(err)
		}
	}
}

// handle passes every complete frame in the buffer on.
func (c *Conn) handle(b *Batch, h Handler, in *input, limit func() int) error {
	size := 0
	for in.end-in.start >= 4 {
		size = int(binary.BigEndian.Uint32(in.buf[in.start:]))
		if max := limit(); size > max {
			return fmt.Errorf("%w: frame of %d bytes exceeds the limit of %d", ErrMalformed, size, max)
		}
		size += 4
		if in.end-in.start < size {
			break
		}
		body := in.buf[in.start+4 : in.start+size]
		in.start += size
		size = 0
		if err := b.decode(h, body); err != nil {
			return err
		}
	}
	return in.settle(c.budget, size)
}

// finish closes after a failed read; a protocol error is told to the peer.
func (c *Conn) finish(err error) error {
	var e *Error
	c.mu.Lock()
	if c.err != nil && !errors.As(err, &e) {
		err = c.err // closed on our side: that was first
	}
	c.mu.Unlock()
	switch {
	case errors.As(err, &e):
		c.CloseWith(e)
	case errors.Is(err, ErrMalformed):
		c.CloseWith(&Error{Code: CodeProtocol, Message: err.Error()})
	default:
		c.Close(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil { // a failed write has left the socket to us
		c.nc.Close()
	}
	return err
}

// Batch collects the connections that the handling of some frames has written
// to, so that each is flushed once behind them. It belongs to one goroutine.
type Batch struct {
	conns  []*Conn
	dec    Decoder
	frames struct {
		hello   HelloFrame
		error   ErrorFrame
		offer   OfferFrame
		offered OfferedFrame
		call    CallFrame
		data    DataFrame
		eof     EOFFrame
		grant   GrantFrame
		cancel  CancelFrame
		end     EndFrame
	}
}

// decode decodes one frame and hands it over. Unknown types are skipped.
func (b *Batch) decode(h Handler, body []byte) error {
	t, err := PeekType(body)
	if err != nil {
		return err
	}
	var f Frame
	switch t {
	case TypeHello:
		b.frames.hello = HelloFrame{}
		f = &b.frames.hello
	case TypeError:
		f = &b.frames.error
	case TypeOffer:
		b.frames.offer = OfferFrame{}
		f = &b.frames.offer
	case TypeOffered:
		f = &b.frames.offered
	case TypeCall:
		f = &b.frames.call
	case TypeData:
		f = &b.frames.data
	case TypeEOF:
		f = &b.frames.eof
	case TypeGrant:
		f = &b.frames.grant
	case TypeCancel:
		f = &b.frames.cancel
	case TypeEnd:
		f = &b.frames.end
	default:
		return nil
	}
	if err := b.dec.Decode(body, f); err != nil {
		return err
	}
	return h.Handle(b, f)
}

// Send appends f to what c will write when the batch is flushed.
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

// Flush writes what was sent through the batch.
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

// append encodes f behind the backlog. c.mu is held.
func (c *Conn) append(f Frame) error {
	if c.err != nil {
		return c.err
	}
	if c.closing {
		return net.ErrClosed
	}
	before := len(c.out)
	if before+c.under > MaxBacklog {
		c.fail(ErrBacklog)
		return c.err
	}
	if d, ok := f.(*DataFrame); ok && cap(c.out) < readBuffer && before+len(d.Payload)+32 > cap(c.out) {
		c.out = append(readPool.Get().(*[readBuffer]byte)[:0], c.out...)
	}
	c.out = f.Append(c.out)
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

// Queue appends f to what is to be written. If flush is true the caller must
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

// Flush writes what was queued. If others are likely to have something to send
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
// the backlog, which gets what the peer does not take. c.mu is held.
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
	c.startWriter()
	return true
}

// tryWrite writes what the peer takes at once; ok is false if the connection
// has failed.
func (c *Conn) tryWrite(p, payload []byte) (n int, ok bool) {
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

// failWrite makes a failed write final. The peer has gone, but may have said why
// before it went: the reader gets a moment to find that. c.mu is held.
func (c *Conn) failWrite(err error) {
	if c.err != nil || c.closing {
		c.fail(err)
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(flushTime))
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
			c.wn, c.werr = syscall.Write(int(fd), c.wbuf[0])
		} else {
			c.wn, c.werr = unix.Writev(int(fd), c.wbuf[:])
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
	if n == len(c.out) {
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
	if c.closing {
		c.fail(net.ErrClosed)
	}
}

// recycle returns what to keep of a written buffer.
func recycle(buf []byte) []byte {
	if cap(buf) == readBuffer {
		readPool.Put((*[readBuffer]byte)(buf[:readBuffer]))
	}
	if cap(buf) > smallRest {
		return nil
	}
	return buf[:0]
}

// writeLoop writes the backlog, waiting for the peer.
func (c *Conn) writeLoop() {
	c.mu.Lock()
	for c.err == nil && len(c.out) > 0 {
		buf := c.out
		c.out, c.under = nil, len(buf)
		c.mu.Unlock()
		_, err := c.nc.Write(buf)
		c.budget.Add(-len(buf))
		recycle(buf)
		c.mu.Lock()
		c.under = 0
		if err != nil {
			c.failWrite(err)
		}
		if c.space != nil && len(c.out) < sendMark {
			close(c.space)
			c.space = nil
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

// Backlog is how many bytes wait for the peer to read, short of what a write
// under way has taken.
func (c *Conn) Backlog() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out)
}

// Stalled reports whether the peer does not take what is sent at once.
func (c *Conn) Stalled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writing
}

// WaitSpace waits until little enough is waiting to be written, the connection
// fails or ctx ends. Senders of bulk data call it before each frame.
func (c *Conn) WaitSpace(ctx context.Context) error {
	for {
		c.mu.Lock()
		if c.err != nil || len(c.out) < sendMark {
			err := c.err
			c.mu.Unlock()
			return err
		}
		if c.space == nil {
			c.space = make(chan struct{})
		}
		space := c.space
		c.mu.Unlock()
		select {
		case <-space:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fail makes err final and closes the socket. c.mu is held.
func (c *Conn) fail(err error) {
	if c.err != nil {
		return
	}
	c.drop(err)
	c.nc.Close()
}

// drop makes err final and forgets the backlog. c.mu is held.
func (c *Conn) drop(err error) {
	c.err = err
	c.budget.Add(-len(c.out))
	c.out = nil
	if c.space != nil {
		close(c.space)
		c.space = nil
	}
}

// Close closes the connection at once; err is what later sends return.
func (c *Conn) Close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		err = net.ErrClosed
	}
	c.fail(err)
}

// CloseWith tells the peer why, after what was sent before, and then closes.
func (c *Conn) CloseWith(e *Error) {
	c.Finish(&ErrorFrame{Code: []byte(e.Code), Message: []byte(e.Message)})
}

// Finish sends f, if it is not nil, and closes when all is written, or when the
// peer has not read it within a second.
func (c *Conn) Finish(f Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f != nil {
		c.append(f)
	}
	if c.err != nil || c.closing {
		return
	}
	c.closing = true
	c.nc.SetWriteDeadline(time.Now().Add(flushTime))
	if len(c.out) == 0 && !c.writing {
		c.fail(net.ErrClosed)
		return
	}
	if !c.dirty {
		c.flush()
	}
}
