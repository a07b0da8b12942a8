package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"

	"golang.org/x/sys/unix"
)

// pages reads a file of bbolt that may be damaged. bbolt follows the links between pages
// blindly: a wrong one makes it fault, loop, or allocate without bound, and its own check
// does so in a goroutine that no caller can guard. pages checks all that bbolt relies on,
// notes what is wrong, and reads on.
type pages struct {
	data     []byte // the file
	size     uint64 // of a page
	count    uint64 // pages in use
	root     uint64 // of the bucket of all buckets
	freelist uint64
	tx       uint64            // the last transaction
	buckets  map[string][]byte // their headers: the page of the root, or 0 and the page itself
	seen     []byte            // of each page: linked, covered
	free     []uint64          // the pages in the freelist
	last     []byte            // the key before
	floor    bool              // it is a branch's: the next key may be the same
	err      error             // the first damage
}

// A page is linked when another leads to it, and covered when it is a part of one.
const linked, covered = 1, 2

// Layout of a page: https://github.com/etcd-io/bbolt/tree/main/internal/common
const (
	pageHeader   = 16 // id, flags, count, overflow
	pageEntry    = 16 // branch: position and size of the key, page; leaf: flags, position, sizes of key and value
	branchPage   = 0x01
	leafPage     = 0x02
	metaPage     = 0x04
	freelistPage = 0x10
	metaMagic    = 0xED0CDAED
	metaSize     = 64
)

var u16, u32, u64 = binary.NativeEndian.Uint16, binary.NativeEndian.Uint32, binary.NativeEndian.Uint64

// readPages maps a file and calls f. It returns the damage that f met. f must not keep
// what it was given.
func readPages(path string, f func(p *pages)) error {
	file, err := openNoFollow(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return errors.New("the file is empty")
	}
	data, err := unix.Mmap(int(file.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	p := &pages{data: data, size: uint64(os.Getpagesize()), buckets: map[string][]byte{}}
	p.guard(func() {
		if !p.readMetas() {
			return
		}
		p.seen = make([]byte, p.count)
		p.follow(p.root, func(isBucket bool, name, header []byte) {
			if !isBucket || len(header) < 16 {
				p.bad("the header of the bucket %.20q is damaged", name)
				return
			}
			p.buckets[string(name)] = header
		})
	})
	f(p)
	return p.err
}

// guard runs f, which may panic over damage.
func (p *pages) guard(f func()) {
	if err := guarded(func() error { f(); return nil }); err != nil {
		p.bad("%v", errors.Unwrap(err))
	}
}

func (p *pages) bad(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

// readMetas finds the current meta page; false: there is none. One that is damaged is
// reported even if it is not the current one: it might have been.
func (p *pages) readMetas() bool {
	valid := func(id uint64) bool {
		at := id * p.size
		if at+pageHeader+metaSize > uint64(len(p.data)) {
			return false
		}
		h, m := p.data[at:], p.data[at+pageHeader:]
		sum := fnv.New64a()
		sum.Write(m[:metaSize-8])
		return u64(h) == id && u16(h[8:]) == metaPage && u32(m) == metaMagic && uint64(u32(m[8:])) == p.size && u64(m[metaSize-8:]) == sum.Sum64()
	}
	tx := func(id uint64) uint64 { return u64(p.data[id*p.size+pageHeader+48:]) }
	first, second := valid(0), valid(1)
	if !first || !second {
		p.bad("a meta page is damaged")
		if !first && !second {
			return false
		}
	}
	current := uint64(0)
	if !first || second && tx(1) > tx(0) {
		current = 1
	}
	m := p.data[current*p.size+pageHeader:]
	p.root, p.freelist, p.count, p.tx = u64(m[16:]), u64(m[32:]), u64(m[40:]), tx(current)
	if most := uint64(len(p.data)) / p.size; p.count > most {
		p.bad("the file has %d pages, not %d", most, p.count)
		p.count = most
	}
	return true
}

// bucket calls each with the entries of a bucket, in order, and returns its damage.
func (p *pages) bucket(name string, each func(key, value []byte)) error {
	before := p.err
	p.err, p.last, p.floor = nil, nil, false
	entry := func(isBucket bool, key, value []byte) {
		if isBucket {
			p.bad("there is a bucket in the bucket %s", name)
			return
		}
		each(key, value)
	}
	p.guard(func() {
		switch header := p.buckets[name]; {
		case header == nil:
			p.bad("the bucket %s is missing", name)
		case u64(header) != 0:
			p.follow(u64(header), entry)
		case len(header) < 16+pageHeader:
			p.bad("the header of the bucket %s is damaged", name)
		default:
			p.entries(0, header[16:], entry)
		}
	})
	err := p.err
	if before != nil {
		p.err = before
	}
	return err
}

// follow reads the page that a link leads to, and those below.
func (p *pages) follow(id uint64, each func(isBucket bool, key, value []byte)) {
	if id < 2 || id >= p.count || p.seen[id]&linked != 0 {
		p.bad("a link to page %d is wrong", id)
		return
	}
	p.seen[id] |= linked
	body := p.data[id*p.size:]
	n := 1 + uint64(u32(body[12:]))
	if u64(body) != id || n > p.count-id {
		p.bad("the header of page %d is damaged", id)
		n = 1
	}
	for i := range n {
		if p.seen[id+i]&covered != 0 {
			p.bad("page %d belongs to two others", id+i)
		}
		p.seen[id+i] |= covered
	}
	p.entries(id, body[:n*p.size], each)
}

func (p *pages) entries(id uint64, page []byte, each func(isBucket bool, key, value []byte)) {
	flags, count, body := u16(page[8:]), uint64(u16(page[10:])), page[pageHeader:]
	branch := flags == branchPage
	if !branch && flags != leafPage || branch && (count == 0 || id == 0) {
		p.bad("the header of page %d is damaged", id)
		return
	}
	if most := uint64(len(body)) / pageEntry; count > most {
		p.bad("page %d claims %d entries", id, count)
		count = most
	}
	for i := range count {
		e := body[pageEntry*i:]
		at, size, value := u32(e[4:]), u32(e[8:]), u32(e[12:])
		if branch {
			at, size, value = u32(e), u32(e[4:]), 0
		}
		from := pageEntry*i + uint64(at)
		to := from + uint64(size)
		switch end := to + uint64(value); {
		case end > uint64(len(body)) || size == 0:
			p.bad("entry %d of page %d is damaged", i, id)
		default:
			key := body[from:to]
			if c := bytes.Compare(p.last, key); c > 0 || c == 0 && !p.floor {
				p.bad("entry %d of page %d is out of order", i, id)
			}
			p.last, p.floor = key, branch
			if !branch {
				each(u32(e)&1 != 0, key, body[to:end])
			}
		}
		if branch {
			p.follow(u64(e[8:]), each)
		}
	}
}

// checkFreelist checks that each page is either in use or listed as free. All buckets
// must have been read.
func (p *pages) checkFreelist() {
	own := p.readFreelist()
	for _, id := range append(own, p.free...) {
		if p.seen[id] != 0 {
			p.bad("page %d is in use and free", id)
			return
		}
		p.seen[id] = covered
	}
	if i := bytes.IndexByte(p.seen[min(2, len(p.seen)):], 0); i >= 0 {
		p.bad("page %d is neither in use nor free", i+2)
	}
}

// readFreelist reads which pages are free, and returns those that the list itself takes.
func (p *pages) readFreelist() (own []uint64) {
	if p.freelist < 2 || p.freelist >= p.count {
		p.bad("the link to the freelist is wrong")
		return nil
	}
	list := p.data[p.freelist*p.size:]
	n := 1 + uint64(u32(list[12:]))
	if u64(list) != p.freelist || u16(list[8:]) != freelistPage || n > p.count-p.freelist {
		p.bad("the header of the freelist is damaged")
		return nil
	}
	for i := range n {
		own = append(own, p.freelist+i)
	}
	count := uint64(u16(list[10:]))
	list = list[pageHeader : n*p.size]
	if count == 0xFFFF { // the first entry is the count
		count, list = u64(list), list[8:]
	}
	if count > uint64(len(list))/8 {
		p.bad("the freelist claims %d entries", count)
		return own
	}
	for i := range count {
		id := u64(list[8*i:])
		if id < 2 || id >= p.count {
			p.bad("page %d cannot be free", id)
			return own
		}
		p.free = append(p.free, id)
	}
	return own
}
