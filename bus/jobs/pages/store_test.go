package pages_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// id names an entry.
type id struct{ bucket, key string }

// content is what a reader finds: values with their seals.
type content map[id]string

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(bucket string, key, payload []byte) uint32 {
	s := crc32.Update(0, castagnoli, []byte(bucket+"\x00"))
	return crc32.Update(crc32.Update(s, castagnoli, key), castagnoli, payload)
}

// seal makes a value, as it is stored.
func seal(bucket, key, payload string) []byte {
	v := binary.LittleEndian.AppendUint32(nil, sum(bucket, []byte(key), []byte(payload)))
	return append(v, payload...)
}

func sealed(bucket string, key, value []byte) bool {
	return len(value) >= 4 && binary.LittleEndian.Uint32(value) == sum(bucket, key, value[4:])
}

// store is a bbolt file, undamaged.
type store struct {
	data    []byte
	content content
	buckets map[string]bool
	free    map[uint64]bool // pages
	used    int64           // bytes below the high-water mark
	page    int             // bytes of one
	home    map[id][]int    // first and last page of each entry, when known
}

// valid is what a careful caller has: it knows its buckets too.
func (s *store) valid(bucket string, key, value []byte) bool {
	if key == nil {
		return s.buckets[bucket]
	}
	return sealed(bucket, key, value)
}

// build makes a store in transactions. The database has the page size, and lasts
// until the last of them.
func build(t testing.TB, opts bbolt.Options, steps ...func(tx *bbolt.Tx)) *store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	opts.NoSync, opts.NoGrowSync = true, true
	db, err := bbolt.Open(path, 0o600, &opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		if err := db.Update(func(tx *bbolt.Tx) error { step(tx); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	s := &store{free: map[uint64]bool{}, page: db.Info().PageSize}
	err = db.View(func(tx *bbolt.Tx) error {
		s.used = tx.Size()
		for n := range s.used / int64(s.page) {
			info, err := tx.Page(int(n))
			if err != nil {
				return err
			}
			if info.Type == "free" {
				s.free[uint64(n)] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if s.data, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	s.content, s.buckets = read(t, path)
	return s
}

// read asks bbolt what is in a file.
func read(t testing.TB, path string) (content, map[string]bool) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c, buckets := content{}, map[string]bool{}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			return readBucket(b, string(name), c, buckets)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, buckets
}

func readBucket(b *bbolt.Bucket, name string, c content, buckets map[string]bool) error {
	buckets[name] = true
	return b.ForEach(func(k, v []byte) error {
		if v == nil {
			return readBucket(b.Bucket(k), name+"/"+string(k), c, buckets)
		}
		c[id{name, string(k)}] = string(v)
		return nil
	})
}

func readData(t testing.TB, data []byte) (content, map[string]bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "damaged.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return read(t, path)
}

// put writes sealed values to a bucket, whose name may be a path.
func put(tx *bbolt.Tx, bucket, key, payload string) {
	b := bucketOf(tx, bucket)
	if err := b.Put([]byte(key), seal(bucket, key, payload)); err != nil {
		panic(err)
	}
}

func del(tx *bbolt.Tx, bucket, key string) {
	if err := bucketOf(tx, bucket).Delete([]byte(key)); err != nil {
		panic(err)
	}
}

func bucketOf(tx *bbolt.Tx, path string) *bbolt.Bucket {
	names := strings.Split(path, "/")
	b, err := tx.CreateBucketIfNotExists([]byte(names[0]))
	for _, name := range names[1:] {
		if err != nil {
			break
		}
		b, err = b.CreateBucketIfNotExists([]byte(name))
	}
	if err != nil {
		panic(err)
	}
	return b
}

// small is a store that has one of everything, and old versions in its free pages.
func small(t testing.TB) *store {
	s := build(t, bbolt.Options{PageSize: 1024}, func(tx *bbolt.Tx) {
		for i := range 40 {
			put(tx, "jobs", fmt.Sprintf("job%02d", i), strings.Repeat("queued", 6))
		}
		put(tx, "big", "large", strings.Repeat("overflow", 300))
		bucketOf(tx, "empty")
	}, func(tx *bbolt.Tx) {
		for i := range 40 {
			put(tx, "jobs", fmt.Sprintf("job%02d", i), strings.Repeat("doing!", 6))
		}
	}, func(tx *bbolt.Tx) {
		for i := range 28 {
			put(tx, "jobs", fmt.Sprintf("job%02d", i), strings.Repeat("is done", 5))
		}
		for i := 28; i < 36; i++ {
			del(tx, "jobs", fmt.Sprintf("job%02d", i))
		}
	}, func(tx *bbolt.Tx) {
		put(tx, "inline", "a", "1")
		put(tx, "inline", "b", "2")
		put(tx, "outer", "key", "beside a bucket")
		put(tx, "outer/inner", "x", strings.Repeat("not inline ", 40))
		put(tx, "outer/tiny", "y", "inline in an inner one")
		put(tx, "jobs", "job05", "the last change")
	})
	if len(s.free) == 0 || len(s.content) < 35 {
		t.Fatalf("%d free pages, %d entries", len(s.free), len(s.content))
	}
	return s
}

// big is one of the same kind, with many pages of 4096 bytes.
func big(t testing.TB, n int) *store {
	steps := []func(tx *bbolt.Tx){func(tx *bbolt.Tx) {
		for i := range n {
			put(tx, "jobs", fmt.Sprintf("%08d", i), strings.Repeat("first", 1+i%60))
		}
	}, func(tx *bbolt.Tx) {
		for i := 0; i < n; i += 3 {
			put(tx, "jobs", fmt.Sprintf("%08d", i), strings.Repeat("second", 1+i%60))
		}
		for i := n / 4; i < n/3; i++ {
			del(tx, "jobs", fmt.Sprintf("%08d", i))
		}
		for i := range 10 {
			put(tx, "big", fmt.Sprint(i), strings.Repeat("large", 2000*(i+1)))
			put(tx, "inline", fmt.Sprint(i), "small")
		}
	}, func(tx *bbolt.Tx) {
		for i := 0; i < n; i += 5 {
			put(tx, "index/by age", fmt.Sprintf("%08d", n-i), "x")
		}
		for i := range 5 {
			del(tx, "big", fmt.Sprint(i))
		}
	}}
	return build(t, bbolt.Options{PageSize: 4096}, steps...)
}

// same says how what was read differs from what was written.
func same(got, want content) string {
	if maps.Equal(got, want) {
		return ""
	}
	for k, v := range want {
		if got[k] != v {
			return fmt.Sprintf("%v is %.40q, not %.40q (%d entries of %d)", k, got[k], v, len(got), len(want))
		}
	}
	return fmt.Sprintf("%d entries, not %d", len(got), len(want))
}
