package journal

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	chunkSize   = 64 << 10 // written at once
	unsavedSize = 1 << 20  // of lines that are kept in memory while the disk takes none
	retryFirst  = time.Second
	retryMost   = 30 * time.Second
)

// store is what of a journal can be read: its files, and lines that could not be
// written to them yet. The writer alone changes it.
type store struct {
	opts  *Options
	files *files
	enc   encoder
	buf   []byte
	write func(f *os.File, p []byte, at int64) (int, error) // a test makes it fail

	err     error         // why nothing can be written now
	retryAt time.Time     // when to try again
	pause   time.Duration // the next one
	lost    uint64        // lines that unsaved had no room for
	lostSeq uint64        // of the last of them

	mu      sync.Mutex    // protects what follows; held for moments only, never over I/O
	segs    []*segment    // oldest first, the last is written to
	unsaved []line        // oldest first
	held    int           // bytes of unsaved
	last    uint64        // seq of the last entry that can be read
	changed chan struct{} // closed when last rises, or the store closes; nil: nobody waits
	closed  bool
}

// segment is a file of the journal.
type segment struct {
	f      *os.File
	size   int64         // bytes that can be read: whole lines
	refs   int           // the store and the readers; closed with the last
	first  atomic.Uint64 // seq of the first entry; 0: not known
	warned atomic.Bool   // of damage
}

// line is an entry as it stands in a file.
type line struct {
	seq  uint64
	text []byte // without the newline
}

func writeAt(f *os.File, p []byte, at int64) (int, error) { return f.WriteAt(p, at) }

func (s *store) open(o *Options) error {
	s.opts, s.write = o, writeAt
	var err error
	if s.files, err = openFiles(o.Dir); err != nil {
		return err
	}
	list, err := s.files.existing(o.Files)
	if err != nil {
		s.files.close()
		return err
	}
	for _, f := range list {
		s.segs = append(s.segs, &segment{f: f, refs: 1})
	}
	for i, seg := range s.segs {
		if err := s.repair(seg, s.segName(i)); err != nil {
			s.close()
			return err
		}
	}
	v := s.view()
	defer s.release(v)
	v.backwards(func(l line) bool {
		s.last = l.seq
		return false
	})
	return nil
}

// segName is the path of the i-th segment, for messages.
func (s *store) segName(i int) string { return s.files.join(fileName(len(s.segs) - 1 - i)) }

// repair cuts off the line at a file's end that a crash has left half written.
func (s *store) repair(seg *segment, name string) error {
	st, err := seg.f.Stat()
	if err != nil {
		return plain(name, err)
	}
	seg.size = st.Size()
	tail := make([]byte, min(seg.size, maxLine))
	if _, err := seg.f.ReadAt(tail, seg.size-int64(len(tail))); err != nil && err != io.EOF {
		return plain(name, err)
	}
	torn := len(tail) - 1 - bytes.LastIndexByte(tail, '\n')
	if torn == 0 {
		return nil
	}
	if torn == maxLine { // longer than any line of ours: damage, which readers skip
		_, err := seg.f.WriteAt([]byte{'\n'}, seg.size)
		seg.size++
		return err
	}
	s.opts.Warn("%s: its last line was cut short, as by a crash: %d bytes are dropped", name, torn)
	seg.size -= int64(torn)
	if err := seg.f.Truncate(seg.size); err != nil {
		return plain(name, err)
	}
	return nil
}

// put writes entries, or keeps them while that can not be done.
func (s *store) put(batch []Entry) {
	if s.err != nil && !time.Now().Before(s.retryAt) {
		s.retry()
	}
	limit := int(min(chunkSize, s.opts.MaxBytes/8))
	buf := s.buf[:0]
	for i := range batch {
		if buf = s.enc.line(buf, &batch[i]); len(buf) >= limit {
			s.save(buf)
			buf = buf[:0]
		}
	}
	s.save(buf)
	s.buf = buf[:0]
	if len(batch) > 0 {
		s.publish(batch[len(batch)-1].Seq)
	}
}

// publish tells those who wait of new entries.
func (s *store) publish(last uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = last
	s.wakeReaders()
}

func (s *store) wakeReaders() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// save writes lines, or keeps them.
func (s *store) save(p []byte) {
	if len(p) == 0 {
		return
	}
	if s.err == nil {
		err := s.append(p)
		if err == nil {
			return
		}
		s.err, s.pause = err, retryFirst
		s.retryAt = time.Now().Add(s.pause)
		s.opts.Warn("the log can not be written: %v: its last entries are kept in memory until it can", err)
	}
	s.keep(p)
}

// append writes lines at the end of the current file, or of a new one if they do
// not fit.
func (s *store) append(p []byte) error {
	seg := s.segs[len(s.segs)-1]
	if seg.size > 0 && seg.size+int64(len(p)) > s.opts.MaxBytes {
		f, err := s.files.rotate(s.opts.Files)
		if err != nil {
			return err
		}
		seg = &segment{f: f, refs: 1}
		s.mu.Lock()
		s.segs = append(s.segs, seg)
		if len(s.segs) > s.opts.Files {
			s.segs[0].release()
			s.segs = slices.Delete(s.segs, 0, 1)
		}
		s.mu.Unlock()
	}
	if _, err := s.write(seg.f, p, seg.size); err != nil {
		seg.f.Truncate(seg.size) // what was written of it is written again
		return plain(s.files.join(currentName), err)
	}
	s.mu.Lock()
	seg.size += int64(len(p))
	s.mu.Unlock()
	return nil
}

// keep holds lines in memory, the last ones if there are too many.
func (s *store) keep(p []byte) {
	p = bytes.Clone(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	for text := range bytes.Lines(p) {
		text = bytes.TrimSuffix(text, []byte{'\n'})
		s.unsaved = append(s.unsaved, line{seqOf(text), text})
		s.held += len(text)
	}
	n := 0
	for ; s.held > unsavedSize; n++ {
		s.held -= len(s.unsaved[n].text)
		s.lost, s.lostSeq = s.lost+1, s.unsaved[n].seq
	}
	s.unsaved = slices.Delete(s.unsaved, 0, n)
}

// retryIn is how long to wait before the disk is tried again.
func (s *store) retryIn() (d time.Duration, failing bool) {
	return time.Until(s.retryAt), s.err != nil
}

// retry writes what is kept. An entry in the place of those that were lost says
// how many they are.
func (s *store) retry() {
	lost := s.lost
	if lost > 0 {
		e := missing(s.lostSeq, lost, "the disk took none")
		if s.err = s.append(s.enc.line(nil, &e)); s.err == nil {
			s.lost = 0
		}
	} else {
		s.err = nil
	}
	for s.err == nil && len(s.unsaved) > 0 {
		var chunk []byte
		n := 0
		for limit := int(min(chunkSize, s.opts.MaxBytes/8)); n < len(s.unsaved) && (n == 0 || len(chunk) < limit); n++ {
			chunk = append(append(chunk, s.unsaved[n].text...), '\n')
		}
		if s.err = s.append(chunk); s.err == nil {
			s.forget(n)
		}
	}
	if s.err != nil {
		s.pause = min(2*s.pause, retryMost)
		s.retryAt = time.Now().Add(s.pause)
		return
	}
	if lost > 0 {
		s.opts.Warn("the log can be written again: %d entries are missing from it", lost)
	} else {
		s.opts.Warn("the log can be written again: no entry is missing from it")
	}
}

// forget drops the first n lines of unsaved.
func (s *store) forget(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.unsaved[:n] {
		s.held -= len(l.text)
	}
	s.unsaved = slices.Delete(s.unsaved, 0, n)
}

// close ends the store. What could not be written is tried once more.
func (s *store) close() error {
	if s.err != nil {
		s.retry()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, seg := range s.segs {
		seg.release()
	}
	s.segs = nil
	s.wakeReaders()
	s.files.close()
	if s.err != nil {
		return fmt.Errorf("%d entries of the log are lost: %w", uint64(len(s.unsaved))+s.lost, s.err)
	}
	return nil
}

// release gives a segment back. The store's mu is held.
func (seg *segment) release() {
	if seg.refs--; seg.refs == 0 {
		seg.f.Close()
	}
}

// seqOf reads the number that a line begins with; 0 if it has none.
func seqOf(text []byte) uint64 {
	rest, ok := bytes.CutPrefix(text, []byte(`{"seq":`))
	end := bytes.IndexByte(rest, ',')
	if !ok || end < 0 {
		return 0
	}
	n, err := strconv.ParseUint(string(rest[:end]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
