package commands

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
)

const (
	socketDir    = "/tmp"
	socketPrefix = "functionbus."
	socketSuffix = ".sock"
	systemSocket = "/run/fbus/functionbus.sock"
)

// place is a node to talk to, and why that one.
type place struct {
	addr string // a socket's path, or host:port; empty: wherever the identity says
	why  string
	id   *identity // over TCP

	// next is the node to talk to if nobody listens at this one; nil: none.
	next func() (place, error)
}

// trustedUserEnv names a user whose nodes are used as one's own are: by name or uid.
const trustedUserEnv = "FBUS_NODE_USER"

// trustedUser is the uid of that user, -1 if there is none.
func trustedUser() (int, error) {
	name := os.Getenv(trustedUserEnv)
	if name == "" {
		return -1, nil
	}
	uid, err := userID(name)
	if err != nil {
		return -1, usage("%s: %v", trustedUserEnv, err).WithHint("it is the name or uid of a user whose nodes are used as one's own are")
	}
	return uid, nil
}

// find decides which node is meant: the flag, the environment, a ticket there,
// the one live socket of this user, of the user that is trusted, the machine's, a network that was joined.
func find(flag string) (place, error) {
	if flag != "" {
		return named(flag, "--node")
	}
	if env := os.Getenv("FBUS_NODE"); env != "" {
		return named(env, "FBUS_NODE")
	}
	if os.Getenv("FBUS_TICKET") != "" {
		id, err := identityFor("")
		return place{why: "FBUS_TICKET", id: id}, asDenied(err)
	}
	if p, err := onlySocket(os.Getuid(), "this user"); p.addr != "" || err != nil {
		p.next = further
		return p, err
	}
	return further()
}

// onlySocket is the one live socket of a user in /tmp; none is no error.
func onlySocket(uid int, user string) (place, error) {
	list := socketsOf(uid)
	if len(list) > 1 || uid != os.Getuid() {
		list = slices.DeleteFunc(list, func(p string) bool { return !live(p) })
	}
	switch len(list) {
	case 0:
		return place{}, nil
	case 1:
		return place{addr: list[0], why: fmt.Sprintf("the only live socket of %s in %s", user, socketDir)}, nil
	}
	return place{}, &args.Error{Code: args.CodeAmbiguous, Message: "several nodes are equally near: " + strings.Join(list, " ")}
}

// further finds a node when this user has none.
func further() (place, error) {
	trusted, err := trustedUser()
	if err != nil {
		return place{}, err
	}
	if trusted >= 0 {
		user := os.Getenv(trustedUserEnv) + ", whom " + trustedUserEnv + " names,"
		if p, err := onlySocket(trusted, user); p.addr != "" || err != nil {
			p.next = machine
			return p, err
		}
	}
	return machine()
}

// machine is the machine's node.
func machine() (place, error) {
	if st, err := os.Lstat(systemSocket); err == nil && st.Mode()&os.ModeSocket != 0 {
		return place{addr: systemSocket, why: "the machine's node", next: joined}, nil
	}
	return joined()
}

// joined is the node of the network that was joined.
func joined() (place, error) {
	id, err := joinedIdentity("")
	if err != nil {
		return place{}, asDenied(err)
	}
	if id == nil {
		return place{}, noNode()
	}
	return place{why: id.why, id: id}, nil
}

// named is the node that somebody has named: a path, a file here, or a host.
func named(addr, why string) (place, error) {
	if err := checkAddress(addr, why); err != nil {
		return place{}, err
	}
	if isPath(addr) {
		if !strings.Contains(addr, "/") {
			addr = "./" + addr
		}
		return place{addr: addr, why: why}, nil
	}
	id, err := identityFor(addr)
	if err != nil {
		return place{}, asDenied(err)
	}
	if id == nil {
		return place{}, &args.Error{Code: args.CodeNoCertificate, Message: addr + ": there is no socket of that name here, and nobody gets in over TCP without a ticket",
			Hint: "fbus join TICKET, or FBUS_TICKET=FILE; the path of a socket holds a /: ./" + addr}
	}
	return place{addr: wire.WithPort(addr), why: why + ", as " + id.why, id: id}, nil
}

func isPath(addr string) bool {
	_, err := os.Lstat(addr)
	return err == nil || wire.IsPath(addr)
}

// checkAddress refuses what can be no address of a node.
func checkAddress(addr, why string) error {
	switch path := isPath(addr); {
	case path && strings.Contains(addr, "://"):
		return usage("%s: %q is no address: it is a URL", why, addr).WithHint(addressHint)
	case path:
		return nil
	}
	if err := wire.CheckAddress(addr); err != nil {
		return usage("%s: %v", why, err).WithHint(addressHint)
	}
	return nil
}

const addressHint = "ADDR is a path or HOST[:PORT]; with a port, an IPv6 address stands in brackets: [::1]:" + wire.DefaultPort

// String is where a place is, for messages.
func (p place) String() string {
	if p.addr == "" && p.id != nil {
		return strings.Join(p.id.creds.Addresses, ", ")
	}
	return p.addr
}

func noNode() *args.Error {
	return &args.Error{Code: args.CodeNoNode, Message: fmt.Sprintf("no node found: no socket of this user in %s, none at %s, no network joined", socketDir, systemSocket)}
}

// ownSockets lists the sockets of nodes of this user. Another user's of that
// name is none of our business.
func ownSockets() []string { return socketsOf(os.Getuid()) }

func socketsOf(uid int) []string {
	var list []string
	paths, _ := filepath.Glob(filepath.Join(socketDir, socketPrefix+"*"+socketSuffix))
	for _, p := range paths {
		if belongs(p, os.ModeSocket, uid) {
			list = append(list, p)
		}
	}
	return list
}

// ours reports whether a path is that kind of file and this user's.
func ours(path string, kind os.FileMode) bool { return belongs(path, kind, os.Getuid()) }

// belongs reports whether a path is that kind of file and a user's. One with a second name
// may be his, but who has put it there is not known.
func belongs(path string, kind os.FileMode, uid int) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != kind {
		return false
	}
	sys := st.Sys().(*syscall.Stat_t)
	return int(sys.Uid) == uid && (kind == os.ModeDir || sys.Nlink == 1)
}

// live reports whether somebody listens at a socket.
func live(path string) bool { return probe(path) == nil }

// probe says why nobody can be reached at a socket.
func probe(path string) error {
	nc, err := net.Dial("unix", path)
	if err == nil {
		nc.Close()
	}
	return err
}

// connect finds the node and connects, trying for as long as wait allows. Its
// errors point to fbus doctor.
func connect(ctx context.Context, flag string, wait durationValue, o *bus.DialOptions) (*bus.Client, place, error) {
	deadline := time.Now().Add(wait.d)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		c, p, err := connectWithin(ctx, wait, time.Until(deadline), flag, o)
		if err == nil {
			return c, p, nil
		}
		err = troubled(err, flag)
		if t := new(trouble); errors.As(err, &t) {
			t.remote = p.id != nil
		}
		left := time.Until(deadline)
		if !retryable(err) || !wait.set || ctx.Err() != nil || left <= 0 && !wait.forever {
			return nil, p, err
		}
		nap := pause/2 + rand.N(pause/2)
		if !wait.forever {
			nap = min(nap, left)
		}
		select {
		case <-time.After(nap):
		case <-ctx.Done():
			return nil, p, err
		}
	}
}

// retryable reports whether a node may yet come, or have room.
func retryable(err error) bool {
	var e *args.Error
	return errors.As(err, &e) && (e.Code == args.CodeNoNode || e.Code == args.CodeNodeLost || e.Status() == args.StatusOf(args.CodeBusy))
}

// leastTry is how long the last try of a wait may take.
const leastTry = 250 * time.Millisecond

// connectWithin is one try to connect, which takes no longer than what is left of the
// wait. Without a wait only dialling itself has its limits.
func connectWithin(ctx context.Context, wait durationValue, left time.Duration, flag string, o *bus.DialOptions) (*bus.Client, place, error) {
	if wait.d > 0 && !wait.forever {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, max(left, leastTry), &args.Error{Code: args.CodeNoNode, Message: "node did not answer the handshake in time"})
		defer cancel()
	}
	return connectOnce(ctx, flag, o)
}

func connectOnce(ctx context.Context, flag string, o *bus.DialOptions) (*bus.Client, place, error) {
	p, err := find(flag)
	if err != nil {
		return nil, p, err
	}
	c, err := p.dial(ctx, o)
	for err != nil && p.deserted(err) {
		q, further := p.next()
		if errors.Is(further, &args.Error{Code: args.CodeNoNode}) {
			break // what there is says more
		}
		if p, err = q, further; err == nil {
			c, err = p.dial(ctx, o)
		}
	}
	return c, p, err
}

// deserted reports whether an error means that the next place is to be looked at:
// a socket that a killed node has left is as good as none, and so is the machine's
// node if it is not for us.
func (p *place) deserted(err error) bool {
	if p.next == nil || err == nil {
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) || p.addr == systemSocket && errors.Is(err, syscall.EACCES)
}

// dial connects, and fills in where that was.
func (p *place) dial(ctx context.Context, o *bus.DialOptions) (*bus.Client, error) {
	with := *o
	if err := p.id.check(); err != nil {
		return nil, err
	}
	if p.id != nil {
		with.Credentials = p.id.creds
	} else {
		trusted, err := trustedUser()
		if err != nil {
			return nil, err
		}
		with.Users = func(uid int) bool { return uid == trusted }
	}
	c, err := bus.Dial(ctx, p.addr, &with)
	if err == nil && p.id != nil {
		p.addr = c.Address()
		p.id.renew(ctx, c)
		go p.id.keep(c, renewPause) // ends with the connection
	}
	return c, err
}
