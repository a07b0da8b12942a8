package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// TestFormat: a store of a later format is refused, and one that does not say is looked
// at for itself.
func TestFormat(t *testing.T) {
	t.Parallel()
	var lines []string
	cfg := Config{Dir: filepath.Join(t.TempDir(), "jobs"), Volatile: true, Warn: func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }}
	mark := filepath.Join(cfg.Dir, "format")
	for _, was := range []string{"", "fbus-jobs 99\n", "fbus-jobs 3\n", "fbus-jobs 0\n", "garbage\n", "\n"} {
		if was != "" {
			if err := os.WriteFile(mark, []byte(was), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m, err := Open(cfg)
		if later := strings.HasPrefix(was, "fbus-jobs"); later != (err != nil) || later && !strings.Contains(err.Error(), "format "+strings.Fields(was)[1]+" is unknown") {
			t.Errorf("%q: error %v", was, err)
		}
		if err != nil {
			continue
		}
		m.Close()
		if text, err := os.ReadFile(mark); string(text) != "fbus-jobs 2\n" {
			t.Errorf("%q became %q, error %v", was, text, err)
		}
	}
	os.Rename(mark, mark+".real")
	if err := os.Symlink(mark+".real", mark); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "symbolic links") {
		t.Errorf("a link: error %v", err)
	}
	if n := strings.Count(strings.Join(lines, "\n"), "is damaged: it is written again"); n != 2 {
		t.Errorf("%d of 2 were told of: %q", n, lines)
	}
}

// TestEarlierFormat: a store of format 1 is opened, and is one of this format from then on.
func TestEarlierFormat(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: filepath.Join(t.TempDir(), "jobs"), Volatile: true, Warn: t.Errorf}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	mark := filepath.Join(cfg.Dir, "format")
	if err := os.WriteFile(mark, []byte("fbus-jobs 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	edit := func(f func(b *bolt.Tx) error) {
		t.Helper()
		db, err := bolt.Open(filepath.Join(cfg.Dir, dbName), 0o600, nil)
		if err == nil {
			err = errors.Join(db.Update(f), db.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	edit(func(b *bolt.Tx) error {
		for _, later := range []string{BucketBatch, BucketUnended, BucketThen} {
			if b.Bucket([]byte(later)) != nil {
				if err := b.DeleteBucket([]byte(later)); err != nil {
					return err
				}
			}
		}
		return (&Tx{b, s}).Put(BucketMeta, []byte("format"), []byte("1"))
	})
	for range 2 {
		if s, err = Open(cfg); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if text, _ := os.ReadFile(mark); string(text) != "fbus-jobs 2\n" {
		t.Errorf("the mark is %q", text)
	}
	edit(func(b *bolt.Tx) error {
		if v, err := (&Tx{b, s}).Get(BucketMeta, []byte("format")); string(v) != "2" {
			t.Errorf("the format is %q, %v", v, err)
		}
		return nil
	})
}
