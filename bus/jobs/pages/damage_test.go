package pages_test

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"

	"fbus/bus/jobs/pages"
)

func random(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// most is how often to try something: n times, or less where it takes long. What
// these tests look for, race detection does not find.
func most(n int) int {
	if raceEnabled || testing.Short() {
		return max(1, n/16)
	}
	return n
}

// harmless says of each byte of a store whether it may be anything: bbolt neither
// reads it nor keeps it, but for the sequences of buckets.
func (s *store) harmless() []bool {
	h := make([]bool, len(s.data))
	mark := func(from, to int) {
		for i := from; i < to; i++ {
			h[i] = true
		}
	}
	mark(int(s.used), len(s.data))
	u16, u32 := binary.NativeEndian.Uint16, binary.NativeEndian.Uint32
	for n := 0; n < int(s.used)/s.page; n++ {
		at := n * s.page
		if s.free[uint64(n)] {
			mark(at, at+s.page)
			continue
		}
		p := s.data[at:]
		count, overflow := int(u16(p[10:])), int(u32(p[12:]))
		end := 0
		switch u16(p[8:]) {
		case 4:
			end = 16 + 64
		case 16:
			end = 16 + 8*count
		case 1:
			last := 16 * count // of the last element, if there is one
			end = last + int(u32(p[last:])+u32(p[last+4:]))
		case 2:
			if end = 16; count == 0 {
				end = s.page // that its count is 0 can be seen by nothing else
			}
			for i := 1; i <= count; i++ {
				value := 16*i + int(u32(p[16*i+4:])+u32(p[16*i+8:]))
				if u32(p[16*i:]) == 1 {
					mark(at+value+8, at+value+16)
				}
				end = value + int(u32(p[16*i+12:]))
			}
		}
		mark(at+end, at+(1+overflow)*s.page)
		n += overflow
	}
	return h
}

// TestEveryBit flips each bit of a store, and holds which ones do no harm.
func TestEveryBit(t *testing.T) {
	s := small(t)
	harmless := s.harmless()
	data := slices.Clone(s.data)
	wrong, opened := 0, 0
	for bit := 0; bit < len(data)*8; bit += len(data)*8/most(len(data)*8) | 1 {
		data[bit/8] ^= 1 << (bit % 8)
		r := pages.CheckBytes(data, s.valid)
		if r.Clean() != harmless[bit/8] {
			t.Errorf("bit %d, byte %d of page %d: clean %v, harmless %v: %q", bit, bit/8%s.page, bit/8/s.page, r.Clean(), harmless[bit/8], r.Problems)
			if wrong++; wrong > 20 {
				t.FailNow()
			}
		}
		if r.Sound() && (!r.Clean() && bit%199 == 0 || bit%1511 == 0) {
			opened++
			s.checkReader(t, data, r)
		}
		data[bit/8] ^= 1 << (bit % 8)
	}
	t.Logf("%d bytes, %d times opened", len(data), opened)
}

// checkReader holds what Check says of a sound store against what bbolt reads:
// nothing is different but what is named, and it stays so when bbolt writes.
func (s *store) checkReader(t *testing.T, data []byte, r *pages.Report) {
	t.Helper()
	got, _ := readData(t, data)
	if len(got) != len(s.content) {
		t.Errorf("bbolt reads %d entries of %d", len(got), len(s.content))
	}
	for k, v := range got {
		named := slices.ContainsFunc(r.Invalid, func(e pages.Entry) bool {
			return e.Bucket == k.bucket && string(e.Key) == k.key
		})
		if s.content[k] != v && !named {
			t.Errorf("%v is %q, and nobody says so", k, v)
		}
	}
	if !r.Clean() {
		return
	}
	path := filepath.Join(t.TempDir(), "written.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for k := range s.content {
			put(tx, k.bucket, k.key, "new")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	after, err := pages.Check(path, s.valid)
	if err != nil || !after.Clean() || after.Entries != len(s.content) {
		t.Errorf("after writing: %v, %+v", err, after)
	}
}

// TestTruncated cuts a store everywhere.
func TestTruncated(t *testing.T) {
	for _, s := range []*store{small(t), big(t, 1500)} {
		step := len(s.data) / most(200)
		for cut := 0; cut < len(s.data); cut += step {
			r := pages.CheckBytes(s.data[:cut], s.valid)
			if r.Clean() != (int64(cut) >= s.used) {
				t.Fatalf("cut at %d of %d: %+v", cut, s.used, r)
			}
			recovered(t, s, s.data[:cut])
		}
		if int64(len(s.data)) > s.used {
			if got, _ := readData(t, s.data[:s.used]); same(got, s.content) != "" {
				t.Error(same(got, s.content))
			}
		}
	}
}

// TestRandomDamage flips bits, and wipes and shifts sectors, of a larger store.
func TestRandomDamage(t *testing.T) {
	s, rnd := big(t, 1500), random(t)
	harmless := s.harmless()
	for range most(100) {
		data := slices.Clone(s.data)
		at := rnd.IntN(len(data))
		switch rnd.IntN(4) {
		case 0, 1:
			data[at] ^= 1 << rnd.IntN(8)
		case 2:
			clear(data[at&^511:][:512])
		case 3:
			copy(data[at&^4095:][:4096], s.data[rnd.IntN(len(data))&^4095:])
		}
		hurt := false
		for i := range data {
			hurt = hurt || data[i] != s.data[i] && !harmless[i]
		}
		if r := pages.CheckBytes(data, s.valid); r.Clean() == hurt {
			t.Errorf("damage at %d: %v, but %+v", at, hurt, r)
		}
		recovered(t, s, data)
	}
}
