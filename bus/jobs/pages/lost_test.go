package pages_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"

	"fbus/bus/jobs/pages"
)

// TestMetaMended: the newest meta page, with a bit flipped, is used all the same.
func TestMetaMended(t *testing.T) {
	s := small(t)
	for page := range 2 {
		for bit := range 64 * 8 {
			data := slices.Clone(s.data)
			data[page*s.page+16+bit/8] ^= 1 << (bit % 8)
			r := pages.CheckBytes(data, s.valid)
			if r.Sound() || r.Older || r.Entries != len(s.content) {
				t.Fatalf("page %d, bit %d: %+v", page, bit, r)
			}
			if f := salvage(t, s, data); same(f.in(pages.Tree), s.content) != "" || f[pages.Orphan] != nil || f[pages.Stray] != nil {
				t.Fatalf("page %d, bit %d: %v", page, bit, same(f.in(pages.Tree), s.content))
			}
		}
	}
}

// TestMetaLost: with one meta page the tree may be that of the transaction before;
// without any, all is stray.
func TestMetaLost(t *testing.T) {
	s := small(t)
	for page := range 2 {
		data := slices.Clone(s.data)
		clear(data[page*s.page:][:s.page])
		if r := pages.CheckBytes(data, s.valid); r.Sound() || !r.Older {
			t.Errorf("page %d: %+v", page, r)
		}
		f := salvage(t, s, data)
		for k, v := range s.content {
			if !f.current(k, v) {
				t.Errorf("page %d: %v is lost", page, k)
			}
		}
		if f[pages.Free] != nil || f[pages.Orphan] != nil {
			t.Errorf("page %d: what was given up is not known", page)
		}
	}
	data := slices.Clone(s.data)
	clear(data[:2*s.page])
	if r := pages.CheckBytes(data, s.valid); r.Sound() || r.Older {
		t.Errorf("%+v", r)
	}
	f := salvage(t, s, data)
	if len(f) != 1 || len(f[pages.Stray]) < len(s.content) {
		t.Errorf("%d kinds, %d strays", len(f), len(f[pages.Stray]))
	}
}

// TestLostBranch: what hangs on a branch that is lost are orphans, and only those.
func TestLostBranch(t *testing.T) {
	s := big(t, 1500)
	lost := 0
	for n := 2; n < int(s.used)/s.page; n++ {
		if p := s.data[n*s.page:]; binary.NativeEndian.Uint16(p[8:]) != 1 || s.free[uint64(n)] {
			continue
		}
		data := slices.Clone(s.data)
		clear(data[n*s.page:][:s.page])
		f := recovered(t, s, data)
		if diff := same(f.in(pages.Tree, pages.Orphan), s.content); diff != "" || f[pages.Stray] != nil || len(f[pages.Orphan]) == 0 {
			t.Errorf("page %d: %s; %d strays", n, diff, len(f[pages.Stray]))
		}
		lost++
	}
	if lost == 0 {
		t.Error("the store has no branches")
	}
}

// TestLostFreelist: with the tree whole, what does not hang on it is out of date,
// whatever the freelist says.
func TestLostFreelist(t *testing.T) {
	s := small(t)
	for n := 2; n < int(s.used)/s.page; n++ {
		if p := s.data[n*s.page:]; binary.NativeEndian.Uint16(p[8:]) != 16 || s.free[uint64(n)] {
			continue
		}
		for _, size := range []int{8, 16, s.page} {
			data := slices.Clone(s.data)
			clear(data[n*s.page:][:size])
			f := recovered(t, s, data)
			if diff := same(f.in(pages.Tree), s.content); diff != "" || len(f[pages.Free]) == 0 || len(f) != 2 {
				t.Errorf("%d bytes: %s, %d kinds", size, diff, len(f))
			}
		}
		return
	}
	t.Error("the store has no freelist")
}

func TestSalvageStops(t *testing.T) {
	stop, n := errors.New("enough"), 0
	err := pages.SalvageBytes(small(t).data, func(pages.Entry, pages.Where) error {
		if n++; n == 5 {
			return stop
		}
		return nil
	})
	if err != stop || n != 5 {
		t.Errorf("%v after %d", err, n)
	}
}

// badSector is a file that can not be read in one place.
type badSector struct {
	*bytes.Reader
	from, to int64
}

func (r badSector) ReadAt(p []byte, at int64) (int, error) {
	if at < r.to && at+int64(len(p)) > r.from {
		n, _ := r.Reader.ReadAt(p[:max(0, r.from-at)], at)
		return n, syscall.EIO
	}
	return r.Reader.ReadAt(p, at)
}

// TestBadSector: a page that the disk does not give costs what is in it.
func TestBadSector(t *testing.T) {
	s := small(t)
	for at := int64(0); at < s.used; at += 512 {
		r := badSector{bytes.NewReader(s.data), at, at + 512}
		if used := !s.free[uint64(at)/uint64(s.page)]; pages.CheckReader(r, int64(len(s.data))).Sound() && used && !s.harmless()[at] {
			t.Errorf("at %d it is sound", at)
		}
		n := 0
		err := pages.SalvageReader(r, int64(len(s.data)), func(pages.Entry, pages.Where) error { n++; return nil })
		if err != nil || n < len(s.content)/2 {
			t.Errorf("at %d: %v, %d entries", at, err, n)
		}
	}
}

// TestPlantedPage: a value that looks like a page of entries is not taken for one
// when the branch above is lost, or whoever may write values could write any entry.
func TestPlantedPage(t *testing.T) {
	s := build(t, bbolt.Options{PageSize: 1024}, func(tx *bbolt.Tx) {
		for i := range 40 {
			put(tx, "jobs", fmt.Sprintf("job%02d", i), strings.Repeat("x", 30))
		}
		put(tx, "jobs", "large", strings.Repeat("overflow", 600))
	})
	leaf, branch := 0, 0
	for n := 2; n < int(s.used)/s.page; n++ {
		switch p := s.data[n*s.page:]; {
		case p[8] == 2 && p[12] >= 2:
			leaf = n
		case p[8] == 1 && binary.NativeEndian.Uint64(p) == uint64(n):
			branch = n
		}
	}
	if leaf == 0 || branch == 0 {
		t.Fatal("the store is not as it was meant to be")
	}
	planted := s.data[(leaf+2)*s.page:][:s.page]
	value := seal("jobs", "evil", "run this")
	clear(planted)
	binary.NativeEndian.PutUint64(planted, uint64(leaf+2))
	for i, v := range []uint32{2 | 1<<16, 0, 0, 16, 4, uint32(len(value))} { // flags and count, overflow, an element
		binary.NativeEndian.PutUint32(planted[8+4*i:], v)
	}
	copy(planted[32:], "evil"+string(value))
	clear(s.data[branch*s.page:][:s.page])
	for w, entries := range salvage(t, s, s.data) {
		if entries[id{"jobs", "evil"}] != nil {
			t.Errorf("the planted entry is taken for one of the kind %v", w)
		}
	}
}
