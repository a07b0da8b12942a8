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
)

const (
	socketDir    = "/tmp"
	socketPrefix = "functionbus."
	socketSuffix = ".sock"
	systemSocket = "/run/fbus/functionbus.sock"
)

// place is a node to talk to, and why that one.
type place struct {
	addr string
	why  string
}

// find decides which node is meant: the flag, the environment, the one live
// socket of this user, the machine's.
func find(flag string) (place, error) {
	if flag != "" {
		return named(flag, "--node")
	}
	if env := os.Getenv("FBUS_NODE"); env != "" {
		return named(env, "FBUS_NODE")
	}
	own := ownSockets()
	if len(own) > 1 {
		own = slices.DeleteFunc(own, func(p string) bool { return !live(p) })
	}
	switch len(own) {
	case 1:
		return place{own[0], "the only live socket of this user in " + socketDir}, nil
	case 0:
	default:
		return place{}, &bus.Error{Code: bus.CodeAmbiguous, Message: "several nodes are equally near: " + strings.Join(own, " ")}
	}
	if st, err := os.Lstat(systemSocket); err == nil && st.Mode()&os.ModeSocket != 0 {
		return place{systemSocket, "the machine's node"}, nil
	}
	return place{}, noNode()
}

// named is the node that somebody has named: a path holds a /, or is a file here.
func named(addr, why string) (place, error) {
	if strings.Contains(addr, "/") {
		return place{addr, why}, nil
	}
	if _, err := os.Lstat(addr); err == nil {
		return place{"./" + addr, why}, nil
	}
	return place{}, usage("%s %s: there is no such socket here, and nodes on other machines can not be dialled yet", why, addr).
		withHint("give the path of a socket: %s ./%s", why, addr)
}

func noNode() *bus.Error {
	return &bus.Error{Code: bus.CodeNoNode, Message: fmt.Sprintf("no node found: no socket of this user in %s, none at %s", socketDir, systemSocket)}
}

// ownSockets lists the sockets of nodes of this user. Another user's of that
// name is none of our business.
func ownSockets() []string {
	var list []string
	paths, _ := filepath.Glob(filepath.Join(socketDir, socketPrefix+"*"+socketSuffix))
	for _, p := range paths {
		st, err := os.Lstat(p)
		if err == nil && st.Mode()&os.ModeSocket != 0 && int(st.Sys().(*syscall.Stat_t).Uid) == os.Getuid() {
			list = append(list, p)
		}
	}
	return list
}

// live reports whether somebody listens at a socket.
func live(path string) bool {
	nc, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	nc.Close()
	return true
}

// connect finds the node and connects, trying for as long as wait allows.
func connect(ctx context.Context, flag string, wait durationValue, o *bus.DialOptions) (*bus.Client, place, error) {
	deadline := time.Now().Add(wait.d)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		c, p, err := connectOnce(ctx, flag, o)
		if err == nil || !retryable(err) || !wait.set || ctx.Err() != nil {
			return c, p, err
		}
		left := time.Until(deadline)
		if left <= 0 && !wait.forever {
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

// retryable reports whether a node may yet come.
func retryable(err error) bool {
	var e *bus.Error
	return errors.As(err, &e) && (e.Code == bus.CodeNoNode || e.Code == bus.CodeDraining || e.Code == bus.CodeNodeLost)
}

func connectOnce(ctx context.Context, flag string, o *bus.DialOptions) (*bus.Client, place, error) {
	p, err := find(flag)
	if err != nil {
		return nil, p, err
	}
	c, err := bus.Dial(ctx, p.addr, o)
	if err != nil && errors.Is(err, syscall.ECONNREFUSED) && flag == "" && os.Getenv("FBUS_NODE") == "" {
		// A socket that a killed node has left: as good as none.
		return nil, p, noNode()
	}
	return c, p, err
}
