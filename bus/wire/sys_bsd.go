//go:build darwin || freebsd

package wire

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PeerUID returns the user at the other end of a unix socket, as the kernel noted it
// when the connection was made.
func PeerUID(nc *net.UnixConn) (int, error) {
	cred, err := peerCred(nc)
	if err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}

// PeerGIDs returns the groups of the user at the other end, the primary one first.
func PeerGIDs(nc *net.UnixConn) ([]int, error) {
	cred, err := peerCred(nc)
	if err != nil {
		return nil, err
	}
	var gids []int
	for _, g := range cred.Groups[:max(0, min(int(cred.Ngroups), len(cred.Groups)))] {
		gids = append(gids, int(g))
	}
	return gids, nil
}

func peerCred(nc *net.UnixConn) (cred *unix.Xucred, err error) {
	err = control(nc, func(fd int) (err error) {
		cred, err = unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		return err
	})
	return cred, err
}

func rawRead(fd int, p []byte) (int, error) { return syscall.Read(fd, p) }

func rawWrite(fd int, p []byte) (int, error) { return syscall.Write(fd, p) }

// rawWritev writes the parts one after the other, as far as the kernel takes them.
func rawWritev(fd int, parts [][]byte) (total int, err error) {
	for _, p := range parts {
		n, err := syscall.Write(fd, p)
		if total += max(0, n); n < len(p) {
			if total > 0 {
				return total, nil
			}
			return n, err
		}
	}
	return total, nil
}

// These systems bound neither what the kernel holds nor how long it waits for an
// acknowledgement; its keepalive probes find a dead peer.

func limitUnsent(fd, n int) error { return nil }

func setUserTimeout(fd int, d time.Duration) {}

func tcpProgress(fd int) (moving bool, answered time.Duration, err error) { return true, 0, nil }
