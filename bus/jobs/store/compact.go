package store

import (
	"errors"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A file never becomes smaller by itself: other jobs use the pages again. When a node
// starts, a file of at least this size with at most a quarter in use is copied to a new
// one: each commit writes the list of free pages, which is long then.
const (
	compactSize  = 16 << 20
	compactRatio = 4
)

// compact copies a sound file to a smaller one, if that is worth it, and reports whether
// it has. If it cannot, the store keeps the file.
func (s *Store) compact(path string, c *contents) bool {
	fresh := path + ".new"
	os.Remove(fresh) // left by a start that was interrupted
	st, err := os.Lstat(path)
	if err != nil || st.Size() < compactSize || (c.Pages-c.Free)*compactRatio > c.Pages {
		return false
	}
	if err = s.copyTo(fresh, path); err == nil {
		err = os.Rename(fresh, path)
	}
	done := err == nil
	if done && !s.volatile {
		err = syncDir(s.dir) // if it fails, either file may be there after a power cut: both have all
	}
	if err != nil {
		os.Remove(fresh)
		s.warn("%s could not be made smaller: %v", path, err)
	}
	return done
}

// copyTo copies all entries of one file to another, and syncs that.
func (s *Store) copyTo(fresh, path string) (err error) {
	defer catch(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	from, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: true, OpenFile: openNoFollow})
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := bolt.Open(fresh, 0o600, &bolt.Options{Timeout: time.Second, NoSync: true, OpenFile: openNoFollow})
	if err != nil {
		return err
	}
	err = bolt.Compact(to, from, 4<<20)
	if err == nil && !s.volatile {
		err = to.Sync()
	}
	return errors.Join(err, to.Close())
}
