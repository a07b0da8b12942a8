package bus

import (
	"context"
	"fbus/bus/args"
	"fbus/bus/wire"
	"io"
	"sync"
)

// sendStream is an output stream of a call that we serve.
type sendStream struct {
	inv    *Invocation
	stream wire.Stream

	mu     sync.Mutex // protects the fields below
	credit uint64
	more   chan struct{} // has room for one: credit came; nil until a writer has waited
}

func (s *sendStream) init(inv *Invocation, stream wire.Stream, credit uint64) {
	s.inv, s.stream, s.credit = inv, stream, credit
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

// take takes credit for at most n bytes; if there is none, more receives when there is.
func (s *sendStream) take(n int) (k int, more <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k = int(min(uint64(n), s.credit))
	s.credit -= uint64(k)
	if k == 0 && s.more == nil {
		s.more = make(chan struct{}, 1)
	}
	return k, s.more
}

// Write sends p, waiting for the caller's credit as it needs to.
func (s *sendStream) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		if err := s.inv.ctx.Err(); err != nil {
			return sent, context.Cause(s.inv.ctx)
		}
		n, more := s.take(min(len(p)-sent, wire.ChunkSize))
		if n == 0 {
			select {
			case <-more:
			case <-s.inv.ctx.Done():
			}
			continue
		}
		conn := s.inv.client.conn
		if err := conn.WaitSpace(s.inv.ctx); err != nil {
			return sent, err
		}
		if err := conn.Send(&wire.DataFrame{ID: s.inv.id, Stream: s.stream, Payload: p[sent : sent+n]}); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// Head returns the bytes of the input that came with the call, and Rest a reader for what
// follows them, nil if nothing does. They are for handlers that pass the input on without
// a copy, and are used instead of Input.
func (inv *Invocation) Head() []byte { return inv.head }

// Rest is described with Head.
func (inv *Invocation) Rest() io.Reader {
	if inv.rest == nil {
		return nil
	}
	return inv.rest
}

// input reads the head of an invocation's input, then the rest.
type input Invocation

func (in *input) Read(p []byte) (int, error) {
	switch {
	case len(in.head) > 0:
		n := copy(p, in.head)
		in.head = in.head[n:]
		return n, nil
	case in.rest != nil:
		return in.rest.Read(p)
	}
	return 0, io.EOF
}

func (in *input) WriteTo(w io.Writer) (total int64, err error) {
	if head := in.head; len(head) > 0 {
		in.head = nil
		n, err := w.Write(head)
		if total = int64(n); err != nil {
			return total, err
		}
	}
	if in.rest == nil {
		return total, nil
	}
	n, err := in.rest.WriteTo(w)
	return total + n, err
}

// inputStream is the input of a call that we serve, as it comes.
type inputStream struct {
	inv *Invocation

	mu       sync.Mutex // protects the fields below
	buf      []byte
	pos      int
	credit   int
	consumed int
	err      error
	more     chan struct{} // has room for one
}

// inputWindow is the credit for input. It does not grow: a program that is fed
// from a pipe takes no more at once.
const inputWindow = wire.InitialWindow

func newInputStream(inv *Invocation) *inputStream {
	return &inputStream{inv: inv, more: make(chan struct{}, 1)}
}

// open grants the first window.
func (s *inputStream) open() {
	s.mu.Lock()
	s.credit = inputWindow
	s.mu.Unlock()
	s.inv.client.conn.Send(&wire.GrantFrame{ID: s.inv.id, Stream: wire.Input, Bytes: inputWindow})
}

func (s *inputStream) signal() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *inputStream) push(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(p) > s.credit {
		return args.Errorf(args.CodeProtocol, "%d bytes of input with a credit of %d", len(p), s.credit)
	}
	if s.err != nil {
		return args.Errorf(args.CodeProtocol, "input after its end")
	}
	s.credit -= len(p)
	if s.pos > len(s.buf)/2 { // bytes that were read must not pile up
		s.buf, s.pos = s.buf[:copy(s.buf, s.buf[s.pos:])], 0
	}
	s.buf = append(s.buf, p...)
	s.signal()
	return nil
}

func (s *inputStream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil || s.err == io.EOF && err != io.EOF {
		s.err = err
	}
	s.signal()
}

// Read returns the next bytes, waiting for them; io.EOF after all of it, another error
// if the call was cancelled.
func (s *inputStream) Read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		if s.pos < len(s.buf) {
			n := copy(p, s.buf[s.pos:])
			s.pos += n
			if s.pos == len(s.buf) {
				s.buf, s.pos = s.buf[:0], 0
			}
			grant := s.grantable(n)
			s.mu.Unlock()
			if grant > 0 {
				s.inv.client.conn.Send(&wire.GrantFrame{ID: s.inv.id, Stream: wire.Input, Bytes: uint64(grant)})
			}
			return n, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return 0, err
		}
		select {
		case <-s.more:
		case <-s.inv.ctx.Done():
			return 0, context.Cause(s.inv.ctx)
		}
	}
}

// WriteTo passes the input on as it comes, without another copy.
func (s *inputStream) WriteTo(w io.Writer) (total int64, err error) {
	var p []byte
	for {
		s.mu.Lock()
		p, s.buf = s.buf[s.pos:], p[:0]
		s.pos = 0
		end := s.err
		grant := s.grantable(len(p))
		s.mu.Unlock()
		if len(p) > 0 {
			n, err := w.Write(p)
			total += int64(n)
			if err != nil {
				return total, err
			}
			if grant > 0 {
				s.inv.client.conn.Send(&wire.GrantFrame{ID: s.inv.id, Stream: wire.Input, Bytes: uint64(grant)})
			}
			continue
		}
		if end == io.EOF {
			return total, nil
		}
		if end != nil {
			return total, end
		}
		select {
		case <-s.more:
		case <-s.inv.ctx.Done():
			return total, context.Cause(s.inv.ctx)
		}
	}
}

// grantable returns how much to grant after n more bytes were read. s.mu is held.
func (s *inputStream) grantable(n int) int {
	s.consumed += n
	if s.consumed < inputWindow/4 || s.err != nil {
		return 0
	}
	grant := s.consumed
	s.consumed = 0
	s.credit += grant
	return grant
}
