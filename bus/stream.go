package bus

import (
	"context"
	"fbus/bus/args"
	"fbus/bus/wire"
	"io"
	"sync"
)

// sendStream is a stream that this side sends, at the pace of the peer's grants.
type sendStream struct {
	conn   *wire.Conn
	id     uint64
	stream wire.Stream
	ctx    context.Context // ends the stream

	mu     sync.Mutex // protects the fields below
	credit uint64
	more   chan struct{} // has room for one: credit came; nil until a sender has waited
}

func (s *sendStream) grant(n uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.credit += n; s.credit > wire.MaxWindow {
		return args.Errorf(args.CodeProtocol, "credit of %d bytes exceeds the limit of %d", s.credit, wire.MaxWindow)
	}
	select {
	case s.more <- struct{}{}:
	default:
	}
	return nil
}

// takeAll takes credit for n bytes that go out with END, or none.
func (s *sendStream) takeAll(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uint64(n) > s.credit || n > wire.ChunkSize {
		return false
	}
	s.credit -= uint64(n)
	return true
}

// take waits for credit and takes at most n bytes of it; 0 means that the stream has ended.
func (s *sendStream) take(n int) int {
	for s.ctx.Err() == nil {
		s.mu.Lock()
		k := min(uint64(n), s.credit)
		s.credit -= k
		if k == 0 && s.more == nil {
			s.more = make(chan struct{}, 1)
		}
		more := s.more
		s.mu.Unlock()
		if k > 0 {
			return int(k)
		}
		select {
		case <-more:
		case <-s.ctx.Done():
		}
	}
	return 0
}

// giveBack returns credit that was taken and not used.
func (s *sendStream) giveBack(n int) {
	s.mu.Lock()
	s.credit += uint64(n)
	s.mu.Unlock()
}

// send sends bytes for which credit was taken.
func (s *sendStream) send(p []byte) error {
	if err := s.conn.WaitSpace(s.ctx); err != nil {
		return err
	}
	return s.conn.Send(&wire.DataFrame{ID: s.id, Stream: s.stream, Payload: p})
}

// Write sends p, waiting for the peer's credit as it needs to.
func (s *sendStream) Write(p []byte) (sent int, err error) {
	for sent < len(p) {
		n := s.take(min(len(p)-sent, wire.ChunkSize))
		if n == 0 {
			return sent, context.Cause(s.ctx)
		}
		if err := s.send(p[sent : sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// recvStream is a stream that this side receives, and grants what the peer may send. One
// goroutine at a time reads it.
type recvStream struct {
	conn   *wire.Conn
	id     uint64
	stream wire.Stream
	most   int           // limits the window
	wake   chan struct{} // has room for one: bytes or the end have come; nil without a reader

	got, rest []byte // for the reader: the bytes it got last, and the unread part of them
	over      error  // for the reader: the end, once it got the last bytes
	first     int    // for the reader: what it grants when it begins

	mu       sync.Mutex // protects the fields below
	buf      []byte
	credit   int // bytes that the peer may still send
	window   int
	consumed int   // since the last GRANT
	end      error // io.EOF, or why the rest does not come; nil while the stream is open
}

// maxOutputWindow is how far a window for output grows. One for input does not grow: a
// program that is fed from a pipe takes no more at once.
const maxOutputWindow = 1 << 20

func (s *recvStream) init(conn *wire.Conn, id uint64, stream wire.Stream, credit, most int) {
	s.conn, s.id, s.stream, s.credit, s.window, s.most = conn, id, stream, credit, wire.InitialWindow, most
}

// signal wakes the reader of the stream.
func (s *recvStream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// push stores bytes that came. More than was granted breaks the protocol.
func (s *recvStream) push(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(p) > s.credit:
		return args.Errorf(args.CodeProtocol, "%d bytes with a credit of %d", len(p), s.credit)
	case s.end == io.EOF:
		return errInputEnded
	case s.end != nil, len(p) == 0: // nobody reads on: the peer does not know that yet
		return nil
	}
	s.credit -= len(p)
	s.buf = append(s.buf, p...)
	s.signal()
	return nil
}

// errInputEnded is about a frame of an input after EOF, or after a CALL that had all of it.
var errInputEnded = args.Errorf(args.CodeProtocol, "it comes after the input's end")

// finish ends an input at EOF. The nil recvStream is one that CALL has ended already.
func (s *recvStream) finish() error {
	if s == nil {
		return errInputEnded
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.end {
	case nil:
		s.end = io.EOF
		s.signal()
	case io.EOF:
		return errInputEnded
	}
	return nil
}

// close ends the stream: with io.EOF after all that has come, or with a failure.
func (s *recvStream) close(end error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end == nil || s.end == io.EOF {
		s.end = end
	}
	s.signal()
}

// next waits for bytes to read, which are valid until its next call, or for the end.
func (s *recvStream) next() ([]byte, error) {
	if n := s.first; n > 0 {
		s.first = 0
		s.passed(n)
	}
	for len(s.rest) == 0 {
		if s.over != nil {
			return nil, s.over
		}
		s.mu.Lock()
		s.got, s.buf = s.buf, s.got[:0]
		s.rest = s.got
		s.over = s.end
		s.mu.Unlock()
		if len(s.rest) == 0 && s.over == nil {
			<-s.wake
		}
	}
	return s.rest, nil
}

// passed grants as much as was read: nothing before half a window was, so that small
// writes do not cost a frame each. A reader that keeps up gets a larger window.
func (s *recvStream) passed(n int) {
	if s.over != nil {
		return
	}
	s.mu.Lock()
	s.consumed += n
	grant := 0
	if s.end == nil && s.consumed >= s.window/2 {
		grant, s.consumed = s.consumed, 0
		if len(s.buf) == 0 && s.window < s.most {
			grant += s.window
			s.window *= 2
		}
		s.credit += grant
	}
	s.mu.Unlock()
	if grant > 0 {
		s.conn.Send(&wire.GrantFrame{ID: s.id, Stream: s.stream, Bytes: uint64(grant)})
	}
}

// Read returns the next bytes, waiting for them; io.EOF after all of them, another error
// if the call was cancelled.
func (s *recvStream) Read(p []byte) (int, error) {
	next, err := s.next()
	if err != nil {
		return 0, err
	}
	n := copy(p, next)
	s.rest = next[n:]
	s.passed(n)
	return n, nil
}

// WriteTo passes the stream on as it comes, without another copy.
func (s *recvStream) WriteTo(w io.Writer) (total int64, err error) {
	for {
		p, err := s.next()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		s.rest = nil
		n, err := w.Write(p)
		total += int64(n)
		s.passed(len(p)) // also if w fails: its caller may drain the stream
		if err != nil {
			return total, err
		}
	}
}
