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

// openFile opens a file for writing, as os.OpenFile does. But in a directory where every
// user may create files, such as /tmp, it does not follow another user's link, and does
// not use another user's file or a file with a second name. The kernel does most of that
// where fs.protected_symlinks and similar settings are on.
func openFile(path string, flags int, mode os.FileMode) (f *os.File, err error) {
	if path, err = resolve(path); err != nil {
		return nil, err
	}
	if !shared(dirOf(path)) {
		return os.OpenFile(path, flags, mode)
	}
	for range 3 { // of two processes of ours that create it, one is too late
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

// openKnown opens the file that was found, if it is ours and still the same.
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

// resolve follows the links at the end of a path, but not another user's in a directory
// where every user may create files.
func resolve(path string) (string, error) {
	for range 40 {
		st, err := os.Lstat(path)
		if err != nil || st.Mode().Type() != os.ModeSymlink {
			return path, nil // opening it reports the error
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

// dirOf returns the directory part of a path, unchanged: filepath.Dir would remove "..",
// which is wrong after a link.
func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i+1]
	}
	return "./"
}

// isMagic reports whether a link leads to an open file, whatever its text is.
func isMagic(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dirOf(path), &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// shared reports whether every user may create files in a directory.
func shared(dir string) bool {
	st, err := os.Stat(dir)
	return err == nil && st.Mode()&0o002 != 0
}

// strange returns why a file in such a directory is not used, "" if it is.
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
