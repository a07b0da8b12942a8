package wire

import (
	"errors"
	"net"
	"time"
)

// CloseWrite sends the end to the peer, if the connection below can.
func (s *Socket) CloseWrite() error {
	if half, ok := s.nc.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// LocalAddr implements [net.Conn].
func (s *Socket) LocalAddr() net.Addr { return s.nc.LocalAddr() }

// RemoteAddr implements [net.Conn].
func (s *Socket) RemoteAddr() net.Addr { return s.nc.RemoteAddr() }

// SetReadDeadline implements [net.Conn].
func (s *Socket) SetReadDeadline(t time.Time) error { return s.nc.SetReadDeadline(t) }

// SetWriteDeadline implements [net.Conn]. It does nothing once a Conn has taken the
// Socket over: no write waits then, and crypto/tls sets deadlines of its own
// when it closes.
func (s *Socket) SetWriteDeadline(t time.Time) error {
	if s.taken.Load() {
		return nil
	}
	return s.nc.SetWriteDeadline(t)
}

// SetDeadline implements [net.Conn].
func (s *Socket) SetDeadline(t time.Time) error {
	if s.taken.Load() {
		return s.nc.SetReadDeadline(t)
	}
	return s.nc.SetDeadline(t)
}
