package store

import (
	"errors"
	"os"
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

// compact replaces a sound file by a smaller copy, if that is worth it. If it cannot, the
// store keeps the file.
func (s *Store) compact(path string, c *contents) {
	os.Remove(path + ".new") // left by a start that was interrupted
	st, err := os.Lstat(path)
	if err != nil || st.Size() < compactSize || (c.pages-uint64(len(c.free)))*compactRatio > c.pages {
		return
	}
	err = guarded(func() error {
		from, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: true, OpenFile: openNoFollow})
		if err != nil {
			return err
		}
		defer from.Close()
		return s.replace(path, "", func(to *bolt.DB) error { return bolt.Compact(to, from, 4<<20) })
	})
	if err != nil {
		s.warn("%s could not be made smaller: %v", path, err)
	}
}

// replace puts a new file in the place of the old one, which is kept if it has another
// name then. A power cut may leave either, and both are whole.
func (s *Store) replace(path, aside string, fill func(to *bolt.DB) error) (err error) {
	fresh := path + ".new"
	os.Remove(fresh)
	defer func() {
		if err != nil {
			os.Remove(fresh)
		}
	}()
	to, err := bolt.Open(fresh, 0o600, &bolt.Options{Timeout: time.Second, NoSync: true, OpenFile: openNoFollow})
	if err != nil {
		return err
	}
	if err = fill(to); err == nil && !s.volatile {
		err = to.Sync()
	}
	if err = errors.Join(err, to.Close()); err == nil && aside != "" {
		err = os.Rename(path, aside)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err == nil && !s.volatile {
		err = syncDir(s.dir)
	}
	return err
}
