package bus

import (
	"context"
	"fbus/bus/args"
	"fbus/bus/wire"
	"io"
	"os"
	"sync"
)

// readAheadInput is the part of an input that could be read without waiting.
type readAheadInput struct {
	head     []byte
	complete bool  // head is all of it
	start    int64 // the file's position, for a retry
	seekable bool
	err      error
}

// readAhead reads an input as far as it is there: a small one goes out whole with its
// call, and one that is slow to come does not hold the call up. A file is read up to the
// limit, anything else only while a read would not wait.
func readAhead(r io.Reader) (in readAheadInput) {
	if s, ok := r.(io.Seeker); ok {
		pos, err := s.Seek(0, io.SeekCurrent)
		in.start, in.seekable = pos, err == nil
	}
	size := wire.MaxInlineInput + 1
	ready := func() bool { return true }
	switch r := r.(type) {
	case nil:
		in.complete = true
		return in
	case *os.File:
		st, err := r.Stat()
		if err != nil {
			in.err = err
			return in
		}
		if !st.Mode().IsRegular() {
			in.seekable = false
			ready = func() bool { return readable(r) }
		}
	case interface{ Len() int }:
		if size = r.Len() + 1; size > wire.MaxInlineInput+1 {
			return in
		}
	default:
		return in
	}
	in.head = make([]byte, 0, size)
	for len(in.head) < size && ready() {
		n, err := r.Read(in.head[len(in.head):size])
		in.head = in.head[:len(in.head)+n]
		if err == io.EOF || err == nil && n == 0 {
			in.complete = len(in.head) <= wire.MaxInlineInput
			break
		}
		if err != nil {
			in.err = err
			break
		}
	}
	return in
}

// fill puts the input, or a small beginning of it, into CALL. An input that cannot be
// whole is better kept here than in the queue of the node.
func (in *readAheadInput) fill(f *wire.CallFrame) {
	if in.complete {
		f.Input = in.head
		f.Flags |= wire.FlagInputEnd
		return
	}
	if len(in.head) <= wire.SmallRest {
		f.Input = in.head
	}
}

// rewind brings a file back to where the input began.
func (in *readAheadInput) rewind(r io.Reader) bool {
	s, ok := r.(io.Seeker)
	if !ok || !in.seekable {
		return false
	}
	if _, err := s.Seek(in.start, io.SeekStart); err != nil {
		return false
	}
	in.head = nil
	return true
}

// inputPump sends a call's input as it is granted. Its goroutine starts with
// the first grant: a queued call has none.
type inputPump struct {
	sendStream
	call   *outCall
	head   []byte // read ahead and not sent with CALL
	r      io.Reader
	cancel context.CancelFunc
	start  sync.Once
	done   chan struct{} // closed when run has ended, or never will begin
}

func newInputPump(call *outCall, in *readAheadInput, r io.Reader) *inputPump {
	p := &inputPump{call: call, r: r, done: make(chan struct{})}
	if len(in.head) > wire.SmallRest {
		p.head = in.head
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// stop ends the pump. For a file it waits until that is no longer read, since
// the next try rewinds it; anything else may block for as long as it likes.
func (p *inputPump) stop(file bool) {
	p.cancel()
	p.start.Do(func() { close(p.done) }) // a late grant must not start it
	if file {
		<-p.done
	}
}

// grant adds credit.
func (p *inputPump) grant(n uint64) error {
	err := p.sendStream.grant(n)
	p.start.Do(func() { go p.run() }) // ends with the input or, once a Read returns, with the call
	return err
}

// run sends the head, then what it reads, then EOF.
func (p *inputPump) run() {
	defer close(p.done)
	if _, err := p.Write(p.head); err != nil {
		return
	}
	buf := make([]byte, wire.ChunkSize)
	for {
		k := p.take(len(buf))
		if k == 0 {
			return
		}
		n, err := p.r.Read(buf[:k])
		p.giveBack(k - n)
		if n > 0 && p.send(buf[:n]) != nil {
			return
		}
		switch {
		case p.ctx.Err() != nil:
			return
		case err == io.EOF:
			p.conn.Send(&wire.EOFFrame{ID: p.id})
			return
		case err != nil: // an input that cannot be read must not look complete
			p.call.abandon(&args.Error{Code: args.CodeInternal, Message: "input cannot be read: " + reason(err), Err: err})
			return
		}
	}
}

// readable reports whether a read of f would return at once.
func readable(f *os.File) bool {
	rc, err := f.SyscallConn()
	if err != nil {
		return false
	}
	ready := false
	if err := rc.Control(func(fd uintptr) { ready = wire.PollIn(int(fd)) }); err != nil {
		return false
	}
	return ready
}
