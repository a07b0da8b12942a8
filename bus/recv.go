package bus

import (
	"fbus/bus/args"
	"fbus/bus/wire"
	"io"
	"sync"
)

// Window bookkeeping of one stream that we receive.
type recvStream struct {
	call   *outCall
	stream wire.Stream
	wake   chan struct{} // has room for one: bytes or the end have come; nil without a consumer

	mu       sync.Mutex // protects the fields below
	buf      []byte
	spare    []byte // buf's other half, written out by the consumer
	credit   int    // bytes that the peer may still send
	window   int
	consumed int // since the last GRANT
	ended    bool
	wErr     error
}

func (s *recvStream) init(call *outCall, stream wire.Stream) {
	s.call, s.stream = call, stream
	s.credit, s.window = wire.InitialWindow, wire.InitialWindow
}

// expect makes the channel that a consumer waits on.
func (s *recvStream) expect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake = make(chan struct{}, 1)
}

// signal wakes the consumer of the stream. s.mu is held.
func (s *recvStream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// push stores bytes that came. More than was granted breaks the protocol.
func (s *recvStream) push(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(p) > s.credit {
		return args.Errorf(args.CodeProtocol, "%d bytes of stream %d with a credit of %d", len(p), s.stream, s.credit)
	}
	s.credit -= len(p)
	s.buf = append(s.buf, p...)
	s.signal()
	return nil
}

// pass writes out the buffer and grants as much again.
func (s *recvStream) pass(w io.Writer) error {
	s.mu.Lock()
	p := s.buf
	if len(p) == 0 {
		defer s.mu.Unlock()
		return s.wErr
	}
	s.buf, s.spare = s.spare[:0], nil
	s.mu.Unlock()
	if s.stream == wire.Output {
		s.call.wrote = true
	}
	var err error
	if w != nil && s.err() == nil {
		_, err = w.Write(p)
	}
	s.mu.Lock()
	s.spare = p[:0]
	if err != nil && s.wErr == nil {
		s.wErr = err
	}
	n := s.grantable(len(p))
	s.mu.Unlock()
	if n > 0 {
		s.call.client.conn.Send(&wire.GrantFrame{ID: s.call.id, Stream: s.stream, Bytes: uint64(n)})
	}
	return err
}

// maxRecvWindow is how far a window grows here. s.mu is held.
const maxRecvWindow = 1 << 20

// grantable returns how much to grant after n more bytes were consumed: nothing before
// half a window is, so that small writes do not cost a frame each. A consumer
// that keeps up gets a larger window.
func (s *recvStream) grantable(n int) int {
	s.consumed += n
	if s.ended || s.consumed < s.window/2 {
		return 0
	}
	grant := s.consumed
	s.consumed = 0
	if len(s.buf) == 0 && s.window < maxRecvWindow {
		grant += s.window
		s.window *= 2
	}
	s.credit += grant
	return grant
}

// close marks the end of the stream.
func (s *recvStream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.signal()
}

// finished reports whether all was passed on.
func (s *recvStream) finished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended && len(s.buf) > 0 {
		s.signal()
	}
	return s.ended && len(s.buf) == 0
}

func (s *recvStream) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wErr
}
