package commands

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// openFile opens a file to write to it, as os.OpenFile does. But in a directory where
// everybody may make files, such as /tmp, nobody else decides what is written to:
// another user's link is not followed, and his file, or one that has a second name, is
// not taken for ours. The kernel sees to most of that where fs.protected_symlinks and
// its like are set.
func openFile(path string, flags int, mode os.FileMode) (f *os.File, err error) {
	if path, err = resolve(path); err != nil {
		return nil, err
	}
	if !shared(dirOf(path)) {
		return os.OpenFile(path, flags, mode)
	}
	for range 3 { // of two of ours that make it one comes too late
		st, err := os.Lstat(path)
		switch {
		case err == nil:
			return openKnown(path, flags, st)
		case !errors.Is(err, fs.ErrNotExist) || flags&os.O_CREATE == 0:
			return nil, err
		}
		if f, err = os.OpenFile(path, flags|os.O_EXCL, mode); !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
	return nil, err
}

// openKnown opens what was found, if it is ours and still there.
func openKnown(path string, flags int, st os.FileInfo) (*os.File, error) {
	if why := strange(st); why != "" {
		return nil, &os.PathError{Op: "open", Path: path, Err: errors.New(why)}
	}
	f, err := os.OpenFile(path, flags&^(os.O_CREATE|os.O_TRUNC)|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(st, now) {
		err = &os.PathError{Op: "open", Path: path, Err: errors.New("was replaced while it was opened")}
	}
	if err == nil && flags&os.O_TRUNC != 0 && now.Mode().IsRegular() {
		err = f.Truncate(0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// resolve follows the links that a path ends in, but not another user's in a directory where
// everybody may make them.
func resolve(path string) (string, error) {
	for range 40 {
		st, err := os.Lstat(path)
		if err != nil || st.Mode().Type() != os.ModeSymlink {
			return path, nil // an error shows again when it is opened
		}
		uid := ownerOf(st)
		if uid != os.Geteuid() && shared(dirOf(path)) {
			return "", &os.PathError{Op: "open", Path: path, Err: fmt.Errorf("is a link owned by uid %d: not followed", uid)}
		}
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if isMagic(path) {
			return path, nil
		}
		if !filepath.IsAbs(target) {
			target = dirOf(path) + target
		}
		path = target
	}
	return "", &os.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
}

// dirOf is the directory that a path is in, as it is written: above a link .. is not what
// it looks like.
func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i+1]
	}
	return "./"
}

// isMagic reports whether a link leads to an open file, whatever it reads.
func isMagic(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dirOf(path), &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// shared reports whether everybody may make files in a directory.
func shared(dir string) bool {
	st, err := os.Stat(dir)
	return err == nil && st.Mode()&0o002 != 0
}

// strange is why a file in such a directory is not taken for ours, empty if it is.
func strange(st os.FileInfo) string {
	sys := st.Sys().(*syscall.Stat_t)
	switch {
	case st.Mode()&os.ModeDevice != 0:
	case int(sys.Uid) != os.Geteuid():
		return fmt.Sprintf("belongs to uid %d: not overwritten", sys.Uid)
	case st.Mode().IsRegular() && sys.Nlink > 1:
		return "has a second name elsewhere: not overwritten"
	}
	return ""
}

func ownerOf(st os.FileInfo) int { return int(st.Sys().(*syscall.Stat_t).Uid) }
