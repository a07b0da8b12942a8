package store

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

const (
	maxReserve   = 1 << 20 // a sixteenth of a small disk
	reserveShare = 16
	// purgeReserve is the part that only purges use: the deletion of one job writes its
	// neighbours again, a few parts of inlineSize at most.
	purgeReserve = 128 << 10
)

// reserve is an empty file that takes room on the disk. The store releases that when
// the disk is full: without it neither the deletion of jobs nor the end of running ones
// could be written.
type reserve struct{ path string }

// make allocates what is missing, or as much of that as there is, and then returns an
// error.
func (r *reserve) make() error {
	f, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return Wrap(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Wrap(err)
	}
	want := r.size()
	err = fallocate(f, 0, 0, want)
	for size := want / 2; IsFull(err) && size >= st.Size() && size > 0; size /= 2 {
		if fallocate(f, 0, 0, size) == nil {
			break
		}
	}
	return Wrap(err)
}

// release frees all but some bytes of the reserved room.
func (r *reserve) release(all int64) {
	if st, err := os.Lstat(r.path); err == nil && st.Size() > all {
		os.Truncate(r.path, all)
	}
}

// size is how much to reserve.
func (r *reserve) size() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &st); err != nil || st.Blocks == 0 {
		return maxReserve + purgeReserve
	}
	share := int64(st.Blocks) * st.Bsize / reserveShare
	return min(maxReserve, share&^4095) + purgeReserve
}

// roomBeside reports whether the disk has room for as much again.
func (r *reserve) roomBeside() bool {
	var st unix.Statfs_t
	return unix.Statfs(filepath.Dir(r.path), &st) != nil || int64(st.Bavail)*st.Bsize >= r.size()
}

// jobRoom is what a disk must have left after a post for each job that has not ended, or that
// the end of one may post, and twice the size of the reserve besides. The output of jobs may
// take the second half of that. The start and the end of a job, and its entries in the log,
// take about half of jobRoom.
const jobRoom = 1 << 10

var errNearlyFull = &FullError{What: "the disk is nearly full", Err: syscall.ENOSPC}

// HasRoom returns an error if a new job would take the room in which accepted ones have to start
// and end.
func (s *Store) HasRoom() error { return s.room(jobRoom, false) }

// room returns an error if so many bytes of a post, or of the output of jobs, would take that room.
func (s *Store) room(bytes int64, output bool) error {
	s.using.RLock()
	defer s.using.RUnlock()
	if s.db == nil { // nothing is written at all
		return nil
	}
	left, outputs := s.spare()
	if output {
		left = outputs
	}
	if left >= bytes {
		return nil
	}
	return errNearlyFull
}

// spare returns how many bytes new jobs may take, and the output of accepted ones. s.using is
// held.
func (s *Store) spare() (posts, outputs int64) {
	var disk unix.Statfs_t
	var file unix.Stat_t
	var size int64
	err := s.db.View(func(b *bolt.Tx) error { size = b.Size(); return nil })
	if err != nil || unix.Statfs(s.dir, &disk) != nil || disk.Blocks == 0 || unix.Stat(s.db.Path(), &file) != nil {
		return math.MaxInt64, math.MaxInt64
	}
	stats, t := s.db.Stats(), s.Shares.Total()
	used := size - int64(stats.FreePageN+stats.PendingPageN)*int64(s.db.Info().PageSize)
	left := int64(disk.Bavail)*disk.Bsize + max(0, file.Blocks*512-used) // free pages are used again
	outputs = left - s.reserve.size() - (t.Unended+2*t.Owed)*jobRoom
	return outputs - s.reserve.size(), outputs
}

// punchHoles returns the room of the file's free pages to the disk: bbolt keeps it, and
// a disk that the store has filled would stay full however much is purged. The last
// commit must not have failed.
func (s *Store) punchHoles() error {
	s.using.Lock() // a reader may use pages that are free for writers
	defer s.using.Unlock()
	c, err := s.inspect(s.db.Path())
	if err != nil {
		return Wrap(err)
	}
	f, err := openNoFollow(s.db.Path(), os.O_RDWR, 0)
	if err != nil {
		return Wrap(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Wrap(err)
	}
	free, pageSize := c.free, uint64(s.db.Info().PageSize)
	for id := c.pages; id < uint64(st.Size())/pageSize; id++ { // the file grows ahead of its pages
		free = append(free, id)
	}
	slices.Sort(free)
	for first := 0; first < len(free) && err == nil; {
		end := first + 1
		for end < len(free) && free[end] == free[end-1]+1 {
			end++
		}
		at, size := int64(free[first]*pageSize), int64(uint64(end-first)*pageSize)
		err = fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, size)
		first = end
	}
	return Wrap(err)
}

// fallocate changes what room a file takes on the disk. On a filesystem that cannot do that
// it does nothing.
func fallocate(f *os.File, mode uint32, at, size int64) error {
	for {
		switch err := unix.Fallocate(int(f.Fd()), mode, at, size); err {
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return nil
		default:
			return err
		}
	}
}
