package find

import (
	"errors"
	"fmt"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"

	"fbus/bus/args"
	"fbus/bus/paths"

	"golang.org/x/sys/unix"
)

// CheckOwner refuses a file that somebody else could have written or replaced: anybody but this
// user, root and the users with these ids. The hint of the error is the name of that user.
func CheckOwner(path string, trusted []int) error {
	abs, err := filepath.Abs(path)
	var place *paths.Place
	if err == nil {
		place, err = paths.Walk(abs, 0, func(e *paths.Entry) error { return judge(e, trusted) })
	}
	var e *args.Error
	switch {
	case err == nil:
		place.Close()
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR): // the caller's own access explains that
		return nil
	case errors.As(err, &e):
		return e
	}
	return args.Errorf(args.CodeUsage, "%v", err)
}

// judge refuses an element of a path. The hint is the owner's name.
func judge(e *paths.Entry, trusted []int) error {
	uid, gid, mode := int(e.Stat.Uid), int(e.Stat.Gid), uint32(e.Stat.Mode)
	sticky := mode&unix.S_IFMT == unix.S_IFDIR && mode&unix.S_ISVTX != 0 // nobody replaces another's file there
	if slices.Contains(trusted, uid) || e.Ours() && (e.IsLink() || sticky || mode&0o022 == 0) {
		return nil
	}
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	var why string
	switch {
	case !e.Ours():
		why = "belongs to " + name
	case mode&0o002 != 0:
		why = "every user may change it"
	case gid == 0 || PrivateGroup(name, gid):
		return nil
	default:
		group := strconv.Itoa(gid)
		if g, err := user.LookupGroupId(group); err == nil {
			group = g.Name
		}
		why = fmt.Sprintf("group %s may change it", group)
	}
	return args.Errorf(args.CodeDenied, "%s: %s: it is not used", e.Path, why).WithHint("%s", name)
}
