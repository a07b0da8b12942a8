package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	currentName = "log.jsonl"
	newName     = "log.new" // what becomes current when all else has moved on
	lockName    = "lock"
)

// fileName is the name of the k-th file, 0 the one that is written to.
func fileName(k int) string {
	if k == 0 {
		return currentName
	}
	return "log." + strconv.Itoa(k) + ".jsonl"
}

// files is the journal's directory, held open: its files are reached through the
// descriptor and never through a link.
type files struct {
	path string
	dir  *os.File
	lock *os.File // flocked
}

// openFiles opens the directory, and makes it if need be.
func openFiles(path string) (*files, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, plain(path, err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, plain(path, err)
	}
	d := &files{path: path, dir: os.NewFile(uintptr(fd), path)}
	err = safe(path, d.dir, unix.S_IFDIR)
	if err == nil {
		err = d.takeLock()
	}
	if err != nil {
		d.close()
		return nil, err
	}
	unix.Unlinkat(d.fd(), newName, 0)
	return d, nil
}

// takeLock keeps other processes from the journal. The file stays when we are
// gone: it is the lock on it that counts, and that ends with us.
func (d *files) takeLock() error {
	f, err := d.open(lockName, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return err
	}
	d.lock = f
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: another process writes this journal", d.path)
	}
	if err != nil {
		return plain(d.join(lockName), err)
	}
	return nil
}

func (d *files) fd() int                 { return int(d.dir.Fd()) }
func (d *files) join(name string) string { return filepath.Join(d.path, name) }

func (d *files) close() {
	d.dir.Close()
	if d.lock != nil {
		d.lock.Close()
	}
}

// open opens a file of ours; it is an error if it is a link, or others may write
// to it.
func (d *files) open(name string, flags int) (*os.File, error) {
	// Without O_NONBLOCK a FIFO of that name would hold us up for ever.
	fd, err := unix.Openat(d.fd(), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s: is a symbolic link: it is not followed", d.join(name))
	}
	if err != nil {
		return nil, plain(d.join(name), err)
	}
	f := os.NewFile(uintptr(fd), d.join(name))
	if err := safe(d.join(name), f, unix.S_IFREG); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// safe refuses what others have made or may write to: they would write our log.
func safe(path string, f *os.File, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return plain(path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return fmt.Errorf("%s: is no regular file", path)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s: belongs to uid %d: it is not used", path, st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s: mode %04o lets others write to it", path, st.Mode&0o7777)
	}
	return nil
}

// existing opens the files that are there, oldest first, and removes those beyond
// the number that is kept.
func (d *files) existing(keep int) ([]*os.File, error) {
	names, err := os.ReadDir(d.path)
	if err != nil {
		return nil, plain(d.path, err)
	}
	for _, e := range names {
		number, isOurs := strings.CutPrefix(e.Name(), "log.")
		number, isLog := strings.CutSuffix(number, ".jsonl")
		if k, err := strconv.Atoi(number); isOurs && isLog && err == nil && k >= keep && fileName(k) == e.Name() {
			unix.Unlinkat(d.fd(), e.Name(), 0)
		}
	}
	var list []*os.File
	for k := keep - 1; k >= 0; k-- {
		flags := unix.O_RDWR
		if k == 0 {
			flags |= unix.O_CREAT
		}
		f, err := d.open(fileName(k), flags)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			for _, f := range list {
				f.Close()
			}
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}

// rotate moves every file on by one, the oldest out, and returns a new current one.
// That is made before anything moves: a full disk must not cost the old entries.
func (d *files) rotate(keep int) (*os.File, error) {
	unix.Unlinkat(d.fd(), newName, 0)
	f, err := d.open(newName, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return nil, err
	}
	for k := keep - 2; k >= 0 && err == nil; k-- {
		err = unix.Renameat(d.fd(), fileName(k), d.fd(), fileName(k+1))
		if errors.Is(err, unix.ENOENT) { // somebody has removed it
			err = nil
		}
	}
	if err == nil {
		err = unix.Renameat(d.fd(), newName, d.fd(), currentName)
	}
	if err != nil {
		f.Close()
		unix.Unlinkat(d.fd(), newName, 0)
		return nil, plain(d.join(currentName), err)
	}
	return f, nil
}

// plain is an error with the path before it, once.
func plain(path string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		path, err = pe.Path, pe.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}
