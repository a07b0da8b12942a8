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
