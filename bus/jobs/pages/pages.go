// Package pages reads a bbolt file by itself: without bbolt, without mapping it, and
// without trust in any byte of it.
//
// bbolt believes its file. It panics where a page is not what it ought to be, faults
// where the file ends too early, follows a loop for ever, and goes back to the older
// of its two meta pages without a word when the newer one is damaged. So [Check]
// looks first, and [Salvage] gives back what is still good of a file that is not.
//
// # The file
//
// All of it is pages of one size; integers are of the host's byte order, as bbolt
// maps them. A page begins with a header of 16 bytes: its own number (8), flags (2:
// branch 1, leaf 2, meta 4, freelist 16), how many elements it has (2), how many
// pages more it takes up (4). Pages 0 and 1 are the meta pages, written in turn:
// magic, version, page size, flags (4 each), the root bucket's page and sequence,
// the freelist's page, the number of pages, the transaction's number, and an FNV-1a
// over all this (8 each). The one of the greater transaction counts.
//
// Elements are of 16 bytes; keys and values follow them without a gap, in the same
// order. A leaf's: flags (1: the value is a bucket), where its key begins as seen
// from itself, lengths of the key and of the value (4 each). A branch's: where its
// key begins, its length, the page below (8), whose first key it is. The value of a
// bucket: its root page (8), its sequence (8), and, if the root is 0, its only page
// inline. The freelist has the numbers (8 each) of pages that hold nothing, rising;
// if its count is 65535, the first of them is the count.
//
// # What is not noticed
//
// Bits that nobody reads may be wrong, Check does not look at them: those behind the
// last element of a page that has one, behind the meta pages' checksums, behind the freelist's
// last number, in free pages, and behind the last page. Nothing protects a bucket's
// sequence either: do not build on it. And whether an entry is what was once
// written, only valid can know, by a checksum over the bucket's name, the key and the
// value; so it is with the name of a bucket that is empty.
package pages

import (
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Entry is a key and its value. Names of buckets within buckets are joined by a slash.
type Entry struct {
	Bucket     string // empty: not known, as the page was not reached from the root
	Key, Value []byte
}

// Report is what [Check] has found.
type Report struct {
	// Problems are what is wrong with the file's structure, in short texts, and More is
	// how many there are beside. With any of them bbolt must not have the file.
	Problems []string
	More     int

	// Older says that one meta page is lost and that the other was used: the lost one
	// may have been the newer, its transaction is then missing. That is a problem too.
	Older bool

	// Invalid are entries, without their values, that valid has turned down, and
	// buckets, without a key; MoreInvalid is how many there are beside.
	Invalid     []Entry
	MoreInvalid int

	Entries int // shown to valid
	Pages   int // that the file should have
	Free    int // of these hold nothing, the freelist says

	free     set // the pages that the freelist names
	pageSize int64
}

// Bounds of the lists of a Report.
const (
	MaxProblems = 100
	MaxInvalid  = 10_000
)

// Sound says that the structure is whole: bbolt can read and write the file, and
// finds all entries that it had, the invalid ones among them.
func (r *Report) Sound() bool { return len(r.Problems) == 0 }

// FreeRuns shows where pages are that hold nothing, of a file that is clean; nobody
// reads or writes them until bbolt takes them again.
func (r *Report) FreeRuns(each func(offset, size int64) error) error {
	if !r.Clean() {
		return nil
	}
	for id := uint64(0); id < uint64(len(r.free))*64; {
		n := uint64(0)
		for r.free.has(id + n) {
			n++
		}
		if n > 0 {
			if err := each(int64(id)*r.pageSize, int64(n)*r.pageSize); err != nil {
				return err
			}
		}
		id += n + 1
	}
	return nil
}

// Clean says that the file is sound and all entries are valid.
func (r *Report) Clean() bool { return r.Sound() && len(r.Invalid) == 0 }

func (r *Report) problem(format string, args ...any) {
	if len(r.Problems) < MaxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	} else {
		r.More++
	}
}

func (r *Report) invalid(bucket string, key []byte) {
	if len(r.Invalid) < MaxInvalid {
		r.Invalid = append(r.Invalid, Entry{Bucket: bucket, Key: append([]byte(nil), key...)})
	} else {
		r.MoreInvalid++
	}
}

// Check reads the whole file at path. Nobody may write to it meanwhile. It shows
// every entry to valid, and every bucket too, with a nil key: is there to be one of
// this name? Key and value are valid during the call only. A nil valid takes all.
//
// The error says that the file could not be opened. A part of it that can not be
// read is a problem in the report, and so is a file of no bytes: bbolt would make a
// new store of it.
func Check(path string, valid func(bucket string, key, value []byte) bool) (*Report, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	prefetch(f)
	return check(f, size, valid).report, nil
}

// Where an entry was found says how far it is to be believed.
type Where int

const (
	// Tree: where bbolt would find it.
	Tree Where = iota
	// Orphan: in a page that does not hang on the tree any more, but was not given up:
	// as current as the tree.
	Orphan
	// Stray: in a page of which is not known whether it was given up, as a meta page,
	// or the freelist and a part of the tree, can not be believed. The entry may be
	// current or out of date.
	Stray
	// Free: in a page that was given up. The entry is out of date, or was never
	// committed, or was deleted.
	Free
)

func (w Where) String() string {
	return [...]string{"tree", "orphan", "stray", "free"}[w]
}

// Salvage gives each what it can make out of the file at path, entry by entry: first
// those of the tree, as the newest meta page that is whole (or that can be mended,
// being wrong by one bit) has it, then those of pages that do not hang on it: orphans
// and strays, then the free ones. What is broken takes down as little as can be: a
// page costs its own entries, a wrong element costs itself.
//
// Nothing is certain about an entry that each is given, the caller's checksum
// decides. One may come several times: in several versions, or cut in several ways
// where an element's lengths are wrong. Its bucket is what the tree says, and a
// wrong pointer in the tree makes that a wrong one: try the others before giving up.
// And a value may hold bytes that look like a page: where an entry is a stray or
// free, a checksum that others can compute does not tell who has written it.
//
// Key and value are valid during the call only. An error of each ends Salvage and is
// returned; the other errors say that the file could not be opened.
func Salvage(path string, each func(e Entry, where Where) error) error {
	f, size, err := open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	prefetch(f)
	return salvage(f, size, each)
}

func open(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("not a regular file: %w", fs.ErrInvalid)}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// file is where pages are read from.
type file struct {
	io.ReaderAt
	size     int64
	pageSize int64
}

// pages is how many pages the file has, the last of them perhaps not whole.
func (f *file) pages() uint64 {
	return uint64((f.size + f.pageSize - 1) / f.pageSize)
}

// grow reads on in the page: buf has its first so many bytes and is to have size of
// them. It gives back what there is before the file's end, or before what can not be
// read, with the error.
func (f *file) grow(buf []byte, id uint64, size int64) ([]byte, error) {
	have := int64(len(buf))
	if have >= size {
		return buf, nil
	}
	if size > int64(cap(buf)) {
		buf = append(make([]byte, 0, size), buf...)
	}
	n, err := f.ReadAt(buf[have:size], int64(id)*f.pageSize+have)
	if have+int64(n) == size {
		err = nil
	} else if err == io.EOF {
		err = errEnd
	}
	return buf[:have+int64(n)], err
}
