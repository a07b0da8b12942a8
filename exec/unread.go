package exec

import (
	"os"

	"golang.org/x/sys/unix"
)

// unreadEnd is our own hold on the reading end of a program's stdin. What the
// program has not read of it can be counted there, also after its death, and
// taken back. While it is held no write fails for want of a reader.
type unreadEnd int

const noUnreadEnd unreadEnd = -1

// newStdin makes a program's stdin: our end, the program's, and the hold.
func newStdin() (ours, child int, hold unreadEnd, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, noUnreadEnd, os.NewSyscallError("pipe2", err)
	}
	dup, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return -1, -1, noUnreadEnd, os.NewSyscallError("fcntl", err)
	}
	return fds[1], fds[0], unreadEnd(dup), nil
}

// count is the number of bytes that nobody has read.
func (e unreadEnd) count() int {
	if e < 0 {
		return 0
	}
	n, err := unix.IoctlGetInt(int(e), unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// takeBack takes the last n bytes out of the pipe, if they are all that is in
// it. False: the program has begun to read them, and must not go on with what
// it has. A pipe gives each byte once, so there is no third case.
func (e unreadEnd) takeBack(n int) bool {
	if e < 0 || n == 0 || n > bufSize || e.count() != n {
		return false
	}
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(null)
	got := 0
	for got < n {
		// Not a read: that would wait for more if the program is quicker. Whether
		// it waits is shared with the program, whose stdin has to.
		m, err := unix.Splice(int(e), nil, null, nil, n-got, unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		if err != nil || m <= 0 {
			break
		}
		got += int(m)
	}
	return got == n
}

func (e unreadEnd) close() {
	if e >= 0 {
		unix.Close(int(e))
	}
}
