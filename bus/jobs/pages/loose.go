package pages

import "bytes"

// loosePage is a page of which anything may be wrong. Its header and first page's
// size are there, the rest as far as the file goes.
type loosePage struct {
	page
	elements int    // what there may be of them
	span     uint64 // pages that it surely takes
	laidOut  bool   // its first element is where it ought to be
}

// extraBytes bounds what is read of a page beyond what its header says.
const extraBytes = 16 << 20

// loose reads a page as far as it goes, and at most so many pages. It says no if this
// is neither a leaf nor a branch.
func (f *file) loose(id, most uint64, buf *[]byte) (p loosePage, ok bool) {
	data, _ := f.grow((*buf)[:0], id, f.pageSize)
	*buf = data
	if len(data) < headerSize+elementSize || !p.parse(data) {
		return p, false
	}
	read := p.extent(uint64(f.pageSize), min(most, f.pages()-id))
	data, _ = f.grow(data, id, int64(read)*f.pageSize)
	*buf, p.data = data, data
	return p, true
}

// parse reads the header. Where a bit of it is wrong, the first element, which
// begins just behind the last one's place, tells what it was.
func (p *loosePage) parse(data []byte) bool {
	p.header, p.data = parseHeader(data), data
	p.elements, p.span = int(p.count), 1
	p.leaf = p.flags == leafFlag
	if len(data) < headerSize+elementSize {
		return p.leaf && p.count == 0
	}
	begin := uint64(headerSize + int(p.count)*elementSize)
	asLeaf := parseElement(data, true, 0).start
	asBranch := parseElement(data, false, 0).start
	if p.flags != leafFlag && p.flags != branchFlag {
		p.leaf = p.count > 0 && asLeaf == begin
		if !p.leaf && (p.count == 0 || asBranch != begin) {
			return false
		}
	}
	first := asLeaf
	if !p.leaf {
		first = asBranch
	}
	p.laidOut = p.count > 0 && first == begin
	if n := (first - headerSize) / elementSize; first%elementSize == 0 && n < manyCount {
		p.elements = max(p.elements, int(n))
	}
	return true
}

// extent says how many pages there are to read: those that the elements need, if they
// are in order, else as many as the header says. More would be other pages.
func (p *loosePage) extent(pageSize, most uint64) uint64 {
	said := uint64(p.overflow) + 1
	needed := said
	if headerSize+int(p.count)*elementSize <= len(p.data) {
		if size, err := layout(p.data, p.leaf, int(p.count)); err == nil {
			needed = (uint64(size) + pageSize - 1) / pageSize
		}
	}
	said, needed = min(said, most), min(needed, most)
	p.span = min(said, needed)
	if needed > said && (needed-said)*pageSize > extraBytes {
		return said
	}
	return needed
}

// firstKey is nil if there is none.
func (p *loosePage) firstKey() []byte {
	if !p.has(0) {
		return nil
	}
	key, _, _ := p.cut(p.element(0))
	return key
}

// has says whether element i is within the page.
func (p *loosePage) has(i int) bool {
	return i < p.elements && headerSize+(i+1)*elementSize <= len(p.data)
}

// cut is the entry of an element, if it is within the page. What follows it in the
// page is within the value's capacity.
func (p *loosePage) cut(e element) (key, value []byte, ok bool) {
	if e.key == 0 || e.start < headerSize || e.end() > uint64(len(p.data)) {
		return nil, nil, false
	}
	return p.data[e.start : e.start+e.key], p.data[e.start+e.key : e.end() : len(p.data)], true
}

// cuts are the ways to cut the ith element: what it says itself, and, if this does
// not fit between its neighbours, what fits there by one of its lengths. One of them
// is right if a bit of the element is wrong, unless it is the last one.
func (p *loosePage) cuts(i int) (list [3]element, n int) {
	e := p.element(i)
	list[0] = e
	prev, next := uint64(headerSize+int(p.count)*elementSize), e.end()
	if i > 0 {
		prev = p.element(i - 1).end()
	}
	if p.has(i + 1) {
		next = p.element(i + 1).start
	}
	if e.start == prev && e.end() == next || next <= prev {
		return list, 1
	}
	n = 1
	total := next - prev
	if e.key <= total {
		list[n] = element{flags: e.flags, start: prev, key: e.key, value: total - e.key}
		n++
	}
	if e.value < total {
		list[n] = element{flags: e.flags, start: prev, key: total - e.value, value: e.value}
		n++
	}
	return list, n
}

// entries gives each what can be cut out of a leaf, until it has had enough. A page
// of elements that overlap is not taken for more than it has, a few times over: it
// could keep the caller busy for hours.
func (p *loosePage) entries(each func(flags uint32, key, value []byte) bool) {
	left := 16 * len(p.data)
	for i := 0; p.has(i); i++ {
		list, n := p.cuts(i)
		for j, e := range list[:n] {
			key, value, ok := p.cut(e)
			if !ok || j > 0 && e == list[0] || j > 1 && e == list[1] {
				continue
			}
			if left -= len(key) + len(value); left < 0 || !each(e.flags, key, value) {
				return
			}
		}
	}
}

// isBelow says whether this is the page that a pointer to id means, in a branch's
// element of this key, or in a bucket, which has none. If not, nothing is lost: the
// page is found as an orphan.
func (p *loosePage) isBelow(id uint64, key []byte) bool {
	return p.id == id && (key == nil || bytes.Equal(p.firstKey(), key))
}

// isLeaf says whether this is the leaf of that number, with nothing that leads to it:
// two of three signs must be there, its number, its flags, its first element's place.
func (p *loosePage) isLeaf(id uint64) bool {
	signs := 0
	for _, ok := range [...]bool{p.id == id, p.flags == leafFlag, p.laidOut || p.count == 0} {
		if ok {
			signs++
		}
	}
	return p.leaf && signs >= 2
}
