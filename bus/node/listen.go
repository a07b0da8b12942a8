package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"fbus/bus/args"
	"fbus/bus/wire"

	"golang.org/x/sys/unix"
)

// Listener is a unix socket that belongs to this user alone.
type Listener struct {
	*net.UnixListener
	path  string
	info  os.FileInfo // of the socket we made
	lock  *os.File    // of a fixed path, nil otherwise
	spare *os.File    // closed for a moment to refuse a connection without descriptors
	once  sync.Once
	err   error

	refused int       // since the last warning; only accept uses it
	warned  time.Time // when that was
}

// warnPause is the least time between two warnings about refused connections.
const warnPause = 10 * time.Second

// Listen makes the socket at path, with mode 0600 from the start. A stale socket of our own
// is removed; a live one, or another user's, is an error. A fixed path is one that several
// nodes may want: Listen holds PATH.lock, so that only one of them replaces a stale socket.
func Listen(path string, fixed bool) (*Listener, error) {
	if err := wire.CheckPath(path); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	l := &Listener{path: path}
	if fixed {
		if _, err := stale(path); err != nil { // first: the lock's file stays
			return nil, err
		}
		if err := l.takeLock(); err != nil {
			return nil, err
		}
	}
	if err := RemoveStale(path); err != nil {
		l.dropLock()
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var cerr error
		err := raw.Control(func(fd uintptr) { cerr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, cerr)
	}}
	ul, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		l.dropLock()
		return nil, fmt.Errorf("%s: %w", path, rootCause(err))
	}
	l.UnixListener = ul.(*net.UnixListener)
	l.SetUnlinkOnClose(false) // Close unlinks it, if it still is ours
	l.info, _ = os.Lstat(path)
	l.spare, _ = os.Open(os.DevNull)
	return l, nil
}

// Inherit makes a Listener of a socket that a service manager holds and has passed on. The
// manager owns its path, mode and owner: Close removes nothing, it only stops accepting, so
// that later clients wait in the socket's backlog for the next node. Peers are checked as on
// any other socket.
func Inherit(ul *net.UnixListener) *Listener {
	l := &Listener{UnixListener: ul, path: ul.Addr().String()}
	l.SetUnlinkOnClose(false)
	l.spare, _ = os.Open(os.DevNull)
	return l
}

func rootCause(err error) error {
	if sys, ok := errors.AsType[*os.SyscallError](err); ok {
		return sys.Err
	}
	return err
}

func (l *Listener) takeLock() error {
	name := l.path + ".lock"
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		if st, lerr := os.Lstat(name); lerr == nil && st.Mode()&os.ModeSymlink != 0 {
			return fmt.Errorf("%s: is a symbolic link: it is not followed", name)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := ownFile(fd); err != nil {
		unix.Close(fd)
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		return fmt.Errorf("%s: another node holds the lock on this socket", name)
	}
	l.lock = os.NewFile(uintptr(fd), name)
	return nil
}

// ownFile refuses a file that another user has put there: they could hold its lock for
// ever, or make us hold that of another file.
func ownFile(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("is not a regular file")
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("belongs to uid %d: it is not used", st.Uid)
	case st.Nlink != 1:
		return errors.New("has a second name elsewhere: it is not used")
	}
	return nil
}

// Share lets the members of a group connect too. The socket gets its group first: until then
// its mode keeps everybody else out. The mode and group of an inherited socket are left
// alone.
func (l *Listener) Share(gid int) error {
	if l.info == nil {
		return nil
	}
	// Not by its path, where something else may be by now.
	fd, err := unix.Open(l.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", l.path, err)
	}
	f := os.NewFile(uintptr(fd), l.path)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !os.SameFile(st, l.info) {
		return fmt.Errorf("%s: is no longer the socket that was made there", l.path)
	}
	if err := unix.Fchownat(fd, "", -1, gid, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("%s: group %d: %w", l.path, gid, err)
	}
	// fchmod(2) takes no such descriptor, and fchmodat2(2) needs Linux 6.6.
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o660); err != nil {
		return fmt.Errorf("%s: mode: %w", l.path, err)
	}
	return nil
}

// dropLock releases the lock. Its file stays: another node that waits for it has it open.
func (l *Listener) dropLock() {
	if l.lock != nil {
		l.lock.Close()
	}
}

// RemoveStale removes the socket at path if it is this user's and nobody listens there. If
// anything else is there it returns an error.
func RemoveStale(path string) error {
	if is, err := stale(path); !is || err != nil {
		return err
	}
	return os.Remove(path)
}

// stale reports whether this user's socket is at path and nobody listens there. Anything
// else there is an error.
func stale(path string) (bool, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if uid := int(st.Sys().(*syscall.Stat_t).Uid); uid != os.Getuid() {
		return false, fmt.Errorf("%s: belongs to uid %d: it is neither used nor removed", path, uid)
	}
	if st.Mode()&os.ModeSocket == 0 {
		return false, fmt.Errorf("%s: exists and is not a socket", path)
	}
	nc, err := net.Dial("unix", path)
	if err == nil {
		nc.Close()
		return false, fmt.Errorf("%s: a node listens there already", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return false, fmt.Errorf("%s: %w", path, rootCause(err))
	}
	return true, nil
}

// Path returns the socket's path.
func (l *Listener) Path() string { return l.path }

// Close removes the socket, if it is still the one we made, and stops listening.
func (l *Listener) Close() error {
	l.once.Do(func() {
		if st, err := os.Lstat(l.path); err == nil && l.info != nil && os.SameFile(st, l.info) {
			os.Remove(l.path)
		}
		l.err = l.UnixListener.Close()
		if l.spare != nil {
			l.spare.Close()
		}
		l.dropLock()
	})
	return l.err
}

// accept waits for a connection. When descriptors have run out it refuses connections with a
// reason and goes on.
func (l *Listener) accept(warn func(string, ...any)) (net.Conn, error) {
	for {
		nc, err := l.UnixListener.Accept()
		if err == nil {
			return nc, nil
		}
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
			if ne, ok := err.(net.Error); ok && ne.Timeout() || errors.Is(err, syscall.ECONNABORTED) {
				continue
			}
			return nil, err
		}
		l.refused++
		if time.Since(l.warned) > warnPause {
			warn("%d connections refused: no file descriptor is left (see ulimit -n)", l.refused)
			l.warned, l.refused = time.Now(), 0
		}
		l.refuse()
	}
}

// refuse takes one connection with the spare descriptor and turns it away.
func (l *Listener) refuse() {
	if l.spare != nil {
		l.spare.Close()
		l.spare = nil
	}
	if nc, err := l.UnixListener.Accept(); err == nil {
		c := wire.NewConn(nc, nil)
		c.CloseWith(&args.Error{Code: args.CodeBusy, Message: "the node has no file descriptor left for another connection"})
		c.Close(nil)
	} else {
		time.Sleep(10 * time.Millisecond) // somebody else took it
	}
	l.spare, _ = os.Open(os.DevNull)
}
