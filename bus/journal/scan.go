package journal

import (
	"bufio"
	"bytes"
	"io"
	"slices"
	"sync"
)

// view is what can be read at one time. It stays as it is while more is written
// and files are moved or removed.
type view struct {
	store   *store
	segs    []viewed // oldest first
	unsaved []line
	last    uint64
	changed <-chan struct{} // closed when there is more
	broken  error           // a file could not be read
}

type viewed struct {
	*segment
	size    int64
	name    string
	damaged bool
}

// view returns what can be read now, nil if the store is closed. It is to be
// released.
func (s *store) view() *view {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	v := &view{store: s, unsaved: slices.Clone(s.unsaved), last: s.last, changed: s.changed}
	for i, seg := range s.segs {
		seg.refs++
		v.segs = append(v.segs, viewed{segment: seg, size: seg.size, name: s.segName(i)})
	}
	return v
}

// release gives the files back, and says once for each what damage was seen.
func (s *store) release(v *view) {
	for i := range v.segs {
		if seg := &v.segs[i]; seg.damaged && !seg.warned.Swap(true) {
			s.opts.Warn("%s: lines in it are damaged: they are skipped", seg.name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seg := range v.segs {
		seg.release()
	}
}

// backwards calls f with every intact line, the last one first, until f returns
// false. The text is valid only in the call.
func (v *view) backwards(f func(line) bool) {
	for _, l := range slices.Backward(v.unsaved) {
		if !f(l) {
			return
		}
	}
	for i := range slices.Backward(v.segs) {
		if !v.segBackwards(&v.segs[i], f) {
			return
		}
	}
}

// blockSize is how much of a file is read at once from its end: more than a line.
const blockSize = 4 * maxLine

func (v *view) segBackwards(seg *viewed, f func(line) bool) bool {
	buf := make([]byte, min(blockSize, seg.size))
	for end := seg.size; end > 0; {
		start := max(0, end-blockSize)
		block := buf[:end-start]
		n, err := seg.f.ReadAt(block, start)
		if err == io.EOF {
			clear(block[n:]) // somebody has cut the file: as good as damage
		} else if err != nil {
			v.broken = plain(seg.name, err)
			return false
		}
		block = bytes.TrimSuffix(block, []byte{'\n'})
		for {
			i := bytes.LastIndexByte(block, '\n')
			if i < 0 && start > 0 {
				break // the rest of it is in the block before
			}
			if l, ok := seg.check(block[i+1:]); ok && !f(l) {
				return false
			}
			if i < 0 {
				return true
			}
			block = block[:i]
		}
		if len(block) > maxLine { // no line of ours, however far it goes back
			seg.damaged = true
			block = nil
		}
		end = start + int64(len(block))
		if len(block) > 0 {
			end++ // with its newline
		}
	}
	return true
}

// check tells a line of ours from damage.
func (seg *viewed) check(text []byte) (line, bool) {
	if len(text) == 0 {
		return line{}, false
	}
	seq := seqOf(text)
	if seq == 0 || !intact(text) {
		seg.damaged = true
		return line{}, false
	}
	return line{seq, text}, true
}

// forwards calls f with every intact line whose seq is greater than after, in
// order, until f returns false. The text is valid only in the call.
func (v *view) forwards(after uint64, f func(line) bool) {
	next := func(l line) bool {
		if l.seq <= after { // also one that stands in a file and in memory, being written just now
			return true
		}
		after = l.seq
		return f(l)
	}
	for i := v.startSegment(after); i < len(v.segs); i++ {
		seg := &v.segs[i]
		if !v.segForwards(seg, seg.seek(after), func(_ int64, l line) bool { return next(l) }) {
			return
		}
	}
	for _, l := range v.unsaved {
		if !next(l) {
			return
		}
	}
}

// startSegment is the newest segment that begins at or before the entry after
// after.
func (v *view) startSegment(after uint64) int {
	for i := range slices.Backward(v.segs) {
		seg := &v.segs[i]
		first := seg.first.Load()
		if first == 0 {
			v.segForwards(seg, 0, func(_ int64, l line) bool {
				first = l.seq
				return false
			})
			v.broken = nil // it comes up again
			seg.first.Store(first)
		}
		if first > 0 && first <= after+1 {
			return i
		}
	}
	return 0
}

// seek finds a place in a segment with no entry of interest before it: the start
// of a line, not far before the first one whose seq is greater than after.
func (seg *viewed) seek(after uint64) int64 {
	lo, hi := int64(0), seg.size
	for hi-lo > chunkSize {
		mid := lo + (hi-lo)/2
		at, seq := int64(0), uint64(0)
		(&view{}).segForwards(&viewed{segment: seg.segment, size: hi}, mid, func(offset int64, l line) bool {
			at, seq = offset, l.seq
			return false
		})
		if seq == 0 || seq > after {
			hi = mid
		} else {
			lo = at
		}
	}
	return lo
}

// readers have room for every line of ours.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 2*maxLine) }}

// segForwards calls f with the offset of every intact line from start on.
func (v *view) segForwards(seg *viewed, start int64, f func(offset int64, l line) bool) bool {
	r := readers.Get().(*bufio.Reader)
	defer readers.Put(r)
	r.Reset(io.NewSectionReader(seg.f, start, seg.size-start))
	for offset := start; ; {
		text, err := r.ReadSlice('\n')
		n, whole := int64(len(text)), err == nil
		for err == bufio.ErrBufferFull { // no line of ours
			var more []byte
			more, err = r.ReadSlice('\n')
			n += int64(len(more))
		}
		switch {
		case err == io.EOF && n == 0:
			return true
		case err != nil && err != io.EOF:
			v.broken = plain(seg.name, err)
			return false
		case !whole:
			seg.damaged = true
		default:
			if l, ok := seg.check(text[:n-1]); ok && !f(offset, l) {
				return false
			}
		}
		offset += n
	}
}
