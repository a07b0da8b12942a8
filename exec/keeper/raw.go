package keeper

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

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
