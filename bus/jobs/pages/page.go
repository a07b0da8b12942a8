package pages

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	headerSize  = 16
	elementSize = 16
	bucketSize  = 16    // root and sequence
	maxKey      = 32768 // bbolt takes no longer one

	branchFlag   = 1
	leafFlag     = 2
	metaFlag     = 4
	freelistFlag = 16

	bucketFlag = 1 // of a leaf's element
)

var zero = []byte{0}

type header struct {
	id       uint64
	flags    uint16
	count    uint16
	overflow uint32
}

func parseHeader(b []byte) header {
	return header{
		id:       binary.NativeEndian.Uint64(b),
		flags:    binary.NativeEndian.Uint16(b[8:]),
		count:    binary.NativeEndian.Uint16(b[10:]),
		overflow: binary.NativeEndian.Uint32(b[12:]),
	}
}

// element is what a page says of one of its elements: page and where its key
// begins, seen from the page's begin, are not checked by it. All are small enough
// to be added up without care.
type element struct {
	start, key, value uint64
	flags             uint32 // of a leaf's
	page              uint64 // of a branch's
}

func (e element) end() uint64 { return e.start + e.key + e.value }

func parseElement(data []byte, leaf bool, i int) element {
	at := headerSize + i*elementSize
	b := data[at : at+elementSize]
	u32 := binary.NativeEndian.Uint32
	if !leaf {
		return element{start: uint64(at) + uint64(u32(b)), key: uint64(u32(b[4:])), page: binary.NativeEndian.Uint64(b[8:])}
	}
	return element{
		flags: u32(b),
		start: uint64(at) + uint64(u32(b[4:])),
		key:   uint64(u32(b[8:])),
		value: uint64(u32(b[12:])),
	}
}

// page is a branch or a leaf that holds what its header says.
type page struct {
	header
	leaf bool
	data []byte
}

func (p *page) element(i int) element { return parseElement(p.data, p.leaf, i) }

// entry is for an element that is within data.
func (p *page) entry(e element) (key, value []byte) {
	return p.data[e.start : e.start+e.key], p.data[e.start+e.key : e.end()]
}

func (p *page) key(i int) []byte {
	key, _ := p.entry(p.element(i))
	return key
}

// load reads a branch or a leaf. Its elements are then known to be within it: they
// are as bbolt writes them, without gaps, and take just the pages that they need. So
// all of a file's pages together take no more reading than the file is long, whatever
// is in it. The data is in buf, which grows.
func (f *file) load(id, bound uint64, buf *[]byte) (p page, err error) {
	data, err := f.grow((*buf)[:0], id, f.pageSize)
	*buf = data
	if err != nil {
		return p, readError(err)
	}
	p.header = parseHeader(data)
	p.leaf = p.flags == leafFlag
	switch {
	case p.id != id:
		return p, fmt.Errorf("its header is that of page %d", p.id)
	case !p.leaf && p.flags != branchFlag:
		return p, fmt.Errorf("flags %#x are those of neither a branch nor a leaf", p.flags)
	case !p.leaf && p.count == 0:
		return p, errors.New("a branch without elements")
	case uint64(p.overflow) >= bound-id:
		return p, fmt.Errorf("its %d pages go beyond the last one", uint64(p.overflow)+1)
	case p.count == 0 && bytes.Count(data[headerSize:], zero) < len(data)-headerSize:
		return p, errors.New("it is empty, but something is in it")
	}
	table := int64(headerSize + int(p.count)*elementSize)
	all := (int64(p.overflow) + 1) * f.pageSize
	if table > all {
		return p, fmt.Errorf("%d elements do not fit into it", p.count)
	}
	if data, err = f.grow(data, id, table); err == nil {
		var size int64
		if size, err = layout(data, p.leaf, int(p.count)); err != nil {
			return p, err
		}
		if size > all || size <= all-f.pageSize {
			return p, fmt.Errorf("%d bytes in %d pages of %d", size, uint64(p.overflow)+1, f.pageSize)
		}
		data, err = f.grow(data, id, size)
	}
	*buf, p.data = data, data
	return p, readError(err)
}

// inline makes a page of an inline bucket's value. It is as long as it needs to be.
func inline(value []byte) (p page, err error) {
	if len(value) < bucketSize+headerSize || binary.NativeEndian.Uint64(value) != 0 {
		return p, fmt.Errorf("%d bytes are neither an inline bucket nor one with a root page", len(value))
	}
	data := value[bucketSize:]
	p = page{header: parseHeader(data), leaf: true, data: data}
	if p.header != (header{flags: leafFlag, count: p.count}) {
		return p, errors.New("an inline bucket with a damaged header")
	}
	if headerSize+int(p.count)*elementSize > len(data) {
		return p, fmt.Errorf("%d elements do not fit into an inline bucket", p.count)
	}
	size, err := layout(data, true, int(p.count))
	if err == nil && size != int64(len(data)) {
		err = fmt.Errorf("an inline bucket of %d bytes takes %d", size, len(data))
	}
	return p, err
}

// layout says how long a page is whose elements are in data, if they are in order.
func layout(data []byte, leaf bool, count int) (size int64, err error) {
	end := uint64(headerSize + count*elementSize)
	for i := range count {
		e := parseElement(data, leaf, i)
		if e.start != end {
			return 0, fmt.Errorf("element %d begins at byte %d, not at %d", i, e.start, end)
		}
		if e.key == 0 || e.key > maxKey {
			return 0, fmt.Errorf("element %d has a key of %d bytes", i, e.key)
		}
		end = e.end()
	}
	return int64(end), nil
}

func readError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errEnd
	}
	return err
}
