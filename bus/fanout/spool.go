package fanout

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"fbus/bus/args"
	"fbus/bus/wire"
)

// spillAt is how many bytes of one output stay in memory. The rest goes to a temporary
// file without a name.
const spillAt = 1 << 20

// Output holds a call's stdout until its turn comes.
type Output struct {
	mem   []byte
	file  *os.File // nil: mem is all
	size  int64
	limit int64 // of size; 0: none
	last  byte
	held  *atomic.Int64 // bytes in memory, of all outputs
}

func (r *Runner) output() *Output {
	if o, ok := r.spare.Get().(*Output); ok {
		return o
	}
	return &Output{held: &r.held, limit: r.MaxOutput}
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if o.limit > 0 && o.size+int64(len(p)) > o.limit {
		return 0, args.Errorf(args.CodeOutputLimit, "the output exceeds the limit of %d bytes for one result", o.limit)
	}
	if o.file == nil && (len(o.mem)+len(p) > spillAt || o.held.Load() > maxHeld) {
		f, err := os.CreateTemp("", "fbus-output-")
		if err != nil {
			return 0, noRoom(err)
		}
		os.Remove(f.Name())
		o.file = f
	}
	o.size += int64(len(p))
	o.last = p[len(p)-1]
	if o.file != nil {
		n, err := o.file.Write(p)
		return n, noRoom(err)
	}
	o.mem = append(o.mem, p...)
	o.held.Add(int64(len(p)))
	return len(p), nil
}

// noRoom names the directory where a result could not be kept, not a file without a name.
func noRoom(err error) error {
	if err != nil {
		err = args.Errorf(args.CodeInternal, "output: %v", inTempDir(err))
	}
	return err
}

func inTempDir(err error) error {
	return &os.PathError{Op: "write", Path: os.TempDir(), Err: args.WithoutPath(err)}
}

// Size returns the number of bytes written.
func (o *Output) Size() int64 { return o.size }

// Last returns the last byte, 0 if there is none.
func (o *Output) Last() byte { return o.last }

// Reader returns a reader of all of it. Only one may be in use.
func (o *Output) Reader() io.Reader {
	if o.file == nil {
		return bytes.NewReader(o.mem)
	}
	return io.MultiReader(bytes.NewReader(o.mem), io.NewSectionReader(o.file, 0, o.size))
}

// Bytes returns everything that was written. It may alias o's memory.
func (o *Output) Bytes() ([]byte, error) {
	if o.file == nil {
		return o.mem, nil
	}
	b := bytes.NewBuffer(make([]byte, 0, o.size+bytes.MinRead))
	_, err := b.ReadFrom(o.Reader())
	return b.Bytes(), err
}

func (o *Output) reset() {
	o.held.Add(-int64(len(o.mem)))
	o.mem = o.mem[:0]
	if cap(o.mem) > 64<<10 {
		o.mem = nil
	}
	if o.file != nil {
		o.file.Close()
		o.file = nil
	}
	o.size, o.last = 0, 0
}

// SharedInput is one input for many calls. It is read when the first of them asks for
// it and kept, in a temporary file without a name, for the others.
type SharedInput struct {
	source io.Reader

	mu      sync.Mutex // protects the fields below
	cond    *sync.Cond // more has come, or the end
	reading bool       // a reader reads the source
	file    *os.File   // the bytes so far, of a source that cannot be read twice
	size    int64
	err     error // io.EOF or a failure
	whole   []byte
}

// NewSharedInput shares a source. Small regular files are read at once.
func NewSharedInput(source io.Reader) (*SharedInput, error) {
	s := &SharedInput{source: source}
	s.cond = sync.NewCond(&s.mu)
	if f, ok := source.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && st.Size() <= wire.MaxInlineInput {
			head, err := io.ReadAll(io.LimitReader(f, wire.MaxInlineInput+1))
			if err != nil {
				return nil, err
			}
			if len(head) <= wire.MaxInlineInput {
				s.whole = head
				return s, nil
			}
			s.source = io.MultiReader(bytes.NewReader(head), f) // it has grown
		}
	}
	f, err := os.CreateTemp("", "fbus-input-")
	if err != nil {
		return nil, inTempDir(err)
	}
	os.Remove(f.Name())
	s.file = f
	return s, nil
}

// Reader returns a reader of the whole input, for one call.
func (s *SharedInput) Reader() io.Reader {
	if s.file == nil {
		return bytes.NewReader(s.whole)
	}
	return &sharedReader{s: s}
}

// Close ends all readers.
func (s *SharedInput) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	if s.err == nil {
		s.err = errors.New("closed")
	}
	s.cond.Broadcast()
	return s.file.Close()
}

type sharedReader struct {
	s   *SharedInput
	pos int64
}

func (r *sharedReader) Read(p []byte) (int, error) {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for r.pos == s.size {
		switch {
		case s.err != nil:
			return 0, s.err
		case s.reading:
			s.cond.Wait()
		default:
			s.read(len(p))
		}
	}
	n, err := s.file.ReadAt(p[:min(int64(len(p)), s.size-r.pos)], r.pos)
	r.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// read reads more of the source. mu is held, but not while it waits.
func (s *SharedInput) read(n int) {
	s.reading = true
	buf := make([]byte, n)
	s.mu.Unlock()
	n, err := s.source.Read(buf)
	s.mu.Lock()
	s.reading = false
	if n > 0 {
		if _, werr := s.file.WriteAt(buf[:n], s.size); werr != nil {
			err = inTempDir(werr)
		} else {
			s.size += int64(n)
		}
	}
	if err != nil && s.err == nil {
		s.err = err
	}
	s.cond.Broadcast()
}
