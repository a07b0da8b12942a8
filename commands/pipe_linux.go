package commands

import (
	"os"

	"golang.org/x/sys/unix"
)

// abandoned waits until nobody can read our stdout any more, if that is a pipe
// or a socket, and ends the process as a write to it would. Who does not write to
// us any more and does not read is gone: calls in flight are not to outlive it
// until one has something to say.
func abandoned() {
	st, err := os.Stdout.Stat()
	if err != nil || st.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return
	}
	fds := []unix.PollFd{{Fd: 1}} // errors are always reported
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || fds[0].Revents&(unix.POLLERR|unix.POLLHUP) == 0:
			return
		}
		os.Stdout.Write([]byte{'\n'})
		return
	}
}
