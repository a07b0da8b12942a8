package jobs

import (
	"errors"
	"os"
	"runtime/debug"
	"time"

	"fbus/bus/jobs/pages"

	bolt "go.etcd.io/bbolt"
)

// A file never becomes smaller by itself: what jobs leave behind is used again by
// others. One that is at least this large, and has at most a quarter in use, is written
// anew when a node starts: each commit writes the list of what is free, which is long
// then.
const (
	compactSize  = 16 << 20
	compactRatio = 4
)

// compact makes the file of a store small that was found sound, if it is worth it, and
// reports whether it has. If it can not, the file does as it is.
func (s *Store) compact(path string, r *pages.Report) bool {
	fresh := path + ".new"
	os.Remove(fresh) // of one that was cut off
	st, err := os.Lstat(path)
	if err != nil || st.Size() < compactSize || (r.Pages-r.Free)*compactRatio > r.Pages {
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

// copyTo writes all that is in one file to another one, which is on disk then.
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
