// Package paths opens files by paths that no other user can redirect. The kernel's
// fs.protected_symlinks is only a part of that: it judges the last element of a path.
package paths

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is an element of a path during a walk.
type Entry struct {
	Path   string      // up to and including it, without links
	Stat   unix.Stat_t // its own: a link's, not that of the link's target
	In     unix.Stat_t // of the directory that contains it
	Shared bool        // every user may create files in that directory, or in one above it
}

// IsLink reports whether the entry is a symbolic link.
func (e *Entry) IsLink() bool { return isType(&e.Stat, unix.S_IFLNK) }

// Ours reports whether the entry belongs to this user or root.
func (e *Entry) Ours() bool { return ours(&e.Stat) }

func ours(st *unix.Stat_t) bool { return int(st.Uid) == os.Geteuid() || st.Uid == 0 }

func isType(st *unix.Stat_t, kind uint32) bool { return uint32(st.Mode)&unix.S_IFMT == kind }

func same(a, b *unix.Stat_t) bool { return a.Ino == b.Ino && a.Dev == b.Dev }

// openToAll reports whether every user may create files in a directory.
func openToAll(dir *unix.Stat_t) bool { return uint32(dir.Mode)&0o002 != 0 }

// NoForeignLink is the check for files that a command writes. It refuses another user's link,
// which may lead us elsewhere. It accepts one in a directory that only we can write to, and
// one in the link owner's own directory, unless that is below a directory such as /tmp: there
// we may have expected a directory of our own.
func NoForeignLink(e *Entry) error {
	switch private := ours(&e.In) && uint32(e.In.Mode)&0o022 == 0; {
	case !e.IsLink(), e.Ours(), private, !e.Shared && e.Stat.Uid == e.In.Uid:
		return nil
	}
	return fmt.Errorf("is a link owned by uid %d: not followed", e.Stat.Uid)
}

// Place is a name in an open directory. Operations reach the name through the directory's
// descriptor, so later changes to the path cannot redirect them.
type Place struct {
	Path   string // without links
	name   string
	dir    int         // descriptor
	in     unix.Stat_t // of the directory
	shared bool        // as in Entry
	magic  bool        // the name is a link in /proc, which leads to an open file
}

// maxSteps limits the elements of a path, those of its links included.
const maxSteps = 256

// Walk opens the directory of path's last element. It passes each element to check, from
// the root down or, for a relative path, from the working directory. It follows links,
// also at the end. If mkdir is not 0, missing directories are created with that mode. The
// last element need not exist.
func Walk(path string, mkdir os.FileMode, check func(*Entry) error) (*Place, error) {
	p := &Place{dir: unix.AT_FDCWD}
	if err := p.walk(path, mkdir, check); err != nil {
		p.Close()
		return nil, fail(path, err)
	}
	return p, nil
}

func (p *Place) walk(path string, mkdir os.FileMode, check func(*Entry) error) error {
	if err := p.begin(path); err != nil {
		return err
	}
	rest := elements(path)
	for steps := 0; len(rest) > 0; steps++ {
		if steps > maxSteps { // a cycle of links, or another process that removes the new directories
			return unix.ELOOP
		}
		name, last := rest[0], len(rest) == 1
		e := &Entry{Path: filepath.Join(p.Path, name), In: p.in, Shared: p.shared}
		switch err := unix.Fstatat(p.dir, name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW); {
		case err == unix.ENOENT && last:
			p.Path, p.name = e.Path, name
			return nil
		case err == unix.ENOENT && mkdir != 0:
			if err = unix.Mkdirat(p.dir, name, uint32(mkdir)); err == nil {
				err = p.Sync()
			}
			if err != nil && err != unix.EEXIST {
				return err
			}
			continue
		case err != nil:
			return err
		}
		if err := check(e); err != nil {
			return fail(e.Path, err)
		}
		magic := e.IsLink() && p.isProc()
		switch {
		case e.IsLink() && !magic:
			target, err := p.readlink(name)
			if err == nil && filepath.IsAbs(target) {
				err = p.begin(target)
			}
			if err != nil {
				return err
			}
			rest = append(elements(target), rest[1:]...)
			continue
		case last:
			p.Path, p.name, p.magic = e.Path, name, magic
			return nil
		}
		if err := p.enter(name, e, magic, check); err != nil {
			return err
		}
		rest = rest[1:]
	}
	return unix.ENOENT
}

// begin opens the directory where a path begins.
func (p *Place) begin(path string) error {
	start := "/"
	p.Path, p.shared = start, false
	if !filepath.IsAbs(path) {
		start, p.Path = ".", ""
		wd, _ := os.Getwd()
		for ; len(wd) > 1; wd = filepath.Dir(wd) {
			var st unix.Stat_t
			p.shared = p.shared || unix.Lstat(wd, &st) == nil && openToAll(&st)
		}
	}
	return fail(start, p.enter(start, &Entry{}, false, func(*Entry) error { return nil }))
}

// enter opens a directory below the current one. It checks the directory again if another one
// had the name before.
func (p *Place) enter(name string, e *Entry, follow bool, check func(*Entry) error) error {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	if runtime.GOOS == "linux" {
		flags |= oPath
	}
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := openat(p.dir, name, flags, 0)
	if err != nil {
		return err
	}
	was := e.Stat
	if err = unix.Fstat(fd, &e.Stat); err == nil && !same(&was, &e.Stat) {
		err = fail(e.Path, check(e))
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	p.Close()
	if e.Path != "" {
		p.Path = e.Path
	}
	p.dir, p.in = fd, e.Stat
	p.shared = p.shared || openToAll(&p.in)
	return nil
}

// oPath is O_PATH of Linux: a directory on the way may permit searching, but not reading.
const oPath = 0x200000

// openat is openat(2), repeated after signals.
func openat(dir int, name string, flags int, mode os.FileMode) (fd int, err error) {
	for {
		if fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, uint32(mode.Perm())); err != unix.EINTR {
			return fd, err
		}
	}
}

// elements splits a path. After a slash at the end the last element is ".": the path must be
// a directory's.
func elements(path string) []string {
	if strings.HasSuffix(path, "/") {
		path += "."
	}
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" })
}

func fail(path string, err error) error {
	var pe *os.PathError
	if err == nil || errors.As(err, &pe) {
		return err
	}
	return &os.PathError{Op: "open", Path: path, Err: err}
}

// isProc reports whether the directory is one of /proc.
func (p *Place) isProc() bool {
	var st unix.Statfs_t
	const magic = 0x9fa0 // PROC_SUPER_MAGIC
	return runtime.GOOS == "linux" && unix.Fstatfs(p.dir, &st) == nil && uint64(st.Type) == magic
}

func (p *Place) readlink(name string) (string, error) {
	buf := make([]byte, 4096) // PATH_MAX
	n, err := unix.Readlinkat(p.dir, name, buf)
	return string(buf[:max(0, n)]), err
}

// Close closes the directory.
func (p *Place) Close() {
	unix.Close(p.dir) // fails if it is not open
	p.dir = -1
}

// Stat returns the file's status. The error is fs.ErrNotExist if there is none.
func (p *Place) Stat() (*unix.Stat_t, error) {
	var st unix.Stat_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if p.magic {
		flags = 0
	}
	return &st, fail(p.Path, unix.Fstatat(p.dir, p.name, &st, flags))
}

// Open opens the file, as os.OpenFile does. Where other users may create files, it does
// not use another user's file, or a file with a second name.
func (p *Place) Open(flags int, mode os.FileMode) (*os.File, error) {
	if p.magic {
		return p.open(flags, mode)
	}
	flags |= unix.O_NOFOLLOW
	if !openToAll(&p.in) && (!p.shared || ours(&p.in)) {
		return p.open(flags, mode)
	}
	if flags&os.O_CREATE != 0 { // of two processes of ours, the later one opens what the other created
		if f, err := p.open(flags|os.O_EXCL, mode); flags&os.O_EXCL != 0 || !errors.Is(err, os.ErrExist) {
			return f, err
		}
	}
	return p.openOwn(flags&^(os.O_CREATE|os.O_TRUNC), flags&os.O_TRUNC != 0)
}

func (p *Place) open(flags int, mode os.FileMode) (*os.File, error) {
	fd, err := openat(p.dir, p.name, flags, mode)
	if err != nil {
		return nil, fail(p.Path, err)
	}
	return os.NewFile(uintptr(fd), p.Path), nil
}

// openOwn opens a file that exists, if it is ours.
func (p *Place) openOwn(flags int, truncate bool) (*os.File, error) {
	st, err := p.Stat()
	device := isType(st, unix.S_IFCHR) || isType(st, unix.S_IFBLK)
	switch {
	case err != nil:
		return nil, err
	case !device && int(st.Uid) != os.Geteuid():
		return nil, fail(p.Path, fmt.Errorf("belongs to uid %d: not overwritten", st.Uid))
	case isType(st, unix.S_IFREG) && st.Nlink > 1:
		return nil, fail(p.Path, errors.New("has a second name elsewhere: not overwritten"))
	}
	f, err := p.open(flags, 0)
	if err != nil {
		return nil, err
	}
	var now unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &now); err == nil && !same(&now, st) {
		err = errors.New("was replaced while it was opened")
	}
	if err == nil && truncate && isType(&now, unix.S_IFREG) {
		err = f.Truncate(0)
	}
	if err != nil {
		f.Close()
		return nil, fail(p.Path, err)
	}
	return f, nil
}

// OpenFile opens a file as os.OpenFile does, but never through another user's link: see
// [NoForeignLink] and [Place.Open].
func OpenFile(path string, flags int, mode os.FileMode) (*os.File, error) {
	if err := checkDescriptor(path, flags&(os.O_WRONLY|os.O_RDWR) != 0); err != nil {
		return nil, err
	}
	if flags&os.O_EXCL != 0 { // then a link at the end is a file that exists
		if _, err := os.Lstat(path); err == nil {
			return nil, fail(path, unix.EEXIST)
		}
	}
	p, err := Walk(path, 0, NoForeignLink)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return p.Open(flags, mode)
}

// Create creates a file of another name in the same directory. The umask applies to mode.
func (p *Place) Create(name string, mode os.FileMode) (*os.File, error) {
	beside := *p
	beside.name, beside.magic, beside.Path = name, false, filepath.Join(filepath.Dir(p.Path), name)
	return beside.open(os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
}

// Replace renames a file that Create has created: it replaces this one.
func (p *Place) Replace(name string) error {
	return fail(p.Path, unix.Renameat(p.dir, name, p.dir, p.name))
}

// Remove removes a file that Create has created.
func (p *Place) Remove(name string) error { return unix.Unlinkat(p.dir, name, 0) }

// Sync makes the names in the directory survive a power cut.
func (p *Place) Sync() error {
	fd, err := openat(p.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == unix.EACCES { // the directory may be written to, but not read
		unix.Sync()
		return nil
	}
	if err != nil {
		return fail(p.Path, err)
	}
	dir := os.NewFile(uintptr(fd), filepath.Dir(p.Path))
	defer dir.Close()
	return Sync(dir)
}

// Sync makes the contents of a file survive a power cut. What cannot be synced, such as a
// pipe, is left alone.
func Sync(f *os.File) error {
	err := f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

// Inherited returns an error unless a descriptor was open when this process began, and can be
// read or, with write, written. What Go's runtime and fbus itself open has the lowest free
// numbers. It would look open, but it does not survive exec(2), so it was not inherited.
func Inherited(fd int, write bool) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 || fd <= 2 && isSubstitute(fd) {
		return errNotOpen
	}
	mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	switch {
	case err != nil, runtime.GOOS == "linux" && mode&oPath != 0:
		return errNotOpen
	case write && mode&unix.O_ACCMODE == unix.O_RDONLY:
		return errors.New("the descriptor is open for reading only")
	case !write && mode&unix.O_ACCMODE == unix.O_WRONLY:
		return errors.New("the descriptor is open for writing only")
	}
	return nil
}

var errNotOpen = errors.New("the descriptor is not open")

// isSubstitute reports whether a standard descriptor was closed when this process began. The
// runtime then opens /dev/null for reading and writing in its place.
func isSubstitute(fd int) bool {
	var st, null unix.Stat_t
	mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || unix.Fstat(fd, &st) != nil || unix.Stat(os.DevNull, &null) != nil {
		return err != nil
	}
	return mode&unix.O_ACCMODE == unix.O_RDWR && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == null.Rdev
}

// IsSubstitute reports whether a standard stream was closed when this process began.
func IsSubstitute(f *os.File) bool { return isSubstitute(int(f.Fd())) }

// Open opens a file for reading, as os.Open does, but no descriptor of our own: see
// [Inherited].
func Open(path string) (*os.File, error) {
	if err := checkDescriptor(path, false); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// Descriptor returns the number in a path of a descriptor of this process, as /dev/fd/3.
func Descriptor(path string) (fd int, ok bool) {
	for _, dir := range []string{"/dev/fd/", "/proc/self/fd/"} {
		if n, ours := strings.CutPrefix(path, dir); ours {
			fd, err := strconv.Atoi(n)
			return fd, err == nil && fd >= 0
		}
	}
	return 0, false
}

// checkDescriptor refuses a path of a descriptor that was not inherited. The standard streams
// are open in any case.
func checkDescriptor(path string, write bool) error {
	if fd, ok := Descriptor(path); ok && fd > 2 {
		return fail(path, Inherited(fd, write))
	}
	return nil
}
