package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// bbolt follows the links between pages blindly: a wrong one makes it fault, loop, or
// allocate without bound, and its own check does so in a goroutine that no caller can
// guard. So links checks them before bbolt uses the file.
type links struct {
	data     []byte // the file
	size     uint64 // of a page
	pages    uint64 // that are in use
	root     []byte // the root bucket's link, in the current meta page
	freelist uint64
	seen     []bool
	free     []uint64 // pages in the freelist
	leaves   bool     // check leaf pages too; without them only few pages are read
	repair   bool     // replace what is wrong by something empty. data must be a private copy
	err      error
}

// Layout of a page: https://github.com/etcd-io/bbolt/tree/main/internal/common
const (
	pageHeader   = 16 // id, flags, count, overflow
	branchPage   = 0x01
	leafPage     = 0x02
	metaPage     = 0x04
	freelistPage = 0x10
	metaMagic    = 0xED0CDAED
	metaSize     = 64
)

var u16, u32, u64 = binary.NativeEndian.Uint16, binary.NativeEndian.Uint32, binary.NativeEndian.Uint64

// checkLinks checks the links of a file.
func checkLinks(path string, leaves bool) (l *links, err error) {
	defer catch(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	f, err := openNoFollow(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() == 0 {
		return nil, errors.New("the file is empty")
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(data)
	l = &links{data: data, leaves: leaves}
	l.check()
	return l, l.err
}

func (l *links) bad(format string, args ...any) {
	if l.err == nil {
		l.err = fmt.Errorf(format, args...)
	}
}

func (l *links) check() {
	if !l.readMetas() {
		return
	}
	l.seen = make([]bool, l.pages)
	l.follow(l.root, true, false)
	if !l.repair && l.err == nil {
		l.checkFreelist()
	}
}

// readMetas finds the current meta page; false: there is none. One that is damaged is
// reported even if it is not the current one: it might have been.
func (l *links) readMetas() bool {
	valid := func(id uint64) bool {
		at := id * l.size
		if at+pageHeader+metaSize > uint64(len(l.data)) {
			return false
		}
		p, m := l.data[at:], l.data[at+pageHeader:]
		sum := fnv.New64a()
		sum.Write(m[:metaSize-8])
		return u64(p) == id && u16(p[8:]) == metaPage && u32(m) == metaMagic && uint64(u32(m[8:])) == l.size && u64(m[metaSize-8:]) == sum.Sum64()
	}
	tx := func(id uint64) uint64 { return u64(l.data[id*l.size+pageHeader+48:]) }
	l.size = uint64(os.Getpagesize())
	first, second := valid(0), valid(1)
	if !first || !second {
		l.bad("a meta page is damaged")
		if !first && !second {
			return false
		}
	}
	current := uint64(0)
	if !first || second && tx(1) > tx(0) {
		current = 1
	}
	m := l.data[current*l.size+pageHeader:]
	l.root, l.freelist, l.pages = m[16:24], u64(m[32:]), u64(m[40:])
	if most := uint64(len(l.data)) / l.size; l.pages > most {
		l.bad("the file has %d pages, not %d", most, l.pages)
		l.pages = most
	}
	return true
}

// follow checks the page that a link leads to, and those below. top: it belongs to the
// root bucket. leaf: it is one, as are its neighbours.
func (l *links) follow(link []byte, top, leaf bool) {
	id := u64(link)
	if id < 2 || id >= l.pages || l.seen[id] {
		l.bad("a link to page %d is wrong", id)
		if l.repair {
			l.clear(1) // a transaction that has begun needs its meta page no longer
			binary.NativeEndian.PutUint64(link, 1)
		}
		return
	}
	l.seen[id] = true
	if leaf && !top && !l.leaves {
		return
	}
	p := l.data[id*l.size:]
	n := 1 + uint64(u32(p[12:]))
	flags, count := u16(p[8:]), uint64(u16(p[10:]))
	if u64(p) != id || n > l.pages-id || flags != branchPage && flags != leafPage || flags == branchPage && count == 0 {
		l.bad("the header of page %d is damaged", id)
		if !l.repair {
			return
		}
		binary.NativeEndian.PutUint64(p, id)
		n, flags = min(n, l.pages-id), flags&(branchPage|leafPage)
		binary.NativeEndian.PutUint16(p[8:], flags)
		if flags != branchPage && flags != leafPage || count == 0 {
			l.clear(id)
			return
		}
	}
	for i := uint64(1); i < n && !l.repair; i++ {
		if l.seen[id+i] {
			l.bad("page %d belongs to two others", id+i)
			return
		}
		l.seen[id+i] = true
	}
	body := p[pageHeader : n*l.size]
	if count*16 > uint64(len(body)) {
		l.bad("page %d claims %d entries", id, count)
		if count = uint64(len(body)) / 16; l.repair {
			binary.NativeEndian.PutUint16(p[10:], uint16(count))
		}
	}
	if flags == branchPage {
		l.checkBranch(id, body, count, top)
	} else if top || l.leaves {
		l.checkLeaf(id, body, count, top)
	}
}

// clear makes an empty leaf of a page.
func (l *links) clear(id uint64) {
	p := l.data[id*l.size:]
	clear(p[:pageHeader])
	binary.NativeEndian.PutUint64(p, id)
	binary.NativeEndian.PutUint16(p[8:], leafPage)
}

func (l *links) checkBranch(id uint64, body []byte, count uint64, top bool) {
	leaf := false // all below are, if the first one is
	for i := range count {
		e := body[16*i:]
		if key := 16*i + uint64(u32(e)) + uint64(u32(e[4:])); key > uint64(len(body)) || u32(e[4:]) == 0 {
			l.bad("entry %d of page %d is damaged", i, id)
			if l.repair {
				clear(e[:8])
			}
		}
		if first := u64(e[8:]); i == 0 && first < l.pages {
			leaf = u16(l.data[first*l.size+8:]) == leafPage
		}
		l.follow(e[8:16], top, leaf)
		if l.err != nil && !l.repair {
			return
		}
	}
}

func (l *links) checkLeaf(id uint64, body []byte, count uint64, top bool) {
	for i := range count {
		e := body[16*i:]
		value := 16*i + uint64(u32(e[4:])) + uint64(u32(e[8:]))
		bucket := u32(e)&1 != 0
		if end := value + uint64(u32(e[12:])); end > uint64(len(body)) || bucket != top || u32(e[8:]) == 0 || bucket && u32(e[12:]) < 16 {
			l.bad("entry %d of page %d is damaged", i, id)
			if l.repair {
				clear(e[:16])
			}
			continue
		}
		if top && u64(body[value:]) != 0 { // else its page is in the value
			l.follow(body[value:value+8], false, false)
		}
	}
}

// checkFreelist checks that no page of the tree is listed as free.
func (l *links) checkFreelist() {
	if l.freelist < 2 || l.freelist >= l.pages || l.seen[l.freelist] {
		l.bad("the link to the freelist is wrong")
		return
	}
	p := l.data[l.freelist*l.size:]
	room := (1 + uint64(u32(p[12:]))) * l.size
	if u64(p) != l.freelist || u16(p[8:]) != freelistPage || room > (l.pages-l.freelist)*l.size {
		l.bad("the header of the freelist is damaged")
		return
	}
	list := p[pageHeader:room]
	n := uint64(u16(p[10:]))
	if n == 0xFFFF { // the first entry is the count
		n, list = u64(list), list[8:]
	}
	if n > uint64(len(list))/8 {
		l.bad("the freelist claims %d entries", n)
		return
	}
	for i := range n {
		if id := u64(list[8*i:]); id < 2 || id >= l.pages || l.seen[id] {
			l.bad("page %d is in use and free", id)
			return
		} else {
			l.free = append(l.free, id)
		}
	}
}
