package trust

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/paths"

	"golang.org/x/sys/unix"
)

// privateDir is an open directory that belongs to this user alone. Its files are reached
// through the descriptor and never through a link, so later changes to the path cannot
// redirect them.
type privateDir struct {
	f    *os.File
	path string
}

// fileID identifies one version of a file. Each version is a new inode, put in place by
// rename.
type fileID struct {
	dev, ino uint64
	size     int64
	mtime    unix.Timespec
}

const (
	tempPrefix = ".new-"
	lockName   = "lock"
	lockWait   = 5 * time.Second // a holder needs milliseconds; a stopped one must not stop us
)

// openPrivate opens the directory, creating it with mode 0700 if needed. It fails if
// other users could read it, or could redirect the path through something they own.
func openPrivate(path string) (*privateDir, error) { return openUnless(path, 0o077) }

// openUnless opens the directory, and fails if its mode has any of the given bits.
func openUnless(path string, mode uint32) (*privateDir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, errorf(args.CodeStorage, "%s: %v", path, err)
	}
	var f *os.File
	place, err := paths.Walk(abs+"/.", 0o700, ownPath)
	if err == nil {
		f, err = place.Open(unix.O_RDONLY|unix.O_DIRECTORY, 0)
		place.Close()
	}
	var e *args.Error
	switch {
	case errors.As(err, &e):
		return nil, e
	case err != nil:
		return nil, errorf(args.CodeStorage, "%s: %v", path, args.WithoutPath(err))
	}
	d := &privateDir{f: f, path: path}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd(), &st); err != nil {
		d.close()
		return nil, errorf(args.CodeStorage, "%s: %v", path, err)
	}
	if int(st.Uid) != os.Geteuid() {
		d.close()
		return nil, foreign(path, st.Uid)
	}
	if uint32(st.Mode)&mode != 0 {
		d.close()
		return nil, errorf(args.CodeUnsafe, "%s: mode %04o gives others access", path, uint32(st.Mode)&0o7777).WithHint("chmod 700 %s", path)
	}
	return d, nil
}

// ownPath refuses a link or directory on the way that belongs to another user, who would
// decide where it leads. In a directory such as /tmp, another user's link may have taken
// the name.
func ownPath(e *paths.Entry) error {
	mode := uint32(e.Stat.Mode)
	switch {
	case !e.Ours():
		return foreign(e.Path, e.Stat.Uid)
	case mode&unix.S_IFMT == unix.S_IFDIR && mode&0o002 != 0 && mode&unix.S_ISVTX == 0:
		return errorf(args.CodeUnsafe, "%s: every user may rename its files", e.Path).WithHint("chmod o-w %s, or set FBUS_HOME to a directory of your own", e.Path)
	}
	return nil
}

func foreign(path string, uid uint32) *args.Error {
	return errorf(args.CodeUnsafe, "%s: belongs to uid %d, and is not used", path, uid).WithHint("set FBUS_HOME to a directory of your own")
}

func (d *privateDir) fd() int      { return int(d.f.Fd()) }
func (d *privateDir) close() error { return d.f.Close() }

// join returns the path of a file, for messages.
func (d *privateDir) join(name string) string { return filepath.Join(d.path, name) }

// fail returns the error of an operation on a file; nil for nil.
func (d *privateDir) fail(name string, err error) error {
	if err == nil {
		return nil
	}
	return errorf(args.CodeStorage, "%s: %v", d.join(name), err)
}

// read returns a file's content. It fails if the file is a link, is longer than limit,
// or is readable or writable by others.
func (d *privateDir) read(name string, limit int64) ([]byte, fileID, error) {
	return d.readUnless(name, limit, 0o077)
}

// readUnless reads a file, and fails if its mode has any of the given bits.
func (d *privateDir) readUnless(name string, limit int64, mode uint32) ([]byte, fileID, error) {
	// Without O_NONBLOCK a FIFO of that name would block forever.
	fd, err := unix.Openat(d.fd(), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fileID{}, errorf(args.CodeUnsafe, "%s: is a symbolic link, and not followed", d.join(name))
	}
	if err != nil {
		return nil, fileID{}, d.fail(name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fileID{}, d.fail(name, err)
	}
	switch {
	case uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG:
		return nil, fileID{}, errorf(args.CodeUnsafe, "%s: is not a regular file", d.join(name))
	case int(st.Uid) != os.Geteuid():
		return nil, fileID{}, foreign(d.join(name), st.Uid)
	case uint32(st.Mode)&mode != 0:
		return nil, fileID{}, errorf(args.CodeUnsafe, "%s: mode %04o gives others access", d.join(name), uint32(st.Mode)&0o7777).WithHint("chmod 600 %s", d.join(name))
	case st.Size > limit:
		return nil, fileID{}, errorf(args.CodeDamaged, "%s: %d bytes exceed the limit of %d", d.join(name), st.Size, limit)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit))
	return data, idOf(&st), d.fail(name, err)
}

// write replaces a file, mode 0600. A crash at any moment leaves either the old content
// or the new. When it returns nil, the new content is on the disk.
func (d *privateDir) write(name string, data []byte) (fileID, error) {
	temp := tempPrefix + rand.Text()
	if err := d.create(temp, name, data); err != nil {
		return fileID{}, err
	}
	var st unix.Stat_t
	err := unix.Fstatat(d.fd(), temp, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = unix.Renameat(d.fd(), temp, d.fd(), name)
	}
	if err != nil {
		unix.Unlinkat(d.fd(), temp, 0)
		return fileID{}, d.fail(name, err)
	}
	if err := d.f.Sync(); err != nil {
		return fileID{}, errorf(args.CodeStorage, "%s: %v", d.path, err)
	}
	return idOf(&st), nil
}

// create makes a new file, mode 0600. When it returns nil, the content is on the disk;
// otherwise there is no file. An error names the file that it is made for.
func (d *privateDir) create(name, shown string, data []byte) error {
	fd, err := unix.Openat(d.fd(), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return d.fail(shown, err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		unix.Unlinkat(d.fd(), name, 0)
	}
	return d.fail(shown, args.WithoutPath(err))
}

// stat returns the identity of a file's current version.
func (d *privateDir) stat(name string) (fileID, error) {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return idOf(&st), d.fail(name, err)
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim}
}

// remove removes a file. When it returns nil, the removal is on the disk.
func (d *privateDir) remove(name string) error {
	err := unix.Unlinkat(d.fd(), name, 0)
	if err == nil {
		err = d.f.Sync()
	}
	return d.fail(name, err)
}

func (d *privateDir) list() ([]string, error) {
	fd, err := unix.Openat(d.fd(), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errorf(args.CodeStorage, "%s: %v", d.path, err)
	}
	f := os.NewFile(uintptr(fd), d.path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// sweep removes leftovers of interrupted writes. The lock must be held.
func (d *privateDir) sweep() {
	names, _ := d.list()
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) {
			unix.Unlinkat(d.fd(), name, 0)
		}
	}
}

// lock keeps other processes from changing the directory. The lock file is never
// removed, because waiting processes hold it open.
func (d *privateDir) lock() (unlock func(), err error) {
	fd, err := unix.Openat(d.fd(), lockName, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errorf(args.CodeStorage, "%s: %v", d.join(lockName), err)
	}
	for until := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { unix.Close(fd) }, nil
		}
		if time.Now().After(until) {
			unix.Close(fd)
			return nil, errorf(args.CodeStorage, "%s: another process has held the lock for %s: %v", d.join(lockName), lockWait, err)
		}
	}
}
