package commands

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
)

// socket checks a unix socket, and connects to it.
func (x *examination) socket(ctx context.Context) {
	path := x.place.Addr.String()
	noNode := func(format string, a ...any) *args.Error {
		return &args.Error{Code: args.CodeNoNode, Message: path + ": " + fmt.Sprintf(format, a...)}
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		x.fail("socket", noNode("does not exist: no node listens there").WithHint("%s", serveThere(path)))
		return
	case errors.Is(err, os.ErrPermission):
		x.fail("socket", noNode("you may not enter a directory of this path").WithHint("it belongs to another user; --node names another socket"))
		return
	case err != nil:
		x.fail("socket", noNode("%v", args.PathReason(err)).WithHint("--node ADDR: the path of a node's socket, or HOST[:PORT]"))
		return
	case st.Mode()&os.ModeSocket == 0:
		x.fail("socket", noNode("not a socket but %s", kindOf(st)).WithHint("--node ADDR: the path of a node's socket, or HOST[:PORT]"))
		return
	}
	owner := st.Sys().(*syscall.Stat_t)
	x.ok("socket", "it belongs to %s, mode %04o", userName(int(owner.Uid)), st.Mode().Perm())
	x.connection(ctx, st)
}

// connection connects to a socket that exists.
func (x *examination) connection(ctx context.Context, st os.FileInfo) {
	path, owner := x.place.Addr.String(), st.Sys().(*syscall.Stat_t)
	c, err := bus.Connect(ctx, &bus.Options{Node: path, Name: hostname()})
	if err == nil {
		x.client = c
		x.ok("connection", "a node answered")
		return
	}
	f := explain(err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Message = path + ": a stale socket: the node that made it was killed"
		f.Hint = serveThere(path)
		if os.Getuid() != 0 && int(owner.Uid) != os.Getuid() {
			f.Hint = userName(int(owner.Uid)) + " must start the node again"
		}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		f.Message = fmt.Sprintf("%s: permission denied: it belongs to %s and group %s, mode %04o", path, userName(int(owner.Uid)), groupName(int(owner.Gid)), st.Mode().Perm())
		f.Hint = "a node is only for its user; fbus serve starts one of your own"
		if st.Mode().Perm()&0o020 != 0 {
			f.Hint = "members of group " + groupName(int(owner.Gid)) + " may use it"
		}
	case f.Code == args.CodeForeign:
		f.Hint = "a node of another user sees everything that you send, and is not trusted; " + f.Hint
	case f.Code == args.CodeProtocol:
		f.Hint = "the program that listens there is not an fbus node: is it the right socket?"
	case f.Code == args.CodeNoNode:
		f.Hint = "the program that listens there is not an fbus node, or is stopped"
	}
	f.Message = withPath(path, f.Message)
	x.fail("connection", f)
}

// withPath adds the socket to a message that does not name it.
func withPath(path, msg string) string {
	if len(msg) >= len(path) && msg[:len(path)] == path {
		return msg
	}
	return path + ": " + msg
}

// serveThere returns the command that starts a node at a path.
func serveThere(path string) string {
	if auto, _ := isAutoSocket(path); auto {
		return "fbus serve starts a node"
	}
	return join("fbus", "serve", "--socket", path) + " starts a node there"
}

// isAutoSocket reports whether a path is one that a node chose itself, and returns the
// process in it.
func isAutoSocket(path string) (bool, int) {
	var pid int
	n, err := fmt.Sscanf(path, find.SocketDir+"/"+find.SocketPrefix+"%d"+find.SocketSuffix, &pid)
	return n == 1 && err == nil, pid
}

func kindOf(st os.FileInfo) string {
	switch {
	case st.IsDir():
		return "a directory"
	case st.Mode().IsRegular():
		return "a file"
	}
	return "something else"
}

func userName(uid int) string {
	if uid == os.Getuid() {
		return "you"
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return fmt.Sprintf("%s (uid %d)", u.Username, uid)
	}
	return fmt.Sprintf("uid %d", uid)
}

func groupName(gid int) string {
	if g, err := user.LookupGroupId(strconv.Itoa(gid)); err == nil {
		return g.Name
	}
	return strconv.Itoa(gid)
}
