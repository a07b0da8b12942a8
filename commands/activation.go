package commands

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/paths"

	"github.com/coreos/go-systemd/v22/activation"

	"golang.org/x/sys/unix"
)

// sockets are the listening sockets of a node.
type sockets struct {
	unix   []*node.Listener   // at least one; the first gives the node its address
	tcp    []*net.TCPListener // passed on by a service manager
	passed bool               // some were
}

func (s *sockets) close() {
	closeAll(s.unix)
	closeAll(s.tcp)
}

// firstListenFD is SD_LISTEN_FDS_START of sd_listen_fds(3).
const firstListenFD = 3

// inherited returns the sockets passed on by a service manager: sd_listen_fds(3). It
// makes them close-on-exec, and removes their variables from the environment.
func inherited() (*sockets, error) {
	s, err := &sockets{}, error(nil)
	if pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID")); pid == os.Getpid() {
		n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
		for fd := firstListenFD; fd < firstListenFD+n; fd++ { // otherwise those of the runtime would be closed
			if err := paths.Inherited(fd, true); err != nil {
				return s, fmt.Errorf("LISTEN_FDS=%d: descriptor %d: %w", n, fd, err)
			}
		}
	}
	for _, f := range activation.Files(true) {
		s.passed = true
		l, lerr := listenerOf(f)
		switch l := l.(type) {
		case *net.UnixListener:
			s.unix = append(s.unix, node.Inherit(l))
		case *net.TCPListener:
			s.tcp = append(s.tcp, l)
		default:
			err = errors.Join(err, fmt.Errorf("descriptor %d (%s): %w", f.Fd(), f.Name(), lerr))
		}
		f.Close() // net has a copy of its own
	}
	return s, err
}

var errNotListening = errors.New("not a listening stream socket: use ListenStream= with Accept=no")

// listenerOf returns the listener of a descriptor. net would accept a connection as a
// listener, and fail at the first accept.
func listenerOf(f *os.File) (net.Listener, error) {
	fd := int(f.Fd())
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, err
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, err
	}
	if kind != unix.SOCK_STREAM || listens == 0 {
		return nil, errNotListening
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, errNotListening
	}
	return l, nil
}

func closeAll[L net.Listener](list []L) {
	for _, l := range list {
		l.Close()
	}
}

// listenAt creates the unix socket of a node, or uses inherited ones. If the user chose
// a path, the service manager must be listening there.
func listenAt(path string, chosen bool) (_ *sockets, err error) {
	s, err := inherited()
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	switch {
	case err != nil:
		return nil, usage("socket activation: %v", err)
	case len(s.unix) == 0:
		// Links in the directory's path only: at the socket's name nothing is followed.
		dir, err := paths.Walk(path[:strings.LastIndexByte(path, '/')+1]+".", 0, paths.NoForeignLink)
		var l *node.Listener
		if err == nil {
			dir.Close()
			l, err = node.Listen(path, chosen)
		}
		if err != nil {
			f := fail(args.CodeNoNode, "%v", err).WithHint("fbus serve --socket PATH listens elsewhere")
			f.Message = strings.Replace(f.Message, "/.: ", "/: ", 1) // the name that was walked
			return nil, f
		}
		s.unix = []*node.Listener{l}
		return s, nil
	}
	at := slices.IndexFunc(s.unix, func(l *node.Listener) bool { return sameSocket(l.Path(), path) })
	switch {
	case chosen && at < 0:
		return nil, usage("--socket %s: the service manager listens at %s", path, s.unix[0].Path()).
			WithHint("ListenStream= of the socket unit and --socket of the service must be the same")
	case at > 0:
		s.unix[0], s.unix[at] = s.unix[at], s.unix[0]
	}
	return s, nil
}

// sameSocket reports whether two paths lead to the same socket: /var/run is /run.
func sameSocket(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return a == b || errX == nil && errY == nil && os.SameFile(x, y)
}
