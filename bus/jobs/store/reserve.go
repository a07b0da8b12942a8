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
func (s *Store) HasRoom() error {
	posts, _, pages := s.spare()
	return enough(posts+pages, jobRoom)
}

// scarce is how much room there is on a disk from which two may not take some at once: both would see the same.
const scarce = 16 << 20

// inRoom has write take so many bytes for a file, of a post or of the output of jobs, or returns an error if
// that would take the room in which accepted jobs have to start and end. It may wait for the writer.
func (s *Store) inRoom(bytes int64, output bool, write func() error) error {
	for {
		left, err := s.fileRoom(bytes, output)
		if err != nil {
			return err
		}
		if left-bytes >= scarce {
			return write()
		}
		s.claim.Lock()
		posts, outputs, _ := s.spare()
		if output {
			posts = outputs
		}
		if posts >= bytes {
			defer s.claim.Unlock()
			return write()
		}
		s.claim.Unlock() // another has taken it meanwhile
	}
}

// fileRoom returns how much room there is for a file, and an error if that is too little. Free pages are returned to
// the disk first if they are needed.
func (s *Store) fileRoom(bytes int64, output bool) (left int64, err error) {
	for again := false; ; again = true {
		left, outputs, pages := s.spare()
		if output {
			left = outputs
		}
		err := enough(left, bytes)
		if err == nil || again || !s.returnable(pages) || left+pages < bytes {
			return left, err
		}
		s.Apply(Op{holes: true, Run: func(*Tx) error { return nil }})
	}
}

func enough(left, bytes int64) error {
	if left >= bytes {
		return nil
	}
	return errNearlyFull
}

// returnable reports whether it is worth it to return so many bytes of free pages to the disk. A
// filesystem that did not take them back is not asked at each post and output.
func (s *Store) returnable(pages int64) bool { return pages > 0 && pages >= 2*s.kept.Load() }

const unbounded = math.MaxInt64 / 2 // a sum does not overflow

// spare returns how many bytes new jobs may take, and the output of accepted ones, and how many more if
// free pages of the file are returned to the disk. Until then these are no room for other files, and for
// a long value only where several are in a row. A few are not worth it.
func (s *Store) spare() (posts, outputs, pages int64) {
	s.using.RLock()
	defer s.using.RUnlock()
	if s.db == nil { // nothing is written at all
		return unbounded, unbounded, 0
	}
	var disk unix.Statfs_t
	var file unix.Stat_t
	var size int64
	err := guarded(func() error { return s.db.View(func(b *bolt.Tx) error { size = b.Size(); return nil }) })
	if err != nil || unix.Statfs(s.dir, &disk) != nil || disk.Blocks == 0 || unix.Stat(s.db.Path(), &file) != nil {
		return unbounded, unbounded, 0
	}
	stats, t, reserve := s.db.Stats(), s.Shares.Total(), s.reserve.size()
	used := size - int64(stats.FreePageN+stats.PendingPageN)*int64(s.db.Info().PageSize)
	if pages = file.Blocks*512 - used; pages < reserve/2 {
		pages = 0
	}
	outputs = int64(disk.Bavail)*disk.Bsize - reserve - (t.Unended+2*t.Owed)*jobRoom
	return outputs - reserve, outputs, pages
}

// commitInRoom commits a batch in the room that there is. It returns free pages to the disk first if the batch
// needs that. The writer calls it.
func (s *Store) commitInRoom(batch []*Op) error {
	var takes int64
	asked := false
	for _, o := range batch {
		takes += o.Takes
		asked = asked || o.holes
	}
	if takes == 0 && !asked {
		return s.commitBatch(batch, 0, 0)
	}
	posts, outputs, pages := s.spare()
	if posts-takes < scarce {
		s.claim.Lock()
		defer s.claim.Unlock()
		posts, outputs, pages = s.spare()
	}
	if s.returnable(pages) && (asked || takes > posts) {
		s.punchHoles() // a failure that matters is met by the commit
		posts, outputs, pages = s.spare()
		s.kept.Store(pages)
	}
	return s.commitBatch(batch, posts+pages, outputs+pages) // not all filesystems take pages back
}

// awaitReaders waits for all readers if they keep many pages that commits have replaced, and the disk has
// less room than the reserve: the next commits need it. The writer calls it.
func (s *Store) awaitReaders() {
	s.using.RLock()
	pinned, low := int64(0), false
	if s.db != nil {
		pinned = int64(s.db.Stats().PendingPageN) * int64(s.db.Info().PageSize)
		low = pinned >= purgeReserve && !s.reserve.roomBeside()
	}
	s.using.RUnlock()
	if low {
		s.using.Lock()
		defer s.using.Unlock() // the next commit uses the pages again
	}
}

// punchHoles returns the room of the file's free pages to the disk: bbolt keeps it, and
// a disk that the store has filled would stay full however much is purged. The last
// commit must not have failed.
func (s *Store) punchHoles() error {
	s.using.Lock() // a reader may use pages that are free for writers
	defer s.using.Unlock()
	var free []uint64
	var count uint64
	err := readPages(s.db.Path(), func(p *pages) {
		p.guard(func() { p.readFreelist() })
		free, count = p.free, p.count
	})
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
	pageSize := uint64(s.db.Info().PageSize)
	for id := count; id < uint64(st.Size())/pageSize; id++ { // the file grows ahead of its pages
		free = append(free, id)
	}
	slices.Sort(free)
	for first := 0; first < len(free) && err == nil; {
		end := first + 1
		for end < len(free) && free[end] == free[end-1]+1 {
			end++
		}
		at, size := int64(free[first]*pageSize), int64(uint64(end-first)*pageSize)
		first = end
		// Most are holes already if it is not the first time. To see that takes less time.
		switch data, none := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA); {
		case none == unix.ENXIO:
			return nil
		case none == nil && data >= at+size:
			continue
		}
		err = fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, size)
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
