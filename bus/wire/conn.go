package wire

import (
	"context"
	"errors"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/bus/args"
)

const (
	readBuffer = 128 << 10 // two full DATA frames
	// smallRest is how much of a half frame may be kept in a buffer of its own
	// while a connection is idle, so that a thousand of them stay cheap.
	SmallRest = 4 << 10
	// MaxBacklog bounds what waits to be written to one peer: all that it may
	// have granted and as much again. A peer that reads nothing loses the
	// connection there.
	MaxBacklog = 16 << 20
	// sendMark is the backlog over which senders that can wait, do.
	sendMark = 256 << 10
	// unixBuffer is how much the kernel is asked to hold for the peer on a unix socket, before what it
	// adds itself. With the usual 208 KiB the two sides take turns at each frame or two of a bulk
	// transfer, and wake each other as often.
	unixBuffer = 512 << 10
	// ChunkSize is the payload of a DATA frame that this package sends.
	ChunkSize = 64 << 10
	// flushTime is how long a closing connection tries to send its ERROR.
	flushTime = time.Second
)

// ErrBacklog ends a connection whose peer does not read.
var ErrBacklog = errors.New("peer does not read: what waits for it exceeds the limit of 16 MiB, or its share of the buffers")

// ErrBudget ends a connection whose half-sent frame does not fit the buffers.
var ErrBudget = errors.New("no buffer left for an unfinished frame")

// Handler takes the frames of a connection, one at a time, in order. Handle
// must not block: other frames of the connection wait for it. An error closes
// the connection, after an ERROR frame with the reason.
type Handler interface {
	Handle(b *Batch, f Frame) error
}

// Budget counts bytes that connections hold in buffers, over all that share it.
type Budget struct {
	used atomic.Int64
	Max  int64
	In   *Budget // of which it is a part; nil: none
}

// Used returns how many bytes are held now.
func (b *Budget) Used() int64 { return b.used.Load() }

// Add takes n bytes, or gives them back if n is negative.
func (b *Budget) Add(n int) {
	for ; b != nil; b = b.In {
		b.used.Add(int64(n))
	}
}

// Full reports whether the budget is used up.
func (b *Budget) Full() bool { return b.used.Load() >= b.Max }

// exhausted reports whether there is no room even for unfinished long frames, which have half
// as much again: a call whose arguments come when the budget is full has to be refused, not
// its connection closed.
func (b *Budget) exhausted() bool { return b.used.Load() >= b.Max+b.Max/2 }

// Turns bounds how many of the connections that share it handle frames at once, to its
// capacity. The others wait in line.
type Turns chan struct{}

func (t Turns) lock() { t <- struct{}{} }

func (t Turns) tryLock() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

func (t Turns) unlock() { <-t }

// Conn frames one stream connection. One goroutine runs [Conn.Serve]; any may
// send. A frame is written at once, by whoever sends it, as one non-blocking
// try; what does not fit is left to a writer goroutine, so no sender waits for
// a slow peer.
type Conn struct {
	nc     net.Conn
	raw    syscall.RawConn // nil: nc cannot be tried without blocking
	sock   *Socket         // below nc if that is TLS; else nil
	budget *Budget

	patience time.Duration // bounds how long it closes

	// OnDrain, if set before Serve, is called when a backlog has been written.
	OnDrain func()
	// Turns, if set before Serve, is shared with connections that must not keep the machine
	// busier together than one alone.
	Turns Turns
	// Pause, if set before Serve, returns for how long the connection rests after it has cost
	// pauseAfter without a wait for more frames.
	Pause func() time.Duration

	mu      sync.Mutex        // protects the fields down to the blank line
	out     []byte            // encoded frames not written yet
	lanes   map[laneKey]*lane // of calls that have more to send than the peer takes; only while writing
	turns   []*lane           // the lanes, the next to be written first
	laned   int               // bytes in lanes
	under   int               // bytes that the writer goroutine is writing, ciphertext included
	writing bool              // a writer goroutine has the socket
	dirty   bool              // a Batch will flush it
	serving bool              // Serve reads
	closing bool              // close once out is written
	linger  bool              // and have the peer get it
	hungUp  bool              // by hangUp: the reader closes
	err     error             // why the connection cannot be used any more
	space   chan struct{}

	eager      bool // the reader has a turn, and does not wait for bytes
	streak     int  // frames handled since there were none
	rn, wn     int
	room       int // for rn
	rerr, werr error
	rbuf       []byte
	in         *input    // the reader's, once it serves
	wbuf       [2][]byte // what one write takes: bytes, and a payload behind them
	head       []byte    // of a DATA frame that is written without being copied
	readFn     func(fd uintptr) bool
	writeFn    func(fd uintptr) bool
	putFn      func(fd uintptr) bool
}

// NewConn frames nc. Buffers are counted in budget, which may be nil. TLS must have
// completed its handshake; it should be over a [Socket].
func NewConn(nc net.Conn, budget *Budget) *Conn {
	if budget == nil {
		budget = &Budget{Max: math.MaxInt32}
	}
	c := &Conn{nc: nc, budget: budget, patience: flushTime}
	c.readFn, c.writeFn, c.putFn = c.readable, c.writable, c.puttable
	if u, ok := nc.(*net.UnixConn); ok {
		u.SetWriteBuffer(unixBuffer) // a wish: net.core.wmem_max may be less
	}
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	} else if over, ok := nc.(interface{ NetConn() net.Conn }); ok {
		if s, ok := over.NetConn().(*Socket); ok && s.raw != nil {
			s.take(budget)
			c.sock, c.raw = s, s.raw
		}
	}
	return c
}

// NetConn is the connection below.
func (c *Conn) NetConn() net.Conn { return c.nc }

var readPool = sync.Pool{New: func() any { return new([readBuffer]byte) }}

// finish closes after a failed read; a protocol error is sent to the peer.
func (c *Conn) finish(err error) error {
	var e *args.Error
	c.mu.Lock()
	if c.err != nil && !errors.As(err, &e) {
		err = c.err // closed on our side: that was first
	}
	c.mu.Unlock()
	switch {
	case errors.As(err, &e):
		c.CloseWith(e)
	case errors.Is(err, args.ErrMalformed):
		c.CloseWith(&args.Error{Code: args.CodeProtocol, Message: err.Error()})
	case errors.Is(err, os.ErrDeadlineExceeded): // only the first frame has a deadline
		c.CloseWith(&args.Error{Code: args.CodeProtocol, Message: "HELLO did not come in time"})
	default:
		c.Close(err)
	}
	c.mu.Lock()
	c.serving = false
	if c.hungUp {
		c.mu.Unlock()
		c.drain()
		return err
	}
	defer c.mu.Unlock()
	if c.err != nil { // a failed write has left the socket to us
		c.nc.Close()
	}
	return err
}

// WaitSpace waits until little enough is waiting to be written, the connection
// fails or ctx ends. Senders of bulk data call it before each frame.
func (c *Conn) WaitSpace(ctx context.Context) error {
	for {
		c.mu.Lock()
		if c.err != nil || c.backlog() < sendMark {
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
	c.budget.Add(-c.backlog())
	c.out = nil
	c.lanes, c.turns, c.laned = nil, nil, 0
	c.spaced()
}

// Close closes the connection at once; later sends return err.
func (c *Conn) Close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		err = net.ErrClosed
	}
	c.fail(err)
}

// CloseWith sends the peer an ERROR, after all earlier frames, and then closes.
func (c *Conn) CloseWith(e *args.Error) {
	c.Finish(&ErrorFrame{Code: []byte(e.Code), Message: []byte(e.Message)})
}

// Finish sends f, if it is not nil, and closes when all is written, or when the
// peer has not read it within a second.
func (c *Conn) Finish(f Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.merge()
	if f != nil {
		c.append(f)
	}
	if c.err != nil || c.closing {
		return
	}
	c.closing = true
	c.linger = c.sock != nil && (len(c.out) > 0 || c.writing)
	c.writeDeadline(time.Now().Add(c.patience))
	if len(c.out) == 0 && !c.writing {
		c.fail(net.ErrClosed)
		return
	}
	if !c.dirty {
		c.flush()
	}
}

func (c *Conn) writeDeadline(t time.Time) {
	if c.sock != nil {
		c.sock.Conn.SetWriteDeadline(t) // TLS is not asked to write when it has to wait
		return
	}
	c.nc.SetWriteDeadline(t)
}
