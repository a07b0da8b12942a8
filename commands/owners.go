package commands

import (
	"slices"

	"fbus/bus/args"
	"fbus/bus/find"

	"github.com/urfave/cli/v2"
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
	err := find.CheckOwner(path, o.uids)
	if err == nil {
		return nil
	}
	e := explain(err)
	if e.Code != args.CodeDenied {
		return e
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
