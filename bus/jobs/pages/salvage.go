package pages

import (
	"encoding/binary"
	"io"
	"os"
)

// salvager walks what Check has looked over before, and takes everything.
type salvager struct {
	*checker
	each func(Entry, Where) error
	err  error // of each: all stops
	seen set
	left int64 // bytes that may be read yet: pages that overlap are bounded too
}

// place is where a salvager is.
type place struct {
	bucket string
	where  Where
	tree   bool // on the way down from the root
	inline bool // in a bucket that has no page of its own, and so no buckets
	depth  int
}

func salvage(r io.ReaderAt, size int64, each func(Entry, Where) error) error {
	s := &salvager{checker: check(r, size, nil), each: each}
	if size == 0 {
		return nil
	}
	if !s.known {
		s.guessPageSize()
	}
	s.seen, s.left = newSet(s.pages()), 16*size+chunkSize
	if s.known {
		s.walk(place{tree: true}, s.meta.root, nil)
	}
	for _, free := range []bool{false, true} {
		for id := uint64(2); id < s.pages() && s.err == nil; id++ {
			if w := s.where(id); !s.seen.has(id) && (w == Free) == free {
				s.loner(id, w)
			}
		}
	}
	return s.err
}

// where says what is to be thought of a page that the tree does not lead to.
func (s *salvager) where(id uint64) Where {
	switch {
	case !s.known || s.report.Older:
		return Stray // what was given up, and when?
	case s.free.has(id) || id >= s.meta.pages:
		return Free
	case !s.badFree:
		return Orphan
	case !s.badTree:
		return Free // nothing is missing from the tree
	}
	return Stray
}

// load reads a page, and as much more of it as may be read yet.
func (s *salvager) load(id uint64, depth int) (p loosePage, ok bool) {
	most := max(1, uint64(max(0, s.left)/s.pageSize))
	p, ok = s.loose(id, most, &s.bufs[depth])
	s.left -= int64(len(p.data))
	return p, ok
}

// walk goes down from a page of the tree, and says whether there was one.
func (s *salvager) walk(at place, id uint64, key []byte) bool {
	if at.depth >= maxDepth || id < 2 || id >= min(s.meta.pages, s.pages()) || s.seen.has(id) {
		return false
	}
	p, ok := s.load(id, at.depth)
	if !ok || !p.isBelow(id, key) {
		return false
	}
	s.take(id, p.span)
	at.where = Tree
	if s.free.has(id) {
		at.where = Stray // one of the two is wrong
	}
	if p.leaf {
		s.leaf(at, &p)
		return true
	}
	at.depth++
	for i := 0; p.has(i) && s.err == nil; i++ {
		if key, _, ok := p.cut(p.element(i)); ok {
			s.walk(at, p.element(i).page, key)
		}
	}
	return true
}

// take makes sure that pages are not looked at again.
func (s *salvager) take(id, n uint64) {
	for ; n > 0 && id < s.pages(); id, n = id+1, n-1 {
		s.seen.add(id)
	}
}

// loner gives what is in a page that does not hang on the tree, if it is a leaf.
func (s *salvager) loner(id uint64, w Where) {
	p, ok := s.load(id, 0)
	if !ok || !p.isLeaf(id) {
		return
	}
	n := uint64(1)
	if w == Orphan && p.id != id {
		w = Stray // perhaps another page was written to a wrong place
	}
	if w == Orphan {
		// What follows is a value's, whatever it looks like. Behind a page that was
		// given up, others may have come.
		n = p.span
	}
	s.take(id, n)
	s.leaf(place{where: w}, &p)
}

// leaf gives each the entries of a leaf, and walks its buckets.
func (s *salvager) leaf(at place, p *loosePage) {
	root := at.tree && at.bucket == ""
	p.entries(func(flags uint32, key, value []byte) bool {
		if (flags&bucketFlag != 0 || root) && !at.inline {
			if s.bucket(at, key, value) || root {
				return s.err == nil
			}
		}
		s.err = s.each(Entry{Bucket: at.bucket, Key: key, Value: value}, at.where)
		return s.err == nil
	})
}

// bucket walks a bucket, and says whether it was one. How long its value is, it says
// itself, so the element's word on that is not needed.
func (s *salvager) bucket(at place, name, value []byte) bool {
	value = value[:cap(value)]
	if len(value) < bucketSize {
		return false
	}
	at.bucket = join(at.bucket, name)
	id := binary.NativeEndian.Uint64(value)
	walked := false
	if below := at; id != 0 && at.tree {
		below.depth++
		walked = s.walk(below, id, nil)
	}
	var p loosePage
	if len(value) < bucketSize+headerSize || !p.parse(value[bucketSize:]) || !p.isLeaf(0) {
		return walked
	}
	at.inline = true
	s.leaf(at, &p)
	return true
}

// guessPageSize takes the size for which the most pages say that they are what they
// ought to be; without any, the one that bbolt would have taken.
func (s *salvager) guessPageSize() {
	best, most := int64(os.Getpagesize()), 0
	for size := int64(minPageSize); size <= maxPageSize; size *= 2 {
		n := 0
		for id := int64(2); id < 1000 && (id+1)*size <= s.size; id++ {
			var b [headerSize]byte
			if _, err := s.ReadAt(b[:], id*size); err != nil {
				continue
			}
			switch h := parseHeader(b[:]); h.flags {
			case branchFlag, leafFlag, freelistFlag:
				if h.id == uint64(id) {
					n++
				}
			}
		}
		if n > most {
			best, most = size, n
		}
	}
	s.pageSize = best
}
