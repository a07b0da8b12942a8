package commands

import (
	"flag"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// fileFlags are the flags of serve whose values are files.
var fileFlags = []string{"tls-cert", "tls-key", "tls-ca", "config", socketFlag, "log"}

// unitFlags are the flags for the unit, and what a file among them adds.
type unitFlags struct {
	set   *flag.FlagSet
	file  *serveOptions // of --config; nil: there is none
	drain time.Duration
}

// parse holds the flags for the unit against those of the command, with its
// defaults.
func (o *unitOptions) parse() (*unitFlags, error) {
	cmd := serveCommand()
	most := 0
	if o.command == "up" {
		cmd, most = upCommand(), 1
	}
	words, err := normalize(o.command, append(cmd.Flags, cli.HelpFlag), interleaved, o.words)
	if err != nil {
		return nil, err
	}
	for _, w := range words {
		if strings.Contains(w, "\n") { // quoted it would stand, and be read as another line by people
			return nil, usage("%q: no line of a unit has room for a newline", w)
		}
	}
	if o.command == "serve" {
		if err := o.wholePaths(words); err != nil {
			return nil, err
		}
	}
	set := flag.NewFlagSet(cmd.Name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	for _, f := range cmd.Flags {
		if err := f.Apply(set); err != nil {
			return nil, err
		}
	}
	if err := set.Parse(words); err != nil {
		ctx := cli.NewContext(nil, set, nil)
		ctx.Command = cmd
		return nil, usageError(ctx, err, false)
	}
	if set.NArg() > most {
		return nil, usage("fbus %s takes no operand %s", o.command, set.Arg(most)).withHint("fbus %s --help", o.command)
	}
	f := &unitFlags{set: set, drain: set.Lookup("drain").Value.(*durationValue).d}
	if o.command == "serve" && f.given("config") {
		if err := f.read(set.Lookup("config").Value.String()); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// wholePaths makes the files in normalized words independent of the current
// directory, which is not that of the service. If none is, what the user has written
// stays as it is.
func (o *unitOptions) wholePaths(words []string) error {
	changed := false
	for i, w := range words {
		if w == "--" {
			break
		}
		name, path, given := strings.Cut(strings.TrimPrefix(w, "--"), "=")
		if !given || !slices.Contains(fileFlags, name) || path == "" || path == "-" && name == "log" || filepath.IsAbs(path) {
			continue
		}
		whole, err := filepath.Abs(path)
		if err != nil {
			return fail(exitInternal, "%v", err)
		}
		words[i], changed = "--"+name+"="+whole, true
	}
	if changed {
		o.words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "--" })
	}
	return nil
}

// read takes what the node's file says. What serve would refuse is refused here.
func (f *unitFlags) read(path string) error {
	f.file = newServeOptions()
	if err := f.file.readConfig(path, f.given); err != nil {
		return err
	}
	if !f.given("drain") {
		f.drain = f.file.drain.d
	}
	return nil
}

// given reports whether a flag stands on the command line.
func (f *unitFlags) given(name string) bool {
	found := false
	f.set.Visit(func(g *flag.Flag) { found = found || g.Name == name })
	return found
}

// value is a flag's, or else the one that the file has.
func (f *unitFlags) value(name string) string {
	if f.file == nil || f.given(name) {
		return f.set.Lookup(name).Value.String()
	}
	switch name {
	case socketFlag:
		return f.file.socket
	case "socket-group":
		return f.file.sharing.group
	case "log":
		return f.file.log
	case "tls-cert":
		return f.file.tcp.cert
	case "tls-key":
		return f.file.tcp.key
	case "tls-ca":
		return f.file.tcp.ca
	}
	return ""
}
