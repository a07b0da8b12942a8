package pages

import (
	"encoding/binary"
	"math/bits"
)

const (
	idSize    = 8
	manyCount = 0xFFFF // the count is the first number then
	chunkSize = 64 << 10
)

// badList reports damage of the freelist.
func (c *checker) badList(format string, args ...any) {
	c.badFree = true
	c.report.problem("freelist: "+format, args...)
}

// freelist reads the numbers of free pages.
func (c *checker) freelist(id uint64) {
	if id == noFreelist {
		c.badFree = true // bbolt looks for the free pages itself then
		return
	}
	if id < 2 || id >= c.bound {
		c.badList("page %d: there is no such page", id)
		return
	}
	data, err := c.grow(nil, id, headerSize+idSize)
	if err != nil {
		c.badList("page %d: %v", id, err)
		return
	}
	h := parseHeader(data)
	switch {
	case h.id != id || h.flags != freelistFlag:
		c.badList("page %d: its header is that of page %d with flags %#x", id, h.id, h.flags)
		return
	case uint64(h.overflow) >= c.bound-id:
		c.badList("page %d: its %d pages go beyond the last one", id, uint64(h.overflow)+1)
		return
	}
	for n := range uint64(h.overflow) + 1 {
		c.reached.add(id + n)
	}
	room := uint64(c.pageSize)*(uint64(h.overflow)+1)/idSize - headerSize/idSize
	skip, count := uint64(0), uint64(h.count)
	if h.count == manyCount {
		skip, count = 1, binary.NativeEndian.Uint64(data[headerSize:])
	}
	if count > room-skip {
		c.badList("page %d: it has no room for %d numbers", id, count)
		return
	}
	c.freeIDs(id, headerSize/idSize+skip, count, room-skip)
}

// freeIDs reads count numbers, the first of them at the place of the so many-th
// number in the page, and looks whether there are more up to room.
func (c *checker) freeIDs(page, first, count, room uint64) {
	buf := make([]byte, min(chunkSize, room*idSize))
	last := uint64(1) // the pages before 2 are the meta pages
	for n := uint64(0); n < room; {
		chunk := buf[:min(chunkSize, (room-n)*idSize)]
		if _, err := c.ReadAt(chunk, int64(page)*c.pageSize+int64(first+n)*idSize); err != nil {
			c.badList("page %d: %v", page, readError(err))
			return
		}
		for ; len(chunk) > 0; chunk, n = chunk[idSize:], n+1 {
			id := binary.NativeEndian.Uint64(chunk)
			switch {
			case n >= count:
				c.moreFree = c.moreFree || id != 0
			case id <= last || id >= c.meta.pages:
				c.badList("page %d: number %d comes after %d, of %d pages", page, id, last, c.meta.pages)
				return
			default:
				last = id
				if id < c.pages() {
					c.free.add(id)
				}
			}
		}
	}
}

// cover sees to it that each page is either of the tree or free.
func (c *checker) cover() {
	both, none := c.compare(true), c.compare(false)
	if both.n > 0 {
		// Who is wrong, the freelist or a pointer in the tree?
		c.badTree, c.badFree = true, true
		c.report.problem("%d pages are used, but free: %v", both.n, both.first)
	}
	if none.n > 0 && c.moreFree {
		c.badFree = true // its count is too small
	}
	if none.n > 0 && c.meta.freelist != noFreelist {
		c.report.problem("%d pages are neither used nor free: %v", none.n, none.first)
	}
}

// some are pages: how many, and the first of them.
type some struct {
	n     int
	first []uint64
}

// compare finds the pages that are both reached and free, or neither.
func (c *checker) compare(both bool) (s some) {
	for w := range c.reached {
		word := c.reached[w] & c.free[w]
		if !both {
			word = ^(c.reached[w] | c.free[w])
			if w == 0 {
				word &^= 3 // the meta pages
			}
			if rest := max(c.bound, uint64(w)*64) - uint64(w)*64; rest < 64 {
				word &= 1<<rest - 1
			}
		}
		s.n += bits.OnesCount64(word)
		for ; word != 0 && len(s.first) < 10; word &= word - 1 {
			s.first = append(s.first, uint64(w*64+bits.TrailingZeros64(word)))
		}
	}
	return s
}
