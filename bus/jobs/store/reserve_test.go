package store

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// smallDisk makes a tmpfs that is mounted nowhere, and returns its directory.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may make filesystems")
	}
	if os.Getpagesize() != 4096 {
		t.Skip("the sizes of these tests are those of small pages")
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "size", size); err != nil {
		t.Fatal(err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Skip(err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Close(dir) })
	return fmt.Sprintf("/proc/self/fd/%d/store", dir)
}

// openSmall opens a store on a small disk, and counts what it warns of.
func openSmall(t *testing.T, size string) (s *Store, warnings *atomic.Int32) {
	t.Helper()
	warnings = new(atomic.Int32)
	s, err := Open(Config{Dir: smallDisk(t, size), Warn: func(format string, args ...any) {
		warnings.Add(1)
		t.Logf(format, args...)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, warnings
}

// overwrite writes so many values of a page each, in a commit of its own.
func (s *Store) overwrite(t *testing.T, values int) {
	t.Helper()
	for i := range values {
		err := s.Apply(Op{Run: func(x *Tx) error {
			return x.Put(BucketMeta, fmt.Append(nil, "value ", i), []byte(strings.Repeat("x", 3<<10)))
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestReaderOnFullDisk: commits do not fail on a disk that is nearly full since a reader keeps pages which
// they have replaced.
func TestReaderOnFullDisk(t *testing.T) {
	t.Parallel()
	s, warnings := openSmall(t, "2m")
	const values = 225 // apart from the reserve there is room for as many again, but not for all
	s.overwrite(t, values)
	reads, over := make(chan struct{}), make(chan struct{})
	waited := make(chan bool, 1)
	go func() { // ends when the writer waits, or has written all
		s.View(func(*Tx) error {
			close(reads)
			for s.using.TryRLock() {
				s.using.RUnlock()
				select {
				case <-over:
					waited <- false
					return nil
				case <-time.After(time.Millisecond):
				}
			}
			waited <- true
			return nil
		})
	}()
	<-reads
	s.overwrite(t, values)
	close(over)
	if !<-waited || warnings.Load() > 0 {
		t.Error("the writer did not wait for the reader")
	}
}

// TestHolesTwice: free pages are returned to the disk again after they were used again, and nothing else is.
func TestHolesTwice(t *testing.T) {
	t.Parallel()
	s, _ := openSmall(t, "8m")
	const values = 600
	for range 2 {
		s.overwrite(t, values)
		err := s.Apply(Op{Run: func(x *Tx) error { // every second one, so that there are many holes
			for i := 0; i < values; i += 2 {
				if err := x.Delete(BucketMeta, fmt.Append(nil, "value ", i)); err != nil {
					return err
				}
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		_, _, before := s.spare()
		if err := s.Apply(Op{holes: true, Run: func(*Tx) error { return nil }}); err != nil {
			t.Fatal(err)
		}
		if _, _, after := s.spare(); before < values/4*4096 || after != 0 {
			t.Errorf("%d bytes of free pages; %d after they were returned", before, after)
		}
		if err := s.db.View(func(b *bolt.Tx) error { return <-b.Check() }); err != nil {
			t.Error(err)
		}
		if c, err := s.inspect(s.db.Path()); err != nil {
			t.Errorf("%+v, %v", c, err)
		}
	}
}
