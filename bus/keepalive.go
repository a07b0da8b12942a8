package bus

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// KeepAlive has the kernel give a TCP connection up when its peer was silent for
// about d, at least 3 seconds: probes while nothing is sent, and TCP_USER_TIMEOUT
// for what was sent and is not acknowledged (tcp(7)).
func KeepAlive(nc net.Conn, d time.Duration) error {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	d = max(d, 3*time.Second)
	const probes = 3
	idle := max(d/2, time.Second)
	err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idle, Interval: max((d-idle)/probes, time.Second), Count: probes})
	if err != nil {
		return err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	}); err != nil {
		return err
	}
	return serr
}
