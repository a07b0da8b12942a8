package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"fbus/exec"

	"github.com/urfave/cli/v2"
)

// defaultConfig is the file of functions if no other is named.
const defaultConfig = "fbus.toml"

// upOptions are the flags of fbus up.
type upOptions struct {
	workerOptions
	config string
	dir    string
	check  bool
	owners owners
	warn   logf // reports skipped files, nil: none are reported

	drainSet bool
}

func upCommand() *cli.Command {
	o := &upOptions{workerOptions: newWorkerOptions()}
	return &cli.Command{
		Usage:     "offer the functions of a file or a directory",
		UsageText: "up [flags] [FILE|DIR]",
		Description: `FILE is also that of -c; default ./fbus.toml. In DIR each executable file is a function,
named after the file without its extension (resize.sh is resize). Its options are in
comments in its first 64 lines: # fbus: description = "…", or after // or --. Hidden files
and leftovers of editors and package managers (x~, #x#, x.bak, x.orig, x.disabled,
x.dpkg-old, …) are skipped: -v lists them.

  fbus up
  fbus up functions.toml --check
  kill -HUP PID        # read again; functions that have not changed are not disturbed

  [node]
  serve = true                  # be a node too; or address = "ADDR" of one
  [functions.wc]
  command = ["wc", "-w"]        # and every option of fbus offer, by its long name
  slots = 4
  timeout = "30s"
  env = { LC_ALL = "C" }        # or ["LC_ALL=C"]

The file, its programs that are not on PATH, and the directories on the way must belong
to you or root, and nobody else may be able to change them: --trust-owner allows more.

[node] takes the options of fbus serve, if serve = true, and worker, drain and max-running: how
many programs run at once, over all functions. Calls beyond that go to other workers, or wait. A
program that calls another function of the file needs room for both. Paths are relative to the file. For warm and resident programs, HUP also finds out whether a file on
the command line has changed. TERM or INT drains; a second one ends at once.`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() > 1 {
				f := usage("fbus up takes one directory, got %s", join(ctx.Args().Slice()))
				if words := ctx.Args().Slice(); len(words) == 2 && isConfig(words[0]) {
					return f.WithHint("%s", join("fbus", "up", "-c", words))
				}
				return f
			}
			if o.maxRunning.set && o.maxRunning.n < 1 {
				return usage("--max-running must be at least 1")
			}
			o.take(ctx.Args().First(), ctx.IsSet)
			if o.check {
				return upCheck(o, ctx.App.Writer, ctx.App.ErrWriter)
			}
			return up(o, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

func (o *upOptions) flags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "read the functions of `FILE`", Destination: &o.config},
		&cli.BoolFlag{Name: "check", Usage: "print the functions, or what is wrong, and exit", Destination: &o.check, DisableDefaultText: true},
		&cli.GenericFlag{Name: "max-running", Usage: "run at most `N` programs at once, over all functions; default: no limit", Value: &o.maxRunning},
		o.owners.flag(),
	}, o.workerOptions.flags()...)
}

// take takes the operand, "" if there is none, and whether flags were given.
func (o *upOptions) take(dir string, given func(flag string) bool) {
	o.dir, o.drainSet = dir, given("drain")
	o.owners.first, o.owners.rest = []string{"fbus", "up"}, slices.DeleteFunc([]string{dir}, func(s string) bool { return s == "" })
	switch {
	case o.config != "":
		o.owners.first = append(o.owners.first, "-c", o.config)
	case o.dir == "":
		o.config = defaultConfig
	case isConfig(o.dir):
		o.config, o.dir = o.dir, ""
	}
}

// isConfig reports whether a path is a file of functions rather than a directory: a file
// that is not a program.
func isConfig(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && (st.Mode()&0o111 == 0 || filepath.Ext(path) == filepath.Ext(defaultConfig))
}

// read reads the file, the directory, or both. If there are problems, it returns the
// functions without one, for further checks only.
func (o *upOptions) read() (*upConfig, problems) {
	all := &newConfigFile("").config
	var wrong problems
	if o.config != "" {
		if _, err := os.Stat(o.config); o.config == defaultConfig && errors.Is(err, os.ErrNotExist) {
			return all, problems{usage("no %s in this directory", defaultConfig).WithHint("fbus up -c FILE, or fbus up DIR; fbus up --help has an example")}
		}
		all, wrong = readConfig(o.config, &o.owners)
	}
	if o.dir != "" {
		c, p := readDir(o.dir, &o.owners)
		wrong = append(wrong, p...)
		if c != nil {
			for _, note := range c.notes {
				if o.warn != nil && (o.verbose || strings.HasPrefix(note, warningMark)) {
					o.warn("%s", note)
				}
			}
			wrong = append(wrong, all.add(c.functions)...)
		}
	}
	if all.node.serve && o.node != "" {
		wrong = append(wrong, usage("--node conflicts with serve = true in %s", o.config))
	}
	return all, wrong
}

// add adds functions, whose names must be new.
func (c *upConfig) add(list []*function) problems {
	var p problems
	for _, f := range list {
		for _, g := range c.functions {
			if f.name == g.name {
				p.add(f.part.at, "%s is also declared in %s", f.name, g.part.at)
			}
		}
	}
	c.functions = append(c.functions, list...)
	return p
}

// apply takes the options of [node] that the command line does not set.
func (o *upOptions) apply(n *nodeConfig) {
	o.worker, o.node = cmp.Or(o.worker, n.worker), cmp.Or(o.node, n.address)
	if !o.maxRunning.set {
		o.maxRunning = n.maxRunning
	}
	if n.drain.set && !o.drainSet {
		o.drain = n.drain
	}
}

func up(o *upOptions, stdout, stderr io.Writer) error {
	if !o.quiet {
		_, o.warn = logger(stderr)
	}
	config, wrong := o.read()
	if len(wrong) > 0 {
		return wrong.err()
	}
	if len(config.functions) == 0 && o.warn != nil {
		o.warn("%sno function is there yet: -v shows what was skipped, HUP reads it again", warningMark)
	}
	r := &reloader{o: *o, config: config}
	o.apply(&config.node)
	r.name, r.drain = o.workerName(), o.drain.d
	hangups, signals := make(chan os.Signal, 1), make(chan os.Signal, 2)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	var n *servedNode
	if !config.node.serve {
		quitAtOnce()
	} else {
		options := config.node.options
		options.quiet, options.verbose = o.quiet, o.verbose
		var err error
		if n, err = startNode(&options, stdout, stderr); err != nil {
			return err
		}
		defer n.close()
		o.node = n.path
		n.sayReady()
		r.n = n
	}
	notify := func(w *worker) {
		line := "offering " + plural(len(w.names()), "function")
		if n != nil {
			line += ", " + n.status()
		}
		notifyReady(w.log, line)
	}
	return o.serve(config.functions, n, stderr, signals, hangups, func(w *worker) {
		r.w = w
		if o.verbose {
			for _, f := range config.functions {
				say(stderr, w.offered[f.name].ready(r.name))
			}
		}
		if !o.quiet {
			say(stderr, fmt.Sprintf("offering %s as worker %s", plural(len(config.functions), "function"), r.name))
		}
		notify(w)
	}, func(ctx context.Context, w *worker) {
		notifyReloading(w.log)
		r.reload(ctx)
		notify(w)
	})
}

// reloader applies changes of the file to the functions that run.
type reloader struct {
	o      upOptions   // from the command line
	config *upConfig   // the last one read; its node is the running one
	n      *servedNode // nil: it is elsewhere
	w      *worker
	name   string        // of the worker
	drain  time.Duration // for calls of changed or removed functions
}

// changes counts functions by what a reload did to them.
type changes struct{ added, changed, removed, unchanged, failed int }

func (c changes) String() string {
	line := fmt.Sprintf("%d added, %d changed, %d removed, %d unchanged", c.added, c.changed, c.removed, c.unchanged)
	if c.failed > 0 {
		line += fmt.Sprintf(", %d failed", c.failed)
	}
	return line
}

// reload reads the file again. Functions that have not changed are not disturbed. A file
// with errors changes nothing, and a function that cannot be started stays as it was.
func (r *reloader) reload(ctx context.Context) {
	var config *upConfig
	var wrong problems
	read := make(chan struct{})
	go func() { // ends with the last read: a FIFO may have no writer
		config, wrong = r.o.read()
		close(read)
	}()
	select {
	case <-read:
	case <-ctx.Done():
		return // the process ends
	}
	if len(wrong) > 0 {
		for _, message := range messages(explain(wrong.err())) {
			r.w.log("%s", message)
		}
		r.w.log("not reloaded: the functions stay as they were")
		return
	}
	if !config.node.same(&r.config.node) {
		r.w.log("%s: [node] has changed: that needs a restart", r.o.config)
	}
	if r.n != nil {
		r.n.setRights(config.node.options.sharing.rights, r.o.config)
	}
	config.node = r.config.node
	r.config = config
	var n changes
	for _, f := range config.functions {
		r.place(ctx, f, &n)
		if ctx.Err() != nil {
			return // the process ends
		}
	}
	for _, name := range r.w.names() {
		if !slices.ContainsFunc(config.functions, func(f *function) bool { return f.name == name }) {
			r.w.remove(ctx, name, r.drain)
			r.note("no longer offering %s", name)
			n.removed++
		}
	}
	if !r.o.quiet {
		r.w.log("reloaded: %s", n)
	}
}

// place adds a function, or replaces the one of its name unless they are the same.
func (r *reloader) place(ctx context.Context, f *function, n *changes) {
	old := r.w.get(f.name)
	if old != nil && old.f.same(f) {
		n.unchanged++
		return
	}
	err := r.w.put(ctx, f, r.drain)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		n.failed++
		r.w.log("%s", explain(err).Message)
		if old != nil {
			r.w.log("%s stays as it was", f.name)
		} else {
			r.w.log("%s is not offered", f.name)
		}
		return
	}
	r.note("%s", r.w.get(f.name).ready(r.name))
	if old != nil {
		n.changed++
	} else {
		n.added++
	}
}

// note reports a change of one function if -v asks for it.
func (r *reloader) note(format string, args ...any) {
	if r.o.verbose {
		r.w.log(format, args...)
	}
}

// upCheck prints the functions, or everything that is wrong.
func upCheck(o *upOptions, stdout, stderr io.Writer) error {
	_, o.owners.warn = logger(stderr)
	if !o.quiet {
		o.warn = o.owners.warn
	}
	config, wrong := o.read()
	arguments := map[*function]string{}
	for _, f := range config.functions {
		phrase, err := f.try()
		if err != nil {
			wrong = append(wrong, f.at(err))
		}
		arguments[f] = phrase
	}
	if len(wrong) > 0 {
		wrong.order(o.config)
		return wrong.err()
	}
	if len(config.functions) == 0 {
		return nil
	}
	table(stdout, "NAME\tSLOTS\tMODE\tARGUMENTS\tCOMMAND", func(row func(...any)) {
		for _, f := range config.functions {
			row(f.name, f.calls, orDash(f.mode()), arguments[f], join(f.argv))
		}
	})
	return nil
}

// try checks whether the program can be offered, without starting it, and returns how
// its arguments arrive.
func (f *function) try() (arguments string, err error) {
	spec, err := f.spec(nil)
	if err != nil {
		return "", err
	}
	return exec.Check(spec)
}
