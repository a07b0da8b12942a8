package paths

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

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
