// Package keeper holds process trees: a program and everything that it starts,
// from its start until nothing of it is left.
//
// A keeper is a small process, this binary executed again, that runs one
// program at a time. It is a subreaper, so whatever the program leaves behind
// becomes its child, and only it reaps those children: their numbers cannot be
// reused under it. When the program has exited, or when it is cancelled, the
// keeper ends all of them: TERM, the grace, KILL, and reaps until ECHILD. When
// the worker dies, the keeper sees the end of its socket and kills everything.
//
// A worker process calls Dispatch first in main and BecomeReaper once. Then it
// makes a Pool for each function and starts programs there.
package keeper

import (
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The names under which this binary executes itself. Programs see them in ps.
const (
	keeperName = "fbus-keeper"
	limitName  = "fbus-limit"
)

// selfExe stays the running binary even after its file was replaced by a
// newer one, so worker and keeper always use the same protocol.
var selfExe = "/proc/self/exe"

// controlFD is the keeper's end of its socket pair.
const controlFD = 3

// Dispatch runs this process's part if it was started as a keeper or as the
// step that limits a program's memory. Call it before anything else in main;
// it is cheap when the process is neither. If ok the process must exit with
// status.
func Dispatch() (status int, ok bool) {
	if len(os.Args) == 0 {
		return 0, false
	}
	switch os.Args[0] {
	case keeperName:
		// A link to this binary may be called fbus-keeper: only a keeper has the socket.
		if t, err := unix.GetsockoptInt(controlFD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_SEQPACKET {
			return 0, false
		}
		return keep(), true
	case limitName:
		if len(os.Args) < 5 {
			return 0, false
		}
		limit, err := strconv.ParseUint(os.Args[1], 10, 64)
		report, rerr := strconv.Atoi(os.Args[2])
		if err != nil || rerr != nil {
			return 0, false
		}
		return execLimited(limit, report, os.Args[3], os.Args[4:]), true
	}
	return 0, false
}

// ReadFD and WriteFD are read and write on a descriptor that does not block.
// They hide the call from the runtime, which would take it for one that may
// last: that costs more than the call itself, and wakes the monitor thread after
// every idle moment.

// ReadFD reads once, again after EINTR.
func ReadFD(fd int, p []byte) (n int, err error) {
	err = IgnoringEINTR(func() error {
		n, err = raw(syscall.SYS_READ, fd, p)
		return err
	})
	return n, err
}

// WriteFD writes once.
func WriteFD(fd int, p []byte) (int, error) { return raw(syscall.SYS_WRITE, fd, p) }

func raw(trap uintptr, fd int, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, _, errno := syscall.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// IgnoringEINTR calls f until it is not interrupted.
func IgnoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
