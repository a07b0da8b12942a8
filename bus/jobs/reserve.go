package jobs

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"fbus/bus/jobs/pages"

	"golang.org/x/sys/unix"
)

const (
	// maxReserve is what is set aside of the disk, a sixteenth of a small one.
	maxReserve   = 1 << 20
	reserveShare = 16
	// minSpare is for the deletion of one job: its neighbours are written anew, which
	// are a few parts of inlineSize at most.
	minSpare = 128 << 10
)

// reserve is a file of no content that is given up when the disk is full: without it
// not even the deletion of jobs could be written, nor the end of those that run.
type reserve struct {
	path  string
	least int64 // that it is to be
}

// make sets the room aside, if there is not enough yet: as much of it as there is,
// and an error if that is not all.
func (r *reserve) make() error {
	f, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return storeError(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return storeError(err)
	}
	want := r.size()
	err = setAside(f, want)
	for size := want / 2; isFull(err) && size >= st.Size() && size > 0; size /= 2 {
		if setAside(f, size) == nil {
			break
		}
	}
	return storeErrorOrNil(err)
}

// makeReserves sets room aside for purges first, and for what has happened.
func (s *Store) makeReserves() error {
	err := s.spare.make()
	if err == nil {
		err = s.reserve.make()
	}
	return err
}

// give gives it up.
func (r *reserve) give() { os.Truncate(r.path, 0) }

// size is how large it is to be.
func (r *reserve) size() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &st); err != nil || st.Blocks == 0 {
		return maxReserve
	}
	const page = 4096
	share := int64(st.Blocks) * st.Bsize / reserveShare
	return max(page, r.least, min(maxReserve, share/page*page))
}

// setAside makes a file so long, with room on the disk for all of it. Where the
// filesystem can not do that there is no reserve.
func setAside(f *os.File, size int64) error {
	for {
		switch err := unix.Fallocate(int(f.Fd()), 0, 0, size); err {
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return nil
		default:
			return err
		}
	}
}

// hollow gives back to the disk what a file has of free pages: bbolt never does, and
// a disk that the store has filled would stay full however much is purged.
func hollow(path string, report *pages.Report) error {
	f, err := openNoFollow(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = report.FreeRuns(func(offset, size int64) error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, size)
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}
