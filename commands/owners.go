package commands

import (
	"errors"
	"fmt"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/paths"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// owners decides whose files may name programs and grant rights: files of this user, of
// root, and of the users that --trust-owner names. A nil one accepts everybody's.
type owners struct {
	uids        []int
	names       []string // as given
	warn        logf     // reports a file instead of refusing it; nil: files are refused
	first, rest []string // the command line, before and after where the flag may stand
}

func (o *owners) flag() cli.Flag {
	return &cli.GenericFlag{Name: "trust-owner", Usage: "use files of the user `NAME`, and those that NAME lets others write; again for more", Value: setter(func(name string) error {
		uid, err := find.UserID(name)
		o.uids, o.names = append(o.uids, uid), append(o.names, name)
		return err
	})}
}

// check refuses a file that somebody else could have written or replaced.
func (o *owners) check(path string) error {
	if o == nil {
		return nil
	}
	abs, err := filepath.Abs(path)
	var place *paths.Place
	if err == nil {
		place, err = paths.Walk(abs, 0, o.judge)
	}
	var e *args.Error
	switch {
	case err == nil:
		place.Close()
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR): // the caller's own access explains that
		return nil
	case !errors.As(err, &e):
		return usage("%v", err)
	}
	words := slices.Clone(o.first)
	for _, name := range append(slices.Clip(o.names), e.Hint) {
		words = append(words, "--trust-owner", name)
	}
	e.Hint = "to use it all the same: " + join(words, o.rest)
	if o.warn != nil {
		o.warn("warning: %s", e.Message)
		return nil
	}
	return e
}

// judge refuses an element of a path. The hint is the owner's name.
func (o *owners) judge(e *paths.Entry) error {
	uid, gid, mode := int(e.Stat.Uid), int(e.Stat.Gid), uint32(e.Stat.Mode)
	sticky := mode&unix.S_IFMT == unix.S_IFDIR && mode&unix.S_ISVTX != 0 // nobody replaces another's file there
	if slices.Contains(o.uids, uid) || e.Ours() && (e.IsLink() || sticky || mode&0o022 == 0) {
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
	case gid == 0 || find.PrivateGroup(name, gid):
		return nil
	default:
		why = fmt.Sprintf("group %s may change it", groupName(gid))
	}
	return fail(args.CodeDenied, "%s: %s: it is not used", e.Path, why).WithHint("%s", name)
}
