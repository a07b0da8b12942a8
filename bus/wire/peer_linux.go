package wire

import (
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PeerUID is the user at the other end of a unix socket, as the kernel noted it
// when the connection was made.
func PeerUID(nc *net.UnixConn) (int, error) {
	uid := -1
	err := control(nc, func(fd int) error {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			uid = int(cred.Uid)
		}
		return err
	})
	return uid, err
}

// PeerGIDs are the groups of the user at the other end, the primary one first.
func PeerGIDs(nc *net.UnixConn) ([]int, error) {
	var gids []int
	err := control(nc, func(fd int) error {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return err
		}
		gids = append(gids, int(cred.Gid))
		more, err := peerGroups(fd)
		gids = append(gids, more...)
		return err
	})
	return gids, err
}

// peerGroups are the supplementary groups; unix(7) has SO_PEERGROUPS, x/sys does
// not.
func peerGroups(fd int) ([]int, error) {
	list := make([]uint32, 64)
	for {
		size := uint32(len(list) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && size <= 65536*4:
			list = make([]uint32, size/4)
		case errno != 0:
			return nil, errno
		default:
			gids := make([]int, 0, size/4)
			for _, g := range list[:size/4] {
				gids = append(gids, int(g))
			}
			return gids, nil
		}
	}
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

// pollIn reports whether a read of fd would return at once: bytes, the end or an
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
