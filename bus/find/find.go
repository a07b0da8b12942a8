// Package find chooses the node to use, and the identity to use it with, as every
// command does: from an address, FBUS_NODE, FBUS_TICKET, FBUS_TLS_CERT and its
// companions, the sockets on this machine, and the networks that this user has joined.
// It does not connect: package fbus/bus does, in Connect.
package find

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"

	"golang.org/x/sys/unix"
)

// Where nodes listen on this machine. A node that is not configured otherwise listens
// at SocketDir/SocketPrefix + its process id + SocketSuffix, the machine's node at
// SystemSocket.
const (
	SocketDir    = "/tmp"
	SocketPrefix = "functionbus."
	SocketSuffix = ".sock"
	SystemSocket = "/run/fbus/functionbus.sock"
)

// A Place is a node to connect to, and the reason why it was chosen.
type Place struct {
	Addr     wire.Addr // zero: the addresses of the identity, in their order
	Why      string    // for people
	Identity *Identity // for TCP; nil on this machine

	// Next returns the node to use if nobody listens at this one; nil: there is none.
	Next func() (Place, error)
}

// Addresses lists what to dial, in order.
func (p Place) Addresses() []wire.Addr {
	if p.Addr != (wire.Addr{}) || p.Identity == nil {
		return []wire.Addr{p.Addr}
	}
	return p.Identity.Addresses
}

// String returns the addresses, for messages.
func (p Place) String() string {
	list := []string{}
	for _, a := range p.Addresses() {
		list = append(list, a.String())
	}
	return strings.Join(list, ", ")
}

// Passable reports whether an error of dialling p means that the next place has to be
// tried: the socket of a killed node is as good as none, and so is the machine's node
// if this user has no access to it.
func (p Place) Passable(err error) bool {
	return p.Next != nil && err != nil && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) ||
		p.Addr == wire.Unix(SystemSocket) && errors.Is(err, syscall.EACCES))
}

// Node chooses the node: the given address (the flag --node), FBUS_NODE, FBUS_TICKET,
// the only live socket of this user, then of the user that FBUS_NODE_USER names, the
// machine's node, and the network that was joined. Its error has the code
// [args.CodeNoNode] if there is none, and [args.CodeAmbiguous] if two are equally near.
func Node(addr string) (Place, error) {
	if addr != "" {
		return named(addr, "--node")
	}
	if env := os.Getenv("FBUS_NODE"); env != "" {
		return named(env, "FBUS_NODE")
	}
	if os.Getenv("FBUS_TICKET") != "" {
		id, err := identityFor(wire.Addr{})
		return Place{Why: "FBUS_TICKET", Identity: id}, err
	}
	if p, err := onlySocket(os.Getuid(), "this user"); p.Why != "" || err != nil {
		p.Next = otherNode
		return p, err
	}
	return otherNode()
}

// otherNode chooses a node when this user has none.
func otherNode() (Place, error) {
	trusted, err := TrustedUser()
	if err != nil {
		return Place{}, err
	}
	if trusted >= 0 {
		user := os.Getenv(trustedUserEnv) + ", whom " + trustedUserEnv + " names,"
		if p, err := onlySocket(trusted, user); p.Why != "" || err != nil {
			p.Next = machineNode
			return p, err
		}
	}
	return machineNode()
}

func machineNode() (Place, error) {
	if st, err := os.Lstat(SystemSocket); err == nil && st.Mode()&os.ModeSocket != 0 {
		return Place{Addr: wire.Unix(SystemSocket), Why: "the machine's node", Next: joinedNode}, nil
	}
	return joinedNode()
}

func joinedNode() (Place, error) {
	id, err := joinedIdentity(wire.Addr{})
	if err != nil {
		return Place{}, err
	}
	if id == nil {
		e := args.Errorf(args.CodeNoNode, "no node found: no socket of this user in %s, none at %s, no network joined", SocketDir, SystemSocket)
		e.Err = ErrNone
		for _, path := range append(socketPaths(), SystemSocket) {
			if outside := Outside(path); outside != nil {
				outside.Err = &args.Error{Code: args.CodeNoNode} // a wait goes on: a node of this user may come
				return Place{}, outside
			}
		}
		return Place{}, e
	}
	return Place{Why: id.Why, Identity: id}, nil
}

// Outside returns the denial for the socket of a node that is shared with a group, if this user
// is not in it, or that is in a directory of another user. It returns nil for any other.
func Outside(path string) *args.Error {
	st, err := os.Lstat(path)
	if errors.Is(err, unix.EACCES) {
		return closedDir(path)
	}
	if err != nil || st.Mode().Type() != os.ModeSocket || st.Mode()&0o060 != 0o060 || !errors.Is(unix.Access(path, unix.W_OK), unix.EACCES) {
		return nil
	}
	sys := st.Sys().(*syscall.Stat_t)
	group := accountName("group", int(sys.Gid))
	return args.Errorf(args.CodeDenied, "%s: the node of %s is for group %s, and you are not in it", path, accountName("passwd", int(sys.Uid)), group).
		WithHint("ask to be added to group %s and log in again; or start a node of your own: fbus serve", group)
}

// closedDir is Outside for a path that this user may not look up.
func closedDir(path string) *args.Error {
	dir := filepath.Dir(path)
	st, err := os.Lstat(dir)
	for ; errors.Is(err, unix.EACCES) && dir != "/"; st, err = os.Lstat(dir) {
		dir = filepath.Dir(dir)
	}
	if err != nil {
		return nil
	}
	owner := accountName("passwd", int(st.Sys().(*syscall.Stat_t).Uid))
	return args.Errorf(args.CodeDenied, "%s: a node there is for %s, whose directory %s you may not enter", path, owner, dir).
		WithHint("ask %s for a node that is shared: fbus serve --socket-group; or start one of your own: fbus serve", owner)
}

// ErrNone is the cause of the error of [Node] when no address is given and no node is there.
var ErrNone = errors.New("no node found")

// named returns the node at an address that somebody gave: a path, a file here, or a host.
func named(text, why string) (Place, error) {
	addr, err := ParseAddr(text, why)
	if err != nil {
		return Place{}, err
	}
	if addr.Network() == "unix" {
		return Place{Addr: addr, Why: why}, nil
	}
	id, err := identityFor(addr)
	if err != nil {
		return Place{}, err
	}
	if id == nil {
		return Place{}, args.Errorf(args.CodeNoCertificate, "%s: there is no socket of that name here, and a node on another machine requires a ticket", text).
			WithHint("fbus join TICKET, or FBUS_TICKET=FILE; the path of a socket holds a /: ./%s", text)
	}
	return Place{Addr: addr, Why: why + ", as " + id.Why, Identity: id}, nil
}

// AddrHint is the hint at what an address of a node looks like.
const AddrHint = "ADDR is a path or HOST[:PORT]; with a port, an IPv6 address needs brackets: [::1]:" + wire.DefaultPort

// ParseAddr parses the address of a node: a path, the name of a file that exists, or
// HOST[:PORT]. source names the flag or variable in its error.
func ParseAddr(text, source string) (wire.Addr, error) {
	if len(text) > 100 && trust.IsTicketText(text) { // it would be in the messages of a socket that is not there
		return wire.Addr{}, args.Errorf(args.CodeUsage, "%s: a ticket, not the address of a node", source).WithHint("a ticket belongs into FBUS_TICKET")
	}
	_, err := os.Lstat(text)
	switch path := err == nil || wire.IsPath(text); {
	case path && strings.Contains(text, "://"):
		return wire.Addr{}, args.Errorf(args.CodeUsage, "%s: invalid address %q: it is a URL", source, text).WithHint(AddrHint)
	case path && !strings.Contains(text, "/"):
		return wire.Unix("./" + text), nil
	case path:
		return wire.Unix(text), nil
	}
	if err := wire.CheckAddress(text); err != nil {
		return wire.Addr{}, args.Errorf(args.CodeUsage, "%s: %v", source, err).WithHint(AddrHint)
	}
	return wire.TCP(text), nil
}

// trustedUserEnv names a user, by name or uid, whose nodes are used as one's own are.
const trustedUserEnv = "FBUS_NODE_USER"

// TrustedUser returns the uid of the user that FBUS_NODE_USER names, -1 without one.
func TrustedUser() (int, error) {
	name := os.Getenv(trustedUserEnv)
	if name == "" {
		return -1, nil
	}
	uid, err := UserID(name)
	if err != nil {
		return -1, args.Errorf(args.CodeUsage, "%s: %v", trustedUserEnv, err).WithHint("set it to the name or uid of a user whose nodes may be used like one's own")
	}
	return uid, nil
}

// onlySocket returns the only live socket of a user, or a Place without Why.
func onlySocket(uid int, user string) (Place, error) {
	list := Sockets(uid)
	if len(list) > 1 || uid != os.Getuid() {
		list = slices.DeleteFunc(list, func(p string) bool { return Probe(p) != nil })
	}
	switch len(list) {
	case 0:
		return Place{}, nil
	case 1:
		return Place{Addr: wire.Unix(list[0]), Why: fmt.Sprintf("the only live socket of %s in %s", user, SocketDir)}, nil
	}
	return Place{}, args.Errorf(args.CodeAmbiguous, "several nodes are equally near: %s", strings.Join(list, " "))
}

func socketPaths() []string {
	list, _ := filepath.Glob(filepath.Join(SocketDir, SocketPrefix+"*"+SocketSuffix))
	return list
}

// Sockets lists the sockets of a user's nodes in [SocketDir]. Those of other users with
// such a name are left out.
func Sockets(uid int) []string {
	var list []string
	for _, p := range socketPaths() {
		if Owned(p, os.ModeSocket, uid) {
			list = append(list, p)
		}
	}
	return list
}

// Owned reports whether a path is a file of that kind and belongs to a user. A file with
// a second name does not count: another user may have given it this one.
func Owned(path string, kind os.FileMode, uid int) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != kind {
		return false
	}
	sys := st.Sys().(*syscall.Stat_t)
	return int(sys.Uid) == uid && (kind == os.ModeDir || sys.Nlink == 1)
}

// NotSocket returns what is at a path that cannot be a node's socket, "" if it may be one,
// or if nothing is there.
func NotSocket(path string) string {
	st, err := os.Stat(path)
	switch {
	case err != nil || st.Mode()&os.ModeSocket != 0:
		return ""
	case st.IsDir():
		return "not a socket but a directory"
	case st.Mode().IsRegular():
		return "not a socket but a file"
	}
	return "not a socket but something else"
}

// SocketIn returns the only live socket of this user in a directory, "" if there is none or more than one.
func SocketIn(dir string) string {
	entries, _ := os.ReadDir(dir)
	found := ""
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !strings.HasSuffix(path, SocketSuffix) || !Owned(path, os.ModeSocket, os.Getuid()) || Probe(path) != nil {
			continue
		}
		if found != "" {
			return ""
		}
		found = path
	}
	return found
}

// Probe returns why nobody can be reached at a socket, nil if somebody listens.
func Probe(path string) error {
	if err := wire.CheckPath(path); err != nil {
		return err
	}
	nc, err := net.Dial("unix", path)
	if err == nil {
		nc.Close()
	}
	return err
}

// Elsewhere returns a further hint for a socket that is missing here although a node may have made
// it, because the node or this process has a /tmp of its own; "" if nothing suggests that.
// path is the socket, empty for that of any node.
func Elsewhere(path string) string {
	if path != "" && filepath.Dir(path) != SocketDir {
		return ""
	}
	const shared = "in a directory that both see, such as /run/fbus"
	sockets, _ := os.ReadFile("/proc/net/unix")
	if hidden := hiddenSockets(string(sockets), path); len(hidden) > 0 {
		return fmt.Sprintf("a node listens at %s in another %s (that of a service with PrivateTmp=yes, or of a container), or its file was removed: "+
			"fbus serve --socket PATH, %s", hidden[0], SocketDir, shared)
	}
	if pid := hiddenNode("/proc"); pid != "" {
		return fmt.Sprintf("process %s is a node with a %s of its own (a service with PrivateTmp=yes, or a container): if its socket is there, it needs --socket PATH, %s", pid, SocketDir, shared)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if privateTmp(string(mounts)) {
		return fmt.Sprintf("this process has a %s of its own (PrivateTmp=yes): a node outside needs --socket PATH, %s", SocketDir, shared)
	}
	for _, mark := range []string{"/.dockerenv", "/run/.containerenv"} {
		if _, err := os.Stat(mark); err == nil {
			return "a node outside of this container needs --socket PATH " + shared + ", or a ticket"
		}
	}
	return ""
}

// hiddenSockets lists the listening sockets in /proc/net/unix that have the path, or the
// name of a node's socket if it is empty, and are not in the file system of this process.
func hiddenSockets(table, path string) (hidden []string) {
	for line := range strings.Lines(table) {
		f := strings.Fields(line) // Num RefCount Protocol Flags Type St Inode Path
		if len(f) != 8 || f[3] != "00010000" {
			continue
		}
		named, _ := filepath.Match(filepath.Join(SocketDir, SocketPrefix+"*"+SocketSuffix), f[7])
		if named && path == "" || f[7] == path {
			if _, err := os.Lstat(f[7]); errors.Is(err, os.ErrNotExist) {
				hidden = append(hidden, f[7])
			}
		}
	}
	slices.Sort(hidden)
	return slices.Compact(hidden)
}

// hiddenNode returns the process id of a node that has another view of the file system, ""
// if none is known. Those of other users are seen by root only.
func hiddenNode(proc string) string {
	own, err := os.Readlink(filepath.Join(proc, "self/ns/mnt"))
	if err != nil {
		return ""
	}
	processes, _ := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	for _, dir := range processes {
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		if string(comm) != "fbus\n" {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		words := strings.Split(string(line), "\x00")
		if len(words) < 2 || words[1] != "serve" && words[1] != "up" {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(dir, "ns/mnt")); err == nil && ns != own {
			return filepath.Base(dir)
		}
	}
	return ""
}

// privateTmp reports whether systemd has mounted a private directory at /tmp.
func privateTmp(mountinfo string) bool {
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line) // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …
		if len(f) > 4 && f[4] == SocketDir && strings.Contains(f[3], "systemd-private-") {
			return true
		}
	}
	return false
}
