package wire

import (
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PeerUID returns the user at the other end of a unix socket, as the kernel noted it
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

// PeerGIDs returns the groups of the user at the other end, the primary one first.
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

// peerGroups returns the supplementary groups; unix(7) has SO_PEERGROUPS, x/sys does
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

// rawRead and rawWrite are read and write on a descriptor that does not block. They
// bypass the runtime, which would take each for a call that may last: that costs more
// than the call, and wakes its monitor thread for every one after an idle moment.

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

func rawWritev(fd int, p [][]byte) (int, error) { return unix.Writev(fd, p) }

// limitUnsent bounds what the kernel takes of a TCP connection beyond what it has
// sent.
func limitUnsent(fd, n int) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n)
}

// setUserTimeout has the kernel give a TCP connection up when what was sent is not
// acknowledged for so long.
func setUserTimeout(fd int, d time.Duration) {
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
}

// tcpProgress reports whether the peer takes what is sent, and how long ago it last
// answered.
func tcpProgress(fd int) (moving bool, answered time.Duration, err error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false, 0, err
	}
	return info.Notsent_bytes == 0 || info.Unacked > 0 && info.Snd_wnd > 0, time.Duration(info.Last_ack_recv) * time.Millisecond, nil
}
