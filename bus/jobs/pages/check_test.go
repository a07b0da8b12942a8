package pages_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"fbus/bus/jobs/pages"
)

// checkClean says that a store that bbolt has written is clean, and what is in it.
func checkClean(t *testing.T, s *store) *pages.Report {
	t.Helper()
	r := pages.CheckBytes(s.data, s.valid)
	if !r.Clean() || r.Older || r.More != 0 {
		t.Fatalf("not clean: %q, invalid %v", r.Problems, r.Invalid)
	}
	if r.Entries != len(s.content) || int64(r.Pages)*int64(s.page) != s.used || r.Free != len(s.free) {
		t.Errorf("%d entries, %d pages, %d free; bbolt has %d, %d, %d",
			r.Entries, r.Pages, r.Free, len(s.content), s.used/int64(s.page), len(s.free))
	}
	got := content{}
	pages.CheckBytes(s.data, func(bucket string, key, value []byte) bool {
		if key != nil {
			got[id{bucket, string(key)}] = string(value)
		}
		return true
	})
	if diff := same(got, s.content); diff != "" {
		t.Error(diff)
	}
	return r
}

func TestWholeStores(t *testing.T) {
	t.Run("small", func(t *testing.T) { checkClean(t, small(t)) })
	t.Run("big", func(t *testing.T) { checkClean(t, big(t, 6000)) })
	t.Run("new", func(t *testing.T) { checkClean(t, build(t, bbolt.Options{})) })
	for size := 1024; size <= 64<<10; size *= 2 {
		t.Run(fmt.Sprint("pages of ", size), func(t *testing.T) {
			checkClean(t, build(t, bbolt.Options{PageSize: size}, func(tx *bbolt.Tx) {
				for i := range 500 {
					put(tx, "jobs", fmt.Sprint(i), strings.Repeat("x", i*10))
				}
			}))
		})
	}
	t.Run("no freelist", func(t *testing.T) {
		s := build(t, bbolt.Options{NoFreelistSync: true}, func(tx *bbolt.Tx) {
			put(tx, "jobs", "a", strings.Repeat("x", 50_000))
		}, func(tx *bbolt.Tx) { del(tx, "jobs", "a") })
		s.free = nil // the file does not say
		checkClean(t, s)
	})
	t.Run("freelist of many", func(t *testing.T) {
		if most(2) < 2 {
			t.Skip("a store of 66 MB")
		}
		s := build(t, bbolt.Options{PageSize: 1024}, func(tx *bbolt.Tx) {
			put(tx, "jobs", "a", strings.Repeat("x", 66<<20))
		}, func(tx *bbolt.Tx) { del(tx, "jobs", "a") })
		if r := checkClean(t, s); r.Free < 0xFFFF {
			t.Errorf("%d free pages are not enough for the test", r.Free)
		}
	})
	t.Run("deep", func(t *testing.T) {
		s := build(t, bbolt.Options{PageSize: 1024}, func(tx *bbolt.Tx) {
			for i := range 300 {
				put(tx, "jobs", fmt.Sprintf("%03d", i)+strings.Repeat("k", 700), "long keys")
			}
			put(tx, strings.TrimSuffix(strings.Repeat("in/", 40), "/"), "k", strings.Repeat("v", 400))
		})
		checkClean(t, s)
	})
}

// TestGrowingStore checks a store after each of many changes at random sizes.
func TestGrowingStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 1024, NoSync: true, NoGrowSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rnd := random(t)
	for range most(300) {
		err := db.Update(func(tx *bbolt.Tx) error {
			for range rnd.IntN(60) {
				bucket := [...]string{"a", "b", "c/d", "c/e"}[rnd.IntN(4)]
				key := fmt.Sprint(rnd.IntN(400))
				if rnd.IntN(5) < 2 {
					del(tx, bucket, key)
				} else {
					put(tx, bucket, key, strings.Repeat("v", rnd.IntN(1<<rnd.IntN(13))))
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r, err := pages.Check(path, func(bucket string, key, value []byte) bool {
			return key == nil || sealed(bucket, key, value)
		})
		if err != nil || !r.Clean() {
			t.Fatalf("%v, %+v", err, r)
		}
	}
}

func TestNoStore(t *testing.T) {
	dir := t.TempDir()
	if _, err := pages.Check(filepath.Join(dir, "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := pages.Check(dir, nil); err == nil {
		t.Error("a directory was taken")
	}
	if err := pages.Salvage(filepath.Join(dir, "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for name, data := range map[string]string{
		"empty": "", "short": "x", "zeros": strings.Repeat("\x00", 20_000), "text": strings.Repeat("some text\n", 5000),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := pages.Check(path, nil)
		if err != nil || r.Sound() {
			t.Errorf("%s: %v, %+v", name, err, r)
		}
		err = pages.Salvage(path, func(e pages.Entry, w pages.Where) error {
			t.Errorf("%s: %v %v", name, e, w)
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestInvalid: an entry that the caller turns down leaves the structure sound, and
// is named; so is a bucket.
func TestInvalid(t *testing.T) {
	s := small(t)
	r := pages.CheckBytes(s.data, func(bucket string, key, value []byte) bool {
		if key == nil {
			return bucket != "empty"
		}
		return string(key) != "job07"
	})
	if !r.Sound() || r.Clean() || len(r.Invalid) != 2 {
		t.Fatalf("%+v", r)
	}
	if e := r.Invalid[0]; e.Bucket != "empty" || e.Key != nil {
		t.Errorf("%+v", e)
	}
	if e := r.Invalid[1]; e.Bucket != "jobs" || string(e.Key) != "job07" || e.Value != nil {
		t.Errorf("%+v", e)
	}
}

// TestFreeRuns: the parts of a file that hold nothing are the pages that bbolt has
// given up, and nothing is missing without them.
func TestFreeRuns(t *testing.T) {
	s := big(t, 1000)
	r := checkClean(t, s)
	data := bytes.Clone(s.data)
	total := int64(0)
	err := r.FreeRuns(func(offset, size int64) error {
		clear(data[offset : offset+size])
		total += size
		return nil
	})
	if err != nil || total == 0 || total != int64(r.Free)*int64(s.page) {
		t.Errorf("%v: %d bytes are free; bbolt has %d pages", err, total, r.Free)
	}
	if r := pages.CheckBytes(data, s.valid); !r.Clean() || r.Entries != len(s.content) {
		t.Errorf("without them: %d entries, %q", r.Entries, r.Problems)
	}
	broken := pages.CheckBytes(data[:len(data)/2], s.valid)
	if broken.FreeRuns(func(int64, int64) error { return errors.New("called") }) != nil {
		t.Error("a file that is not clean has free pages")
	}
}
