package wire

import (
	"net"
	"syscall"
	"time"
)

// A Pulse has the kernel give a TCP connection up when its peer was silent for as
// long as it may be: probes while nothing is sent, and TCP_USER_TIMEOUT for what
// was sent and is not acknowledged (tcp(7)).
//
// By itself TCP_USER_TIMEOUT gives up as well a peer that reads nothing for so
// long, though its machine answers: a caller that was stopped is not dead. So
// [Pulse.Check] must be called now and then. The nil Pulse does nothing.
type Pulse struct {
	raw   syscall.RawConn
	limit time.Duration

	checked time.Time // when the peer was last seen to take what is sent
	held    time.Time // since when it does not; zero: it does
}

// DefaultKeepAlive is how long a peer over TCP may be silent if nothing else is set.
const DefaultKeepAlive = 10 * time.Second

// MinKeepAlive is the least that a peer may be silent for: less is a bad moment of
// the network.
const MinKeepAlive = 3 * time.Second

// KeepAlive begins it. The peer may be silent for about d, at least 3 seconds.
// It returns nil if nc is not TCP.
func KeepAlive(nc net.Conn, d time.Duration) *Pulse {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	d = max(d, MinKeepAlive)
	const probes = 3
	idle := max(d/2, time.Second)
	tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idle, Interval: max((d-idle)/probes, time.Second), Count: probes})
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil // it is closed
	}
	p := &Pulse{raw: raw, limit: d, checked: time.Now()}
	raw.Control(func(fd uintptr) { setUserTimeout(int(fd), d) })
	return p
}

// Every returns how often Check must be called.
func (p *Pulse) Every() time.Duration { return p.limit / 3 }

// Check looks whether the peer takes the bytes sent. While it does not, and its
// machine answers the kernel's probes, the end is put off: it comes two limits
// after the last answer. Calls must not overlap.
func (p *Pulse) Check() {
	if p != nil {
		p.raw.Control(p.check)
	}
}

func (p *Pulse) check(fd uintptr) {
	moving, answered, err := tcpProgress(int(fd))
	if err != nil {
		return
	}
	now := time.Now()
	if moving {
		p.checked = now
		if !p.held.IsZero() {
			p.held = time.Time{}
			setUserTimeout(int(fd), p.limit)
		}
		return
	}
	if p.held.IsZero() {
		p.held = p.checked // at the earliest
	}
	// The kernel counts from when it began to probe. The sum also bounds the pause
	// that it makes before its next probe.
	setUserTimeout(int(fd), now.Sub(p.held)+2*p.limit-min(answered, 2*p.limit))
}
