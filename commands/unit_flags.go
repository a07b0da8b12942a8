package commands

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// fileFlags are the flags of serve whose values are files.
var fileFlags = []string{"tls-cert", "tls-key", "tls-ca", "config", socketFlag, "log"}

// unitFlags are what the flags for the unit say, and what a file among them adds.
type unitFlags struct {
	given func(flag string) bool // on the command line
	node  *serveOptions          // of serve
	drain time.Duration
	warn  func(format string, args ...any)
}

// parse holds the flags for the unit against those of the command. What that would
// refuse is refused here, unless another machine may have it.
func (o *unitOptions) parse(warn func(format string, args ...any)) (*unitFlags, error) {
	f := &unitFlags{node: newServeOptions(), warn: warn}
	up, most := &upOptions{workerOptions: newWorkerOptions()}, 0
	flags := f.node.flags()
	if o.command == "up" {
		flags, most = up.flags(), 1
	}
	words, err := normalize(o.command, flags, interleaved, o.words)
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
	ctx, err := parse(nil, &cli.Command{Name: o.command, Flags: flags}, words)
	if err != nil {
		return nil, err
	}
	if ctx.NArg() > most {
		return nil, usage("fbus %s takes no operand %s", o.command, ctx.Args().Get(most)).WithHint("fbus %s --help", o.command)
	}
	f.given = ctx.IsSet
	if o.command == "up" {
		up.take(ctx.Args().First(), ctx.IsSet)
		return f, f.checkUp(up)
	}
	return f, f.checkServe()
}

// checkServe is the check of fbus serve, with what its file says.
func (f *unitFlags) checkServe() error {
	o := f.node
	o.hasNetwork, o.sharing.absent = f.given("network"), f.warn
	check := o.check
	if f.given("config") && f.here(o.config) {
		check = func() error { return o.readConfig(o.config, f.given) } // which checks it all
	}
	if err := check(); err != nil {
		return err
	}
	for _, path := range []string{o.tcp.cert, o.tcp.key, o.tcp.ca} {
		if path != "" {
			f.here(path)
		}
	}
	f.drain = o.drain.d
	return nil
}

// checkUp is the check of fbus up.
func (f *unitFlags) checkUp(o *upOptions) error {
	if o.config != "" && !f.here(o.config) {
		o.config = ""
	}
	if o.dir != "" && !f.here(o.dir) {
		o.dir = ""
	}
	config, wrong := o.read()
	o.apply(&config.node)
	f.drain = o.drain.d
	return wrong.err()
}

// here reports whether a file is there, and warns if it is not: the service may run
// elsewhere.
func (f *unitFlags) here(path string) bool {
	_, err := os.Stat(path)
	if err != nil {
		f.warn("%v", pathReason(err))
	}
	return err == nil
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
			return fail(args.CodeInternal, "%v", err)
		}
		words[i], changed = "--"+name+"="+whole, true
	}
	if changed {
		o.words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "--" })
	}
	return nil
}

// value is what a flag of serve is about: the command line's, or else the file's.
func (f *unitFlags) value(name string) string {
	switch o := f.node; name {
	case socketFlag:
		return o.socket
	case "socket-group":
		return o.sharing.group
	case "log":
		return o.log
	case "config":
		return o.config
	case "tls-cert":
		return o.tcp.cert
	case "tls-key":
		return o.tcp.key
	case "tls-ca":
		return o.tcp.ca
	}
	return ""
}
