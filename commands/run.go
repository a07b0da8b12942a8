package commands

import (
	"context"
	"errors"
	"io"
	"os"
	osexec "os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/wire"
	"fbus/exec"
	"fbus/exec/keeper"

	"github.com/kballard/go-shellquote"
	"github.com/urfave/cli/v2"
)

// runOptions are the flags of fbus run.
type runOptions struct {
	config  string
	owners  owners
	offers  []string
	command []string
	quiet   bool
	verbose bool
}

func runCommand() *cli.Command {
	o := &runOptions{}
	return &cli.Command{
		Usage:     "run a command with a private bus of its own",
		UsageText: "run [-c FILE] [--offer NAME=COMMAND]… -- COMMAND [ARG…]",
		Description: `Starts a node in a private directory, offers these functions on it, and runs COMMAND
with FBUS_NODE set and this fbus first on PATH. When COMMAND ends, the bus and everything
that COMMAND left in the background end too; fbus run exits with the status of COMMAND.
The COMMAND of an offer is split into words as in a shell, and run without one. FILE is a
file of fbus up.

  fbus run --offer shout='tr a-z A-Z' -- sh -c 'echo hello bus | fbus call shout'`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "offer the functions of `FILE` as well", Destination: &o.config},
			o.owners.flag(),
			&cli.GenericFlag{Name: "offer", Usage: "offer `NAME=COMMAND`; again for more", Value: &listValue{list: &o.offers}},
			quietFlag(&o.quiet),
			verboseFlag(&o.verbose, "report connections, offers and ends of calls"),
		},
		Action: func(ctx *cli.Context) error {
			words := ctx.Args().Slice()
			i := slices.Index(words, "--")
			switch {
			case i < 0 || i == len(words)-1:
				return usage("fbus run needs a command").WithHint("fbus run --offer NAME=COMMAND -- COMMAND [ARG…]")
			case i > 0:
				return usage("unexpected words before --: %s", join(words[:i])).WithHint("fbus run -- %s", join(words[i+1:]))
			}
			o.command = words[i+1:]
			return runPrivate(o, ctx.App.ErrWriter)
		},
	}
}

// functions reads the offers.
func (o *runOptions) functions(stderr io.Writer) ([]*function, error) {
	var list []*function
	if o.config != "" {
		o.owners.first, o.owners.rest = []string{"fbus", "run", "-c", o.config}, append([]string{"--"}, o.command...)
		c, wrong := readConfig(o.config, &o.owners)
		if err := wrong.err(); err != nil {
			return nil, err
		}
		if c.node.at != "" && o.verbose {
			say(stderr, c.node.at+": [node] is ignored: the bus is private")
		}
		list = c.functions
	}
	for _, s := range o.offers {
		name, command, _ := strings.Cut(s, "=")
		words, err := shellquote.Split(command)
		if err != nil {
			return nil, usage("--offer %s: %v", s, err)
		}
		if len(words) == 0 {
			return nil, usage("--offer %s: must be NAME=COMMAND", s)
		}
		f := newFunction()
		f.name, f.argv = name, words
		if err := f.check(); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(list, func(g *function) bool { return g.name == name }) {
			return nil, usage("--offer %s: there is already a function of that name", name)
		}
		list = append(list, f)
	}
	return list, nil
}

// runPrivate runs the command on a bus of its own.
func runPrivate(o *runOptions, stderr io.Writer) error {
	list, err := o.functions(stderr)
	if err != nil {
		return err
	}
	if err := keeper.BecomeReaper(); err != nil {
		return fail(args.CodeInternal, "%v", err)
	}
	defer keeper.ReapStrangers()()
	if _, set := os.LookupEnv("PATH"); !set {
		os.Setenv("PATH", exec.DefaultPath) // or COMMAND would find nothing but fbus
	}
	// From here on only the end of the command ends fbus run. The terminal sends INT and
	// QUIT to the command itself; the others are forwarded.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	sweepPrivate()
	dir, err := os.MkdirTemp(privateBase(), privatePrefix)
	if err != nil {
		return fail(args.CodeInternal, "private directory: %s: %v", privateBase(), args.WithoutPath(err)).WithHint("TMPDIR names another place")
	}
	defer os.RemoveAll(dir)
	if lock := lockPrivate(dir); lock != nil {
		defer lock.Close()
	}
	env, err := privateEnv(dir)
	if err != nil {
		return fail(args.CodeInternal, "private directory: %v", err)
	}
	log, ended := logger(stderr)
	note := log
	if !o.verbose {
		note, ended = nil, nil
	}
	stop, err := privateBus(dir, list, env, log, note, ended)
	if err != nil {
		return err
	}
	defer stop()
	defer keeper.EndOrphans(exec.DefaultGrace) // processes that COMMAND left in the background
	return runCommandIn(o.command, env, signals)
}

const privatePrefix = "fbus-run-"

// privateBase returns where private directories are made: in TMPDIR, unless nothing can be made
// there, or the path of a socket there would be too long. It is absolute, for COMMAND may change its directory.
func privateBase() string {
	base, err := filepath.Abs(os.TempDir())
	const number = "4294967295" // as long as that of os.MkdirTemp
	if err != nil || unix.Access(base+"/.", unix.W_OK|unix.X_OK) != nil || wire.CheckPath(filepath.Join(base, privatePrefix+number, "bus.sock")) != nil {
		return find.SocketDir
	}
	return base
}

// sweepPrivate removes the directories that killed runs of this user left.
func sweepPrivate() {
	dirs, _ := filepath.Glob(filepath.Join(privateBase(), privatePrefix+"*"))
	for _, dir := range dirs {
		socket := filepath.Join(dir, "bus.sock")
		if mine := os.Getuid(); !find.Owned(dir, os.ModeDir, mine) || !find.Owned(socket, os.ModeSocket, mine) {
			continue
		}
		if lock := lockPrivate(dir); lock != nil {
			os.RemoveAll(dir)
			lock.Close()
		}
	}
}

// lockPrivate locks the directory of a run for as long as the process lives. It returns nil
// if another process holds the lock. Probing the socket is not enough: for a moment it
// exists and nobody listens.
func lockPrivate(dir string) *os.File {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		f.Close()
		return nil
	}
	return f
}

// privateEnv fills the directory and returns the environment for the command: this fbus
// first on PATH, and all state in the directory.
func privateEnv(dir string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		return nil, err
	}
	if err := os.Symlink(self, filepath.Join(bin, "fbus")); err != nil {
		return nil, err
	}
	path := bin
	if old := os.Getenv("PATH"); old != "" {
		path += ":" + old
	}
	return []string{
		"PATH=" + path,
		"FBUS_NODE=" + filepath.Join(dir, "bus.sock"),
		"FBUS_HOME=" + filepath.Join(dir, "home"),
		"FBUS_STATE=" + filepath.Join(dir, "state"),
	}, nil
}

// privateBus starts the node and the offers; stop ends both.
func privateBus(dir string, list []*function, env []string, log, note, ended logf) (stop func(), err error) {
	socket := filepath.Join(dir, "bus.sock")
	var open []func()
	stopAll := func() {
		for _, end := range slices.Backward(open) {
			end()
		}
	}
	defer func() {
		if err != nil {
			stopAll()
		}
	}()
	posted, err := jobs.Open(jobs.Config{Dir: filepath.Join(dir, "state", "jobs"), Warn: log, Volatile: true})
	if err != nil {
		return nil, fail(args.CodeInternal, "%v", err)
	}
	open = append(open, func() { posted.Close() })
	n, err := node.New(node.Config{Network: "run-" + randomSuffix(), Address: socket, Version: Version, Warn: log, Note: note, Jobs: posted, NoTickets: errors.New("it is private to fbus run")})
	if err != nil {
		return nil, err
	}
	open = append(open, func() { n.Close() })
	l, err := node.Listen(socket, false)
	if err != nil {
		return nil, fail(args.CodeInternal, "%v", err)
	}
	open = append(open, func() { l.Close() })
	go n.Serve(l) // ends when the listener is closed
	for _, f := range list {
		f.env = slices.Concat(env[:1], env[2:], f.env) // the function sets FBUS_NODE
	}
	w, err := newWorker(list, 0, socket, log, ended, func() bool { return false })
	if err != nil {
		return nil, err
	}
	open = append(open, w.close, w.kill)
	w.bus.Options = &bus.Options{Name: hostname()}
	w.bus.Dial = func(ctx context.Context, o *bus.Options) (*bus.Client, error) {
		return bus.Dial(ctx, bus.Unix(socket), o)
	}
	return stopAll, w.bus.Start(context.Background())
}

// runCommandIn runs the command in the foreground and returns its status.
func runCommandIn(command, env []string, signals <-chan os.Signal) error {
	cmd := osexec.Command(command[0], command[1:]...)
	cmd.Env = slices.DeleteFunc(append(os.Environ(), env...), func(kv string) bool {
		return strings.HasPrefix(kv, "FBUS_TICKET=") // a secret, and useless here
	})
	// LookPath used our PATH, which does not have the private fbus.
	if command[0] == "fbus" {
		cmd.Path, cmd.Err = filepath.Join(strings.TrimPrefix(strings.SplitN(env[0], ":", 2)[0], "PATH="), "fbus"), nil
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// If fbus run is killed, the command must not remain with a dead bus. The kernel sends
	// this signal when the thread that started the command ends, so keep the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	forget, err := keeper.Adopt(func() (int, error) {
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		f := cannotStart(command[0], err)
		if words := separate(command); f.Code == args.CodeNotFound && len(words) > len(command) {
			f.Hint = join("fbus", "run", "--", words)
		}
		return f
	}
	defer forget()
	done := make(chan struct{})
	go func() { // ends with the command
		for {
			select {
			case s := <-signals:
				if s == syscall.SIGTERM || s == syscall.SIGHUP {
					cmd.Process.Signal(s)
				}
			case <-done:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(done)
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case ok && ws.Signaled():
		return statusOnly(exitSignal + int(ws.Signal()))
	case ok && ws.ExitStatus() != 0:
		return statusOnly(ws.ExitStatus())
	case err != nil:
		return fail(args.CodeInternal, "%s: %v", command[0], err)
	}
	return nil
}

func cannotStart(name string, err error) *args.Error {
	why := args.WithoutPath(err)
	if xe, ok := errors.AsType[*osexec.Error](err); ok {
		why = args.WithoutPath(xe.Err)
	}
	f := fail(args.CodeCannotRun, "%s: %v", name, why)
	if errors.Is(err, osexec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		f.Code = args.CodeNotFound
	}
	return f
}
