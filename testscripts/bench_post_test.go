package testscripts

import (
	"encoding/binary"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// BenchmarkPost is fbus post as a whole process, beside fbus call of a resident
// function and one commit of a bare bbolt file: what waits for the function on the
// one side waits for the disk on the other.
func BenchmarkPost(b *testing.B) {
	s := newBus(b, []string{"f", "--slots", "2", "--resident", "lines", "--", "sh", "-c", `while IFS= read -r l; do echo "$l"; done`})
	commit := bareCommit(b)
	input := strings.Repeat("x", 255) + "\n"
	times := map[string][]time.Duration{}
	timed := func(name string, f func() error) {
		began := time.Now()
		if err := f(); err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		times[name] = append(times[name], time.Since(began))
	}
	process := func(args ...string) func() error {
		return func() error {
			cmd := s.command(args...)
			cmd.Stdin = strings.NewReader(input)
			return cmd.Run()
		}
	}
	for b.Loop() {
		timed("post", process("post", "nobody"))
		timed("call", process("call", "f"))
		timed("commit", commit)
	}
	median := func(name string) float64 {
		slices.Sort(times[name])
		return float64(times[name][len(times[name])/2]) / 1e6
	}
	b.ReportMetric(median("post"), "post-ms")
	b.ReportMetric(median("call"), "call-ms")
	b.ReportMetric(median("commit"), "commit-ms")
	b.ReportMetric(median("post")/(median("call")+median("commit")), "ratio")
}

// bareCommit returns what commits one record of 256 bytes.
func bareCommit(b *testing.B) func() error {
	db, err := bolt.Open(filepath.Join(b.TempDir(), "limit.db"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	seq, value := uint64(0), make([]byte, 256)
	return func() error {
		return db.Update(func(t *bolt.Tx) error {
			bucket, err := t.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			seq++
			return bucket.Put(binary.BigEndian.AppendUint64(nil, seq), value)
		})
	}
}
