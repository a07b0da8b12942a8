package exec

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The names under which this binary executes itself. Programs see them in ps.
const (
	keeperName = "fbus-keeper"
	limitName  = "fbus-limit"
)

// selfExe stays the running binary even after its file was replaced by a
// newer one, so worker and keeper always speak the same language.
const selfExe = "/proc/self/exe"

// controlFD is the keeper's end of its socket pair.
const controlFD = 3

// Dispatch runs this process's part if it was started as a keeper or as the
// step that limits a program's memory. Call it before anything else in main;
// it is cheap when the process is neither. ok says that the process should
// exit with status.
func Dispatch() (status int, ok bool) {
	if len(os.Args) == 0 {
		return 0, false
	}
	switch os.Args[0] {
	case keeperName:
		// A link to this binary may well be called fbus-keeper: the socket tells.
		if t, err := unix.GetsockoptInt(controlFD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_SEQPACKET {
			return 0, false
		}
		return keep(), true
	case limitName:
		if len(os.Args) < 5 {
			return 0, false
		}
		limit, err := strconv.ParseUint(os.Args[1], 10, 64)
		report, ok := atoi(os.Args[2])
		if err != nil || !ok {
			return 0, false
		}
		return execLimited(limit, report, os.Args[3], os.Args[4:]), true
	}
	return 0, false
}

// BecomeReaper makes this process the parent of what a killed keeper leaves
// behind, so that it can be found and killed. A worker calls it once, before
// New.
func BecomeReaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	reaping.Store(true)
	return nil
}
