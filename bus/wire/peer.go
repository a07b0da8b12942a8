package wire

import (
	"fbus/bus/args"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// CheckPeer refuses a node that runs as somebody else (PROTOCOL.md, section 2):
// a process that has taken the path of a socket would get all that is sent to it, and could
// have the functions run that are offered there.
func CheckPeer(nc *net.UnixConn, path string, users func(uid int) bool) error {
	uid, err := PeerUID(nc)
	if err != nil {
		return &args.Error{Code: args.CodeNoNode, Message: fmt.Sprintf("%s: the owner of the node is unknown: %v", path, err), Err: err}
	}
	switch {
	case uid == 0, uid == os.Getuid(), users != nil && users(uid):
	case placed(path, uid), teammate(nc, path):
	default:
		return args.Errorf(args.CodeForeign, "%s: belongs to uid %d, which is neither you nor root", path, uid)
	}
	return nil
}

// runDir is where root makes a directory for each service of the machine.
const runDir = "/run"

// placed reports whether the socket is in a directory that root has made in /run,
// for that user: nobody else can have put it there.
func placed(path string, uid int) bool {
	dir := filepath.Dir(filepath.Clean(path))
	return filepath.Dir(dir) == runDir && closedTo(runDir, 0) && (closedTo(dir, 0) || closedTo(dir, uid))
}

// closedTo reports whether only root and that user, its owner, may make files in a
// directory.
func closedTo(dir string, uid int) bool {
	st, err := os.Lstat(dir)
	return err == nil && st.IsDir() && st.Mode()&0o022 == 0 && int(st.Sys().(*syscall.Stat_t).Uid) == uid
}

// noGroup is the number that the kernel shows for groups that have no number in a
// user namespace: two that look the same may not be.
const noGroup = 65534

// teammate reports whether the socket is shared with a group, and both this process and the one that
// listens there are in it. Root is in no team: its data is not for all of them.
func teammate(nc *net.UnixConn, path string) bool {
	st, err := os.Stat(path)
	if err != nil || st.Mode()&os.ModeSocket == 0 || st.Mode()&0o060 != 0o060 || os.Getuid() == 0 {
		return false
	}
	gid := int(st.Sys().(*syscall.Stat_t).Gid)
	own, err := os.Getgroups()
	if err != nil || gid == noGroup || !slices.Contains(append(own, os.Getegid()), gid) {
		return false
	}
	theirs, err := PeerGIDs(nc)
	return err == nil && slices.Contains(theirs, gid)
}

// control runs f on the descriptor of a socket.
func control(nc *net.UnixConn, f func(fd int) error) error {
	raw, err := nc.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// PollIn reports whether a read of fd would return at once: bytes, the end or an
// error are there.
func PollIn(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}
