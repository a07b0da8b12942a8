package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/wire"

	"golang.org/x/sys/unix"
)

// listener is a place where requests arrive, and who gets in there.
type listener struct {
	net.Listener
	local    bool // a socket of this user alone
	open     bool // --no-auth
	tls      bool
	loopback bool           // only this machine reaches it
	proxies  []netip.Prefix // that may pass requests on; none: there is no proxy
}

// String is the listener for people.
func (l *listener) String() string {
	switch {
	case l.tls:
		return "https://" + l.Addr().String() + ", for holders of a token or ticket"
	case l.open:
		return "http://" + l.Addr().String() + ", for everybody on this machine"
	case len(l.proxies) > 0:
		return "http://" + l.Addr().String() + ", for holders of a token, behind a proxy"
	}
	return "http://" + l.Addr().String() + ", for holders of a token"
}

// silence is how long a client over TCP may be silent before its machine is taken for gone.
const silence = 20 * time.Second

// Accept returns connections that notice when a client is gone.
func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, from: l}
	if pulse := wire.KeepAlive(nc, silence); pulse != nil {
		c.timer = time.AfterFunc(pulse.Every(), func() {
			pulse.Check()
			c.mu.Lock()
			defer c.mu.Unlock()
			if !c.closed {
				c.timer.Reset(pulse.Every())
			}
		})
	}
	return c, nil
}

// conn is the connection of a client.
type conn struct {
	net.Conn
	from *listener

	mu     sync.Mutex // protects what follows
	timer  *time.Timer
	closed bool
}

func (c *conn) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite lets a response arrive before the connection is closed.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// gone reports whether the client has closed its side, even if there is input that nobody has read.
func (c *conn) gone() bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	events := int16(0)
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		unix.Poll(p, 0)
		events = p[0].Revents
	})
	return err != nil || events&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

type connKey struct{}

func withConn(ctx context.Context, nc net.Conn) context.Context {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, nc)
}

func connOf(r *http.Request) *conn { return r.Context().Value(connKey{}).(*conn) }

func listenerOf(r *http.Request) *listener { return connOf(r).from }

// socketPath returns where the gateway listens for its own user.
func socketPath() (string, error) {
	home, err := find.HomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, "gateway.sock"), nil
}

// listenUnix listens on a socket for this user alone.
func listenUnix(path string) (*listener, error) {
	if err := wire.CheckPath(path); err != nil {
		return nil, args.Errorf(args.CodeUsage, "%v", err).WithHint("--socket PATH names another place")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, args.Errorf(args.CodeInternal, "%v", err)
	}
	if find.Owned(path, os.ModeSocket, os.Getuid()) && errors.Is(find.Probe(path), syscall.ECONNREFUSED) {
		os.Remove(path) // of a gateway that was killed
	}
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, args.Errorf(args.CodeUsage, "%s is in use", path).WithHint("another gateway may run; --socket PATH names another place")
	case err != nil:
		return nil, args.Errorf(args.CodeInternal, "%v", err)
	}
	return &listener{Listener: l, local: true}, nil
}
