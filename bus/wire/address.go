package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"fbus/bus/args"

	"golang.org/x/sys/unix"
)

// DefaultPort is where nodes listen for other machines.
const DefaultPort = "10101"

// An Addr is where a node listens: the path of a unix socket, or host:port over TCP.
// The zero Addr is neither. It implements [net.Addr].
type Addr struct{ network, text string }

// Unix returns the address of the unix socket at path.
func Unix(path string) Addr { return Addr{"unix", path} }

// TCP returns the address HOST[:PORT]; the default port is 10101.
func TCP(hostPort string) Addr { return Addr{"tcp", WithPort(hostPort)} }

// Network returns "unix" or "tcp", and nothing for the zero Addr.
func (a Addr) Network() string { return a.network }

// String returns the path, or host:port.
func (a Addr) String() string { return a.text }

// IsPath reports whether an address is the path of a unix socket: it holds a /, or
// ends as sockets do. Any other is HOST[:PORT].
func IsPath(addr string) bool { return strings.Contains(addr, "/") || strings.HasSuffix(addr, ".sock") }

// maxPath is how long the path of a unix socket may be: sun_path of unix(7), less its NUL.
const maxPath = 107

// ErrLongPath is in the errors of [CheckPath]: waiting does not help.
var ErrLongPath = errors.New("the path of the socket has")

// CheckPath returns an error for the path of a unix socket that is too long for the kernel,
// which itself calls that an invalid argument.
func CheckPath(path string) error {
	if len(path) <= maxPath {
		return nil
	}
	return fmt.Errorf("%w %d bytes (limit %d)", ErrLongPath, len(path), maxPath)
}

// WithPort adds the default port to an address that has none. An IPv6 address
// without a port may go without its brackets.
func WithPort(addr string) string {
	if host, port, err := net.SplitHostPort(addr); err == nil {
		if port == "" {
			return net.JoinHostPort(host, DefaultPort)
		}
		return addr
	}
	if strings.HasPrefix(addr, "[") && strings.HasSuffix(addr, "]") {
		addr = addr[1 : len(addr)-1]
	}
	return net.JoinHostPort(addr, DefaultPort)
}

// CheckAddress returns an error for an invalid HOST[:PORT].
func CheckAddress(addr string) error {
	if addr == "" {
		return badAddress(addr, "it is empty")
	}
	host, port, err := net.SplitHostPort(WithPort(addr))
	if err != nil {
		return badAddress(addr, "expected HOST[:PORT]")
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return badAddress(addr, fmt.Sprintf("invalid port %q", port))
	}
	if host == addr && strings.Trim(addr, "0123456789") == "" {
		return badAddress(addr, "it is a port without a host")
	}
	strange := func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`/\"'@#?[]`, r) }
	if strings.ContainsFunc(host, strange) {
		return badAddress(addr, fmt.Sprintf("invalid host %q", host))
	}
	if strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err != nil {
			return badAddress(addr, fmt.Sprintf("invalid IPv6 address %q", host))
		}
	}
	return nil
}

func badAddress(addr, why string) error {
	return args.Errorf(args.CodeUsage, "invalid address %q: %s", addr, why)
}

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
