package fanout

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"

	"fbus/bus/wire"
)

// SharedInput is one input for many calls. It is read as the first of them asks
// for it and kept, in a temporary file without a name, for the others.
type SharedInput struct {
	source io.Reader

	mu      sync.Mutex // protects the fields below
	cond    *sync.Cond // more has come, or the end
	reading bool       // somebody reads the source
	file    *os.File   // what has come, of a source that can not be read twice
	size    int64
	err     error // io.EOF or what went wrong
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
		return nil, err
	}
	os.Remove(f.Name())
	s.file = f
	return s, nil
}

// Reader returns a reader of all of it, for one call.
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

// Read implements io.Reader.
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

// read takes more of the source. mu is held, but not while it waits.
func (s *SharedInput) read(n int) {
	s.reading = true
	buf := make([]byte, n)
	s.mu.Unlock()
	n, err := s.source.Read(buf)
	s.mu.Lock()
	s.reading = false
	if n > 0 {
		if _, werr := s.file.WriteAt(buf[:n], s.size); werr != nil {
			err = werr
		} else {
			s.size += int64(n)
		}
	}
	if err != nil && s.err == nil {
		s.err = err
	}
	s.cond.Broadcast()
}
