package wire

import (
	"errors"
	"fbus/bus/args"
	"fmt"
	"net"
	"net/netip"
	"strings"
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
