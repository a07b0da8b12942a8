package wire

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawRead and rawWrite are read and write on a descriptor that does not block.
// The runtime is not told: it would take each for a call that may last, which
// costs more than the call, and wakes its monitor thread for every one that
// comes after an idle moment.

func rawRead(fd int, p []byte) (int, error) { return raw(syscall.SYS_READ, fd, p) }

func rawWrite(fd int, p []byte) (int, error) { return raw(syscall.SYS_WRITE, fd, p) }

func raw(trap uintptr, fd int, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, _, errno := syscall.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// limitUnsent bounds what the kernel takes of a TCP connection beyond what it has
// sent.
func limitUnsent(fd, n int) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n)
}
