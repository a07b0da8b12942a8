package pages_test

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"fbus/bus/jobs/pages"
)

// BenchmarkCheck checks a store of 100 MB that is in memory, seals and all. Beside it
// is how long it takes just to read the file from its beginning to its end.
func BenchmarkCheck(b *testing.B) {
	path := filepath.Join(b.TempDir(), "store.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true})
	if err != nil {
		b.Fatal(err)
	}
	payload := strings.Repeat("p", 256)
	for i, size := 0, int64(0); size < 100<<20; {
		err := db.Update(func(tx *bbolt.Tx) error {
			for range 10_000 {
				put(tx, "jobs", string(binary.BigEndian.AppendUint64(nil, uint64(i))), payload)
				i++
			}
			size = tx.Size()
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	db.Close()
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	valid := func(bucket string, key, value []byte) bool { return key == nil || sealed(bucket, key, value) }
	b.SetBytes(info.Size())
	b.ReportAllocs()
	for b.Loop() {
		if r, err := pages.Check(path, valid); err != nil || !r.Clean() {
			b.Fatal(err, r)
		}
	}
	took := b.Elapsed() / time.Duration(b.N)
	b.ReportMetric(float64(took)/float64(plainRead(b, path)), "of-plain-read")
}

func plainRead(b *testing.B, path string) time.Duration {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	best, buf := time.Hour, make([]byte, 256<<10)
	for range 5 {
		start := time.Now()
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		for err = nil; err == nil; {
			_, err = f.Read(buf)
		}
		best = min(best, time.Since(start))
	}
	return best
}
