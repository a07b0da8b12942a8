package wire

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// sealSize is how much plaintext is sealed at once: with what the records add it
	// fits a pooled buffer.
	sealSize = 112 << 10
	// maxSealed bounds what waits below TLS. A Conn seals no more while something
	// does; beyond that there are only answers that TLS itself gives a peer (RFC
	// 8446, section 4.6.3), which could ask for them and never read.
	maxSealed = 256 << 10
	// unsentMark is how much the kernel takes beyond what is on its way: more could not be
	// overtaken by a small call any more.
	unsentMark = 128 << 10
)

// Socket is the connection below a TLS connection that will be framed by a
// [Conn]:
//
//	tc := tls.Server(bus.NewSocket(nc), config)
//	err := tc.HandshakeContext(ctx)
//	…
//	conn := bus.NewConn(tc, budget)
//
// Until NewConn takes it over, which must be after the handshake, it is nc as it
// is. From then on it never waits: the output of TLS goes to a bounded buffer, which the
// Conn empties, since a write of crypto/tls that has timed out ends the
// connection; and a read returns bytes that the Conn has read ahead.
type Socket struct {
	net.Conn
	raw   syscall.RawConn // nil: nc cannot be tried without blocking
	taken atomic.Bool     // by a Conn

	ahead, unread []byte // read ahead, and the part that TLS has not taken; the reader's alone
	eof           bool   // the reader's alone

	mu      sync.Mutex // protects the fields below, but for waiting's readers
	budget  *Budget
	sealed  []byte // ciphertext; written up to start
	start   int
	waiting atomic.Int64 // len(sealed) - start
	werr    error        // why nothing can be written any more
}

// NewSocket makes a Socket of nc. On TCP it asks the kernel to hold little that is
// not on its way yet.
func NewSocket(nc net.Conn) *Socket {
	s := &Socket{Conn: nc}
	if sc, ok := nc.(syscall.Conn); ok {
		s.raw, _ = sc.SyscallConn()
	}
	if s.raw != nil && nc.LocalAddr().Network() == "tcp" {
		s.raw.Control(func(fd uintptr) { limitUnsent(int(fd), unsentMark) }) // a wish: older kernels lack it
	}
	return s
}

// Read implements [net.Conn].
func (s *Socket) Read(p []byte) (int, error) {
	if s.taken.Load() {
		return s.readAhead(p)
	}
	return s.Conn.Read(p)
}

// errWait: nothing is there. crypto/tls takes an error that is temporary for a
// deadline that has passed, after which it can be read on.
var errWait net.Error = waitError{}

type waitError struct{}

func (waitError) Error() string   { return "nothing has come yet" }
func (waitError) Timeout() bool   { return true }
func (waitError) Temporary() bool { return true }

// readAhead returns bytes that the Conn has read.
func (s *Socket) readAhead(p []byte) (int, error) {
	if len(s.unread) == 0 {
		if s.eof {
			return 0, io.EOF
		}
		return 0, errWait
	}
	n := copy(p, s.unread)
	s.unread = s.unread[n:]
	if len(s.unread) == 0 {
		s.drop()
	}
	return n, nil
}

// drop gives the read-ahead buffer back.
func (s *Socket) drop() {
	recycle(s.ahead)
	s.ahead, s.unread = nil, nil
}

// Write implements [net.Conn].
func (s *Socket) Write(p []byte) (int, error) {
	if !s.taken.Load() {
		return s.Conn.Write(p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.werr != nil {
		return 0, s.werr
	}
	if len(s.sealed)-s.start+len(p) > maxSealed {
		s.werr = ErrBacklog
		return 0, s.werr
	}
	if len(p) > SmallRest && cap(s.sealed) < readBuffer {
		s.sealed = append(readPool.Get().(*[readBuffer]byte)[:0], s.sealed...)
	}
	s.sealed = append(s.sealed, p...)
	s.count(len(p))
	return len(p), nil
}

// count notes that n more bytes wait. s.mu is held.
func (s *Socket) count(n int) {
	s.waiting.Add(int64(n))
	s.budget.Add(n)
}

// put makes one non-blocking write of the bytes that wait.
func (s *Socket) put(fd uintptr) (done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.start == len(s.sealed) {
		return true, nil
	}
	var n int
	for {
		if n, err = rawWrite(int(fd), s.sealed[s.start:]); err != syscall.EINTR {
			break
		}
	}
	if err == syscall.EAGAIN {
		return false, nil
	}
	if err != nil {
		s.werr = err
		s.forget()
		return true, err
	}
	s.start += n
	s.count(-n)
	if s.start < len(s.sealed) {
		return false, nil
	}
	s.sealed, s.start = recycle(s.sealed), 0
	return true, nil
}

// forget drops the bytes that wait. s.mu is held.
func (s *Socket) forget() {
	s.count(s.start - len(s.sealed))
	recycle(s.sealed)
	s.sealed, s.start = nil, 0
}

// take hands the Socket over to a Conn.
func (s *Socket) take(b *Budget) {
	s.budget = b
	s.taken.Store(true)
}

// Close implements [net.Conn]. The last output of TLS is written if that can be
// without waiting.
func (s *Socket) Close() error {
	if !s.taken.Load() {
		return s.Conn.Close()
	}
	// Not by raw.Write: it would wait for a writer that waits.
	s.raw.Control(func(fd uintptr) { s.put(fd) })
	s.mu.Lock()
	s.werr = net.ErrClosed
	s.forget()
	s.mu.Unlock()
	return s.Conn.Close()
}

// CloseWrite sends the end to the peer, if the connection below can.
func (s *Socket) CloseWrite() error {
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SetWriteDeadline implements [net.Conn]. It does nothing once a Conn has taken the
// Socket over: no write waits then, and crypto/tls sets deadlines of its own
// when it closes.
func (s *Socket) SetWriteDeadline(t time.Time) error {
	if s.taken.Load() {
		return nil
	}
	return s.Conn.SetWriteDeadline(t)
}

// SetDeadline implements [net.Conn].
func (s *Socket) SetDeadline(t time.Time) error {
	if s.taken.Load() {
		return s.Conn.SetReadDeadline(t)
	}
	return s.Conn.SetDeadline(t)
}

// A Pulse has the kernel give a TCP connection up when its peer was silent for as
// long as it may be: probes while nothing is sent, and TCP_USER_TIMEOUT for what
// was sent and is not acknowledged (tcp(7)).
//
// By itself TCP_USER_TIMEOUT gives up as well a peer that reads nothing for so
// long, though its machine answers: a caller that was stopped is not dead. So
// [Pulse.Check] must be called now and then. The nil Pulse does nothing.
type Pulse struct {
	raw   syscall.RawConn
	limit time.Duration

	checked time.Time // when the peer was last seen to take what is sent
	held    time.Time // since when it does not; zero: it does
}

// DefaultKeepAlive is how long a peer over TCP may be silent if nothing else is set.
const DefaultKeepAlive = 10 * time.Second

// MinKeepAlive is the least that a peer may be silent for: less is a bad moment of
// the network.
const MinKeepAlive = 3 * time.Second

// KeepAlive begins it. The peer may be silent for about d, at least 3 seconds.
// It returns nil if nc is not TCP.
func KeepAlive(nc net.Conn, d time.Duration) *Pulse {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	d = max(d, MinKeepAlive)
	const probes = 3
	idle := max(d/2, time.Second)
	tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idle, Interval: max((d-idle)/probes, time.Second), Count: probes})
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil // it is closed
	}
	p := &Pulse{raw: raw, limit: d, checked: time.Now()}
	raw.Control(func(fd uintptr) { setUserTimeout(int(fd), d) })
	return p
}

// Every returns how often Check must be called.
func (p *Pulse) Every() time.Duration { return p.limit / 3 }

// Check looks whether the peer takes the bytes sent. While it does not, and its
// machine answers the kernel's probes, the end is put off: it comes two limits
// after the last answer. Calls must not overlap.
func (p *Pulse) Check() {
	if p != nil {
		p.raw.Control(p.check)
	}
}

func (p *Pulse) check(fd uintptr) {
	moving, answered, err := tcpProgress(int(fd))
	if err != nil {
		return
	}
	now := time.Now()
	if moving {
		p.checked = now
		if !p.held.IsZero() {
			p.held = time.Time{}
			setUserTimeout(int(fd), p.limit)
		}
		return
	}
	if p.held.IsZero() {
		p.held = p.checked // at the earliest
	}
	// The kernel counts from when it began to probe. The sum also bounds the pause
	// that it makes before its next probe.
	setUserTimeout(int(fd), now.Sub(p.held)+2*p.limit-min(answered, 2*p.limit))
}
