package pages

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// maxDepth bounds how deep pages are nested, over all buckets on the way. A branch
// has at least two children, mostly a hundred.
const maxDepth = 100

// checker walks the tree of the newest meta page.
type checker struct {
	file
	meta    meta
	bound   uint64 // of page numbers: what the file has of those that the meta page claims
	report  *Report
	valid   func(bucket string, key, value []byte) bool
	reached set // pages of the tree and of the freelist
	free    set // pages that the freelist names
	bufs    [maxDepth][]byte

	// What Salvage wants to know.
	known    bool // a meta page was found
	badTree  bool // pages may be missing from reached, or be in it wrongly
	badFree  bool // the same of free
	moreFree bool // the freelist has something behind its end
}

func check(r io.ReaderAt, size int64, valid func(bucket string, key, value []byte) bool) *checker {
	c := &checker{file: file{ReaderAt: r, size: size}, report: &Report{}, valid: valid}
	if valid == nil {
		c.valid = func(string, []byte, []byte) bool { return true }
	}
	if size == 0 {
		c.report.problem("the file is empty")
		return c
	}
	if c.known = c.metas(); !c.known {
		return c
	}
	c.bound = min(c.meta.pages, uint64(size/c.pageSize))
	if c.bound < c.meta.pages {
		c.report.problem("the file has %d bytes, but should have %d pages of %d", size, c.meta.pages, c.pageSize)
	}
	c.report.Pages = int(c.meta.pages)
	n := min(c.meta.pages, c.pages()) // with one that the file has a part of
	c.reached, c.free = newSet(n), newSet(n)
	c.freelist(c.meta.freelist)
	c.page("", c.meta.root, span{}, 0)
	c.cover()
	c.report.Free = c.free.len()
	c.report.free, c.report.pageSize = c.free, c.pageSize
	return c
}

// broken reports damage of the tree.
func (c *checker) broken(format string, args ...any) {
	c.badTree = true
	c.report.problem(format, args...)
}

// span is what a branch says of the keys below one of its elements.
type span struct {
	first []byte // the first is this one; nil: no matter
	limit []byte // all are less; nil: any
}

// page walks the tree below a page. A bucket's name is empty for the root bucket.
func (c *checker) page(bucket string, id uint64, keys span, depth int) {
	if depth >= maxDepth {
		c.broken("page %d: it is nested too deep", id)
		return
	}
	if !c.claim(id, 0) {
		return
	}
	p, err := c.load(id, c.bound, &c.bufs[depth])
	if err != nil {
		c.broken("page %d: %v", id, err)
		return
	}
	for n := range uint64(p.overflow) {
		c.claim(id, n+1)
	}
	if err := p.inOrder(keys); err != nil {
		c.broken("page %d: %v", id, err)
	}
	if p.leaf {
		c.leaf(bucket, id, &p, depth)
		return
	}
	for i := range int(p.count) {
		below := span{first: p.key(i), limit: keys.limit}
		if i+1 < int(p.count) {
			below.limit = p.key(i + 1)
		}
		c.page(bucket, p.element(i).page, below, depth+1)
	}
}

// claim takes a page into the tree, the nth of those that begin with id. Any page is
// walked once, so a loop ends.
func (c *checker) claim(id, n uint64) bool {
	switch id += n; {
	case id < 2 || id >= c.meta.pages:
		c.broken("page %d: there is no such page, but the tree leads to it", id)
	case id >= c.bound:
		c.broken("page %d: it is beyond the end of the file", id)
	case !c.reached.add(id):
		c.broken("page %d: it is used twice", id)
	default:
		return true
	}
	return false
}

// inOrder says whether keys rise, and are those that the branch above says. bbolt
// finds the element of a branch again by the first key of the page below, when it
// has changed that: so they must be the same.
func (p *page) inOrder(keys span) error {
	if p.count == 0 {
		if keys.first != nil {
			return fmt.Errorf("it is empty, and should begin with %.40q", keys.first)
		}
		return nil
	}
	last := p.key(0)
	if keys.first != nil && !bytes.Equal(last, keys.first) {
		return fmt.Errorf("it begins with %.40q, the branch above says %.40q", last, keys.first)
	}
	for i := 1; i < int(p.count); i++ {
		key := p.key(i)
		if bytes.Compare(last, key) >= 0 {
			return fmt.Errorf("key %.40q comes after %.40q", key, last)
		}
		last = key
	}
	if keys.limit != nil && bytes.Compare(last, keys.limit) >= 0 {
		return fmt.Errorf("key %.40q is not below %.40q, where the next page begins", last, keys.limit)
	}
	return nil
}

func (c *checker) leaf(bucket string, id uint64, p *page, depth int) {
	for i := range int(p.count) {
		e := p.element(i)
		key, value := p.entry(e)
		switch {
		case e.flags == bucketFlag:
			c.bucket(join(bucket, key), id, value, depth)
		case e.flags != 0:
			c.broken("page %d: key %.40q has flags %#x", id, key, e.flags)
		case bucket == "":
			c.broken("page %d: key %.40q is of no bucket", id, key)
		default:
			c.entry(bucket, key, value)
		}
	}
}

// bucket walks a bucket. Its value is in page id.
func (c *checker) bucket(name string, id uint64, value []byte, depth int) {
	if !c.valid(name, nil, nil) {
		c.report.invalid(name, nil)
	}
	if root, ok := bucketRoot(value); ok {
		c.page(name, root, span{}, depth+1)
		return
	}
	p, err := inline(value)
	if err == nil {
		err = p.inOrder(span{})
	}
	if err != nil {
		c.broken("page %d: bucket %.40q: %v", id, name, err)
		return
	}
	for i := range int(p.count) {
		e := p.element(i)
		key, value := p.entry(e)
		if e.flags != 0 {
			c.broken("page %d: bucket %.40q: key %.40q has flags %#x", id, name, key, e.flags)
			continue
		}
		c.entry(name, key, value)
	}
}

func (c *checker) entry(bucket string, key, value []byte) {
	c.report.Entries++
	if !c.valid(bucket, key, value) {
		c.report.invalid(bucket, key)
	}
}

// bucketRoot is the root page of a bucket that is not inline.
func bucketRoot(value []byte) (id uint64, ok bool) {
	if len(value) < bucketSize {
		return 0, false
	}
	id = binary.NativeEndian.Uint64(value)
	return id, id != 0 && len(value) == bucketSize
}

// join names a bucket within one.
func join(bucket string, name []byte) string {
	if bucket == "" {
		return string(name)
	}
	return bucket + "/" + string(name)
}
