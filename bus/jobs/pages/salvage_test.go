package pages_test

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"fbus/bus/jobs/pages"
)

// found is what a careful caller makes of a salvage: the entries whose seals are
// right for their bucket, or for one of those that there are. A stray may come in
// several versions.
type found map[pages.Where]map[id][]string

func salvage(t testing.TB, s *store, data []byte) found {
	t.Helper()
	f := found{}
	err := pages.SalvageBytes(data, func(e pages.Entry, w pages.Where) error {
		names := []string{e.Bucket}
		if !sealed(e.Bucket, e.Key, e.Value) {
			names = slices.Collect(maps.Keys(s.buckets))
		}
		for _, name := range names {
			if sealed(name, e.Key, e.Value) {
				if f[w] == nil {
					f[w] = map[id][]string{}
				}
				k := id{name, string(e.Key)}
				f[w][k] = append(f[w][k], string(e.Value))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// current says whether an entry is among those that are not known to be out of date.
func (f found) current(k id, v string) bool {
	for w, entries := range f {
		if w != pages.Free && slices.Contains(entries[k], v) {
			return true
		}
	}
	return false
}

// in has the entries of one kind or more, which come once.
func (f found) in(kinds ...pages.Where) content {
	c := content{}
	for _, w := range kinds {
		for k, list := range f[w] {
			c[k] = list[0]
		}
	}
	return c
}

// homes says for each entry in which pages it is, the first and the last.
func (s *store) homes() map[id][]int {
	ids := map[string]id{}
	for k, v := range s.content {
		ids[k.key+v] = k // the seal tells them apart
	}
	list := map[id][]int{}
	for n := 2; n < int(s.used)/s.page; n++ {
		p := s.data[n*s.page:]
		if s.free[uint64(n)] {
			continue
		}
		overflow := int(binary.NativeEndian.Uint32(p[12:]))
		if binary.NativeEndian.Uint16(p[8:]) == 2 {
			leafEntries(p, func(entry string) {
				if k, ok := ids[entry]; ok {
					list[k] = append(list[k], n, n+overflow)
				}
			})
		}
		n += overflow
	}
	return list
}

// leafEntries gives each the keys and values of an undamaged leaf, joined.
func leafEntries(p []byte, each func(entry string)) {
	u32 := binary.NativeEndian.Uint32
	for i := range int(binary.NativeEndian.Uint16(p[10:])) {
		e := p[16+16*i:]
		key, size := e[u32(e[4:]):], u32(e[8:])
		value := key[size:][:u32(e[12:])]
		if u32(e) == 0 {
			each(string(key[:size]) + string(value))
		} else if len(value) > 16 {
			leafEntries(value[16:], each)
		}
	}
}

// recovered holds what a salvage of a damaged store must give: all that is in pages
// that are untouched, and nothing out of date as if it were current, but when the
// meta page is lost that tells.
func recovered(t testing.TB, s *store, data []byte) found {
	t.Helper()
	f := salvage(t, s, data)
	kinds := []pages.Where{pages.Tree, pages.Orphan}
	if pages.CheckBytes(data, nil).Older {
		kinds = nil
	}
	for _, w := range kinds {
		for k, list := range f[w] {
			for _, v := range list {
				if s.content[k] != v {
					t.Errorf("%v in %v is %.40q, not %.40q", k, w, v, s.content[k])
				}
			}
		}
	}
	touched := map[int]bool{}
	for n := 0; n < len(s.data)/s.page; n++ {
		end := min(len(data), (n+1)*s.page)
		touched[n] = end < (n+1)*s.page || string(data[n*s.page:end]) != string(s.data[n*s.page:end])
	}
	if s.home == nil {
		s.home = s.homes()
	}
	for k, v := range s.content {
		home := s.home[k]
		if len(home) != 2 {
			t.Fatalf("%v is in pages %v", k, home)
		}
		whole := true
		for n := home[0]; n <= home[1]; n++ {
			whole = whole && !touched[n]
		}
		if whole && !f.current(k, v) {
			t.Errorf("%v of pages %v is lost", k, home)
		}
	}
	return f
}

// TestSalvageEveryBit: a wrong bit costs one entry, and that only if it is in it.
func TestSalvageEveryBit(t *testing.T) {
	s := small(t)
	data := slices.Clone(s.data)
	for bit := 0; bit < len(data)*8; bit += len(data)*8/most(len(data)) | 1 {
		data[bit/8] ^= 1 << (bit % 8)
		f := recovered(t, s, data)
		var lost []id
		for k, v := range s.content {
			if !f.current(k, v) {
				lost = append(lost, k)
			}
		}
		if len(lost) > 1 {
			t.Errorf("bit %d, byte %d of page %d has cost %v", bit, bit/8%s.page, bit/8/s.page, lost)
		}
		data[bit/8] ^= 1 << (bit % 8)
		if t.Failed() {
			t.Fatalf("bit %d, byte %d of page %d", bit, bit/8%s.page, bit/8/s.page)
		}
	}
}

func TestSalvageWhole(t *testing.T) {
	for _, s := range []*store{small(t), big(t, 1500)} {
		f := recovered(t, s, s.data)
		if diff := same(f.in(pages.Tree), s.content); diff != "" {
			t.Error(diff)
		}
		if f[pages.Orphan] != nil || f[pages.Stray] != nil || f[pages.Free] == nil {
			t.Errorf("orphans %v, strays %v, %d free", f[pages.Orphan], f[pages.Stray], len(f[pages.Free]))
		}
	}
}
