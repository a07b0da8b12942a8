package pages

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

const (
	magic      = 0xED0CDAED
	version    = 2
	metaSize   = 64         // with the checksum
	noFreelist = ^uint64(0) // the freelist's page, if it is not kept in the file

	// bbolt finds the second meta page at these sizes, when the first is damaged.
	minPageSize = 1 << 10
	maxPageSize = 16 << 20
)

// meta is what a meta page says.
type meta struct {
	pageSize       int64
	root, freelist uint64
	pages          uint64 // all page numbers are below: the high-water mark
	tx             uint64
}

var (
	errMagic    = errors.New("it is no meta page")
	errVersion  = errors.New("it is of another version of the format")
	errChecksum = errors.New("the checksum is wrong")
	errEnd      = errors.New("the file ends before it does")
)

// parseMeta reads a meta page without its header.
func parseMeta(b []byte) (m meta, err error) {
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	switch {
	case u32(b) != magic:
		return m, errMagic
	case u32(b[4:]) != version:
		return m, errVersion
	case u64(b[56:]) != fnv1a(b[:56]):
		return m, errChecksum
	}
	m = meta{
		pageSize: int64(u32(b[8:])),
		root:     u64(b[16:]),
		freelist: u64(b[32:]),
		pages:    u64(b[40:]),
		tx:       u64(b[48:]),
	}
	if m.pageSize < minPageSize || m.pageSize > maxPageSize || bits.OnesCount64(uint64(m.pageSize)) != 1 {
		return m, fmt.Errorf("it claims pages of %d bytes", m.pageSize)
	}
	return m, nil
}

func fnv1a(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// mend looks for the one bit that makes a meta page of b, and turns it. A checksum of
// 64 bits leaves no room for chance here, and much depends on it: without its newest
// meta page a store is one transaction younger, and which pages are out of date can
// not be known.
func mend(b []byte) (m meta, bit int, ok bool) {
	for bit := range metaSize * 8 {
		b[bit/8] ^= 1 << (bit % 8)
		if m, err := parseMeta(b); err == nil {
			return m, bit, true
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	return m, 0, false
}

// metas reads both meta pages and chooses. It sets the size of the pages.
func (c *checker) metas() bool {
	first, ok := c.readMeta(0, 0)
	size := first.pageSize
	if !ok {
		// It would have said where the other one is.
		for size = minPageSize; !c.isMeta(size); size *= 2 {
			if size == maxPageSize {
				c.report.problem("meta page 1: there is none")
				return false
			}
		}
	}
	second, ok2 := c.readMeta(1, size)
	if ok2 && second.pageSize != size {
		c.report.problem("meta page 1: it claims pages of %d bytes, but begins at byte %d", second.pageSize, size)
		ok2 = false
	}
	if ok && ok2 && first.tx == second.tx {
		c.report.problem("meta page 1: it is of transaction %d as is the other", second.tx)
		ok2 = false
	}
	c.meta, c.pageSize = first, size
	if !ok || ok2 && second.tx > first.tx {
		c.meta = second
	}
	c.report.Older = ok != ok2
	return ok || ok2
}

// isMeta says whether a second meta page is at this place, which is its page size.
func (c *checker) isMeta(at int64) bool {
	var b [metaSize]byte
	if _, err := c.ReadAt(b[:], at+headerSize); err != nil {
		return false
	}
	m, err := parseMeta(b[:])
	if err != nil {
		m, _, _ = mend(b[:])
	}
	return m.pageSize == at
}

// readMeta reads the meta page at a place, and reports what is wrong with it.
func (c *checker) readMeta(id uint64, at int64) (meta, bool) {
	var b [headerSize + metaSize]byte
	if _, err := c.ReadAt(b[:], at); err != nil {
		c.report.problem("meta page %d: %v", id, readError(err))
		return meta{}, false
	}
	m, err := parseMeta(b[headerSize:])
	if err != nil {
		mended, bit, ok := mend(b[headerSize:])
		if !ok {
			c.report.problem("meta page %d: %v", id, err)
			return m, false
		}
		c.report.problem("meta page %d: %v: bit %d of byte %d is flipped", id, err, bit%8, bit/8)
		m = mended
	}
	if h := parseHeader(b[:]); h != (header{id: id, flags: metaFlag}) {
		c.report.problem("meta page %d: its header is damaged", id)
	}
	return m, true
}
