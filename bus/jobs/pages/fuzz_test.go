package pages_test

import (
	"encoding/binary"
	"hash/fnv"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"fbus/bus/jobs/pages"
)

// FuzzFile: whatever a file is, Check and Salvage come to an end, and what Check
// takes for sound, bbolt reads as Check has shown it. Each patch is an offset (2
// bytes) and a byte for it; resum makes the meta pages right again, or little behind
// them would ever be looked at.
func FuzzFile(f *testing.F) {
	base := build(f, bbolt.Options{PageSize: 1024}, func(tx *bbolt.Tx) {
		for i := range 30 {
			put(tx, "jobs", string(rune('a'+i)), "some value, with so many bytes that there is a branch")
		}
	}, func(tx *bbolt.Tx) {
		put(tx, "big", "overflow", string(make([]byte, 3000)))
	}, func(tx *bbolt.Tx) {
		put(tx, "jobs", "a", "a new version")
	}, func(tx *bbolt.Tx) {
		put(tx, "inline", "x", "y")
	}).data
	f.Add([]byte(nil), uint16(0), false)
	f.Add([]byte{0x04, 0x0a, 9, 0x08, 0x0c, 1}, uint16(0), true)
	f.Add([]byte{0x00, 0x20, 5}, uint16(20), true)
	f.Fuzz(func(t *testing.T, patches []byte, cut uint16, resum bool) {
		data := append([]byte(nil), base[:max(0, len(base)-int(cut))]...)
		for ; len(patches) >= 3; patches = patches[3:] {
			if at := int(binary.BigEndian.Uint16(patches)); at < len(data) {
				data[at] = patches[2]
			}
		}
		for at := 0; resum && at <= 1024 && at+80 <= len(data); at += 1024 {
			h := fnv.New64a()
			h.Write(data[at+16 : at+72])
			binary.NativeEndian.PutUint64(data[at+72:], h.Sum64())
		}
		got := content{}
		r := pages.CheckBytes(data, func(bucket string, key, value []byte) bool {
			if key != nil {
				got[id{bucket, string(key)}] = string(value)
			}
			return true
		})
		if err := pages.SalvageBytes(data, func(pages.Entry, pages.Where) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if r.Sound() {
			readBack(t, data, got)
		}
	})
}

// readBack lets bbolt read and write what Check has called sound.
func readBack(t *testing.T, data []byte, want content) {
	path := filepath.Join(t.TempDir(), "store.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	got, _ := read(t, path)
	if diff := same(got, want); diff != "" {
		t.Fatal(diff)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error { put(tx, "new", "key", "value"); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if r, err := pages.Check(path, nil); err != nil || !r.Sound() {
		t.Fatalf("%v, %+v", err, r)
	}
}
