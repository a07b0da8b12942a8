package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/find"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/paths"
	"fbus/bus/tuning"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// serveOptions are the flags of fbus serve.
type serveOptions struct {
	socket  string
	network string
	queue   int
	buffers int64
	drain   durationValue
	log     string
	quiet   bool
	verbose bool
	tcp     tcpOptions
	jobs    jobOptions
	sharing sharing
	config  string
	owners  owners

	hasNetwork bool
	rereads    *rightsFile // nil: none
}

func newServeOptions() *serveOptions {
	return &serveOptions{
		drain: durationValue{d: time.Minute}, queue: node.DefaultQueue,
		tcp:  tcpOptions{maxConnections: node.DefaultConnections, maxPerTicket: node.DefaultPerTicket},
		jobs: jobOptions{max: jobs.DefaultMaxJobs, spool: jobs.DefaultMaxSpool},
	}
}

func serveCommand() *cli.Command {
	o := newServeOptions()
	return &cli.Command{
		Usage:     "run a node of the bus",
		UsageText: "serve [flags]",
		Description: `Listens on the unix socket /tmp/functionbus.PID.sock, for this user and root, and on
TCP port 10101 under TLS 1.3, where a ticket is required: see fbus invite. TERM or INT
drains the node: it refuses new calls, and queued and running calls finish. A second
signal ends it at once.

With --socket-group the members of a group may use the node too: they may call and
offer every function and see their own calls, but not administer the node. The table
[rights] of a file grants single rights instead; users without an entry have none.
--config FILE reads it, and any flag by its long name. Flags on the command line win. The
rights are read again when the file changes.

  [node]
  socket-group = "staff"
  [rights]                      # a user has the rights of all their entries
  "group:staff" = { call = ["*"] }
  "user:alice" = { offer = ["resize*"], admin = true }    # or "uid:1000", "gid:50"
  "uid:987" = { call = ["*"], relay = true, monitor = true }    # as those of fbus invite

A user that has joined with a ticket for a node (see fbus invite) runs another node of that
network. It admits the same tickets, except those in the list of revoked tickets, which it
gets from the network's first node at once when it changes. While the first node is away,
nothing can be invited, revoked or renewed, and everything else goes on; --trust-max-age
limits for how long others than this machine are admitted then.

With your own PKI (--tls-cert, --tls-key, --tls-ca) the node's certificate names its
host. Clients need certificates with the URI names of tickets, in the files FBUS_TLS_CERT,
FBUS_TLS_KEY and FBUS_TLS_CA. --tls-crl FILE has the revocation lists of its CAs. Files
that have changed are read again, and connections that they no longer allow are closed. A
revocation list that is overdue stays in use, with a warning.

  fbus serve &
  fbus serve --socket /run/user/1000/bus.sock --log calls.jsonl

Each line of --log is a call that ended: time, id, caller, function, worker,
waited and ran (seconds), in and out (bytes), source, status and code, and the other
fields of fbus log. A file that was moved away, as by logrotate, is made again.`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			if err := noOperands(ctx); err != nil {
				return err
			}
			o.hasNetwork = ctx.IsSet("network")
			if ctx.IsSet("config") {
				given := *o // before the file sets more
				seen, _ := os.Stat(o.config)
				if err := o.readConfig(o.config, ctx.IsSet); err != nil {
					return err
				}
				o.rereads = &rightsFile{seen: seen, read: func() (*rights, error) {
					again := given
					err := again.readConfig(given.config, ctx.IsSet)
					return again.sharing.rights, err
				}}
			}
			return serve(o, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

func (o *serveOptions) flags() []cli.Flag {
	return append(o.nodeFlags(),
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "read [node] and [rights] of `FILE` (TOML)", Destination: &o.config},
		o.owners.flag(),
		&cli.GenericFlag{Name: "drain", Usage: "`D` for running calls to finish at shutdown", Value: &o.drain},
		quietFlag(&o.quiet),
		verboseFlag(&o.verbose, "report connections and offers"),
	)
}

// nodeFlags returns the node's options that also work in a configuration file.
func (o *serveOptions) nodeFlags() []cli.Flag {
	return append(append(o.tcp.flags(), o.jobs.flags()...),
		&cli.StringFlag{Name: "socket", Usage: "listen at `PATH` instead; PATH.lock excludes a second node", Destination: &o.socket},
		&cli.StringFlag{Name: "socket-group", Usage: "members of `GROUP` may use the socket too, mode 0660", Destination: &o.sharing.group},
		&cli.StringFlag{Name: "network", Usage: "network `ID`: a-z 0-9 -, at most 63; default: one is made and stored", Destination: &o.network},
		&cli.IntFlag{Name: "queue", Usage: "at most `N` calls wait for one function", DefaultText: fmt.Sprint(node.DefaultQueue), Destination: &o.queue},
		&cli.GenericFlag{Name: "max-buffers", Usage: "hold at most `SIZE` for calls, offers and bytes on their way; at least 8M", DefaultText: "32M", Value: setSize(&o.buffers)},
		&cli.StringFlag{Name: "log", Usage: "append one JSON line for each ended call to `FILE`, - is stdout", Destination: &o.log},
	)
}

func quietFlag(dest *bool) cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print errors only, without hints", Destination: dest, DisableDefaultText: true}
}

func verboseFlag(dest *bool, usage string) cli.Flag {
	return &cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: usage, Destination: dest, DisableDefaultText: true}
}

func noOperands(ctx *cli.Context) error {
	if ctx.NArg() > 0 {
		return usage("fbus %s takes no operand, and got %s", ctx.Command.Name, ctx.Args().First()).WithHint("fbus %s --help", ctx.Command.Name)
	}
	return nil
}

// memoryMark is the memory use from which the collector of a node or worker runs more often: about what a
// full queue needs.
const memoryMark = 52 << 20

func serve(o *serveOptions, stdout, stderr io.Writer) error {
	// Installed before the socket exists: another process that sees the socket may signal at
	// once.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if !signal.Ignored(syscall.SIGHUP) { // as with nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	defer signal.Stop(signals)
	outliveReaders()
	tuned := tuning.Start(memoryMark)
	defer tuned.Stop()
	n, err := startNode(o, stdout, stderr)
	if err != nil {
		return err
	}
	tuned.Follow(n.Node)
	defer n.close()
	n.sayReady()
	notifyReady(n.warn, n.status())
	defer watchdog(n.warn, func() { n.Open() })()
	if o.rereads != nil {
		defer every(2*time.Second, n.reread)()
	}
	select {
	case err := <-n.served:
		return fmt.Errorf("listening: %w", err)
	case <-signals:
	}
	ctx, cancel := drainTime(o.drain.d, signals)
	defer cancel()
	defer notifyDraining(n.warn, n.Open, o.drain.d)()
	n.drain(ctx, o.drain.d)
	return nil
}

// servedNode is a node with the socket that it listens on and its log.
type servedNode struct {
	*node.Node
	o      *serveOptions
	path   string
	stderr io.Writer
	warn   logf
	l      []*node.Listener
	door   *door

	log    *calllog.Log  // nil: no log
	jobs   *jobs.Manager // nil: no posted calls
	served chan error    // the error that ended listening

	rights atomic.Pointer[rights] // the current table; nil: none
}

// check checks the options.
func (o *serveOptions) check() error {
	if o.hasNetwork && o.network == "" {
		return usage("--network must be 1 to 63 characters of a-z 0-9 -, not empty")
	}
	if o.network != "" && args.CheckNetwork(o.network) != nil {
		return usage("--network must be 1 to 63 characters of a-z 0-9 -, not %s", o.network)
	}
	if err := wire.CheckPath(o.socket); err != nil {
		return usage("--socket %s: %v", o.socket, err).WithHint("use a shorter path, or one relative to the current directory")
	}
	if o.queue < 1 {
		return usage("--queue must be at least 1, not %d", o.queue)
	}
	if o.buffers != 0 && o.buffers < node.MinBuffers {
		return usage("--max-buffers must be at least 8M")
	}
	if err := cmp.Or(o.tcp.check(), o.jobs.check()); err != nil {
		return err
	}
	return o.sharing.resolve()
}

// begins reports whether a socket may be that of a node which begins at this moment: it
// exists, and nobody listens yet.
func begins(socket string) bool {
	st, err := os.Lstat(socket)
	pid := pidOf(socket)
	return err == nil && time.Since(st.ModTime()).Abs() < 5*time.Second && pid > 0 && syscall.Kill(pid, 0) == nil
}

// startNode creates a node and makes it listen. The caller must close it.
func startNode(o *serveOptions, stdout, stderr io.Writer) (_ *servedNode, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	warn, _ := logger(stderr)
	network, err := networkID(o.network, stderr)
	if err != nil {
		return nil, err
	}
	fixed, path := o.socket != "", o.socket
	if !fixed {
		path = defaultSocket(warn)
		for _, p := range find.Sockets(os.Getuid()) {
			if !begins(p) {
				node.RemoveStale(p)
			}
		}
	}
	n := &servedNode{o: o, stderr: stderr, warn: warn}
	n.rights.Store(o.sharing.rights)
	logFile, err := openLogFile(o.log, stdout)
	if err != nil {
		return nil, err
	}
	sockets, err := listenAt(path, fixed)
	if err != nil {
		return nil, err
	}
	n.l, n.path, n.door = sockets.unix, sockets.unix[0].Path(), o.tcp.newDoor(sockets.tcp)
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	for _, l := range n.l {
		if err := o.sharing.open(l, warn); err != nil {
			return nil, err
		}
	}
	var noJobs error
	if n.jobs, noJobs = o.jobs.open(network, warn); errors.As(noJobs, new(*jobs.LockedError)) {
		return nil, noJobs
	}
	if err := n.door.open(network, warn); err != nil {
		return nil, err
	}
	var note func(string, ...any)
	if o.verbose {
		note = warn
	}
	config := node.Config{
		Network: network, Address: n.path, Version: Version, Queue: o.queue, Buffers: o.buffers, Successor: sockets.passed,
		Warn: warn, Note: note, Gate: n.door.gate, Authority: n.door.authority, NoTickets: n.door.noTickets, NoTCP: n.door.closed,
		KeepAlive: o.tcp.keepAlive.d, MaxConnections: o.tcp.maxConnections, MaxPerTicket: o.tcp.maxPerTicket,
	}
	if !sockets.passed { // a manager may have bound them in another directory
		config.Address = forOthers(wire.Unix(n.path))
	}
	if o.sharing.group != "" {
		config.Local, config.Groups = n.local, find.Groups
	}
	n.log = openLog(network, logFile, warn)
	config.Log, config.Jobs, config.NoJobs = n.log, n.jobs, noJobs
	if n.Node, err = node.New(config); err != nil {
		return nil, usage("%v", err)
	}
	n.served = make(chan error, len(n.l)+len(n.door.listeners))
	for _, l := range n.l {
		go func() { n.served <- n.Serve(l) }() // ends when the listener is closed
	}
	n.door.serve(n.Node, n.served)
	return n, nil
}

func (n *servedNode) sayReady() {
	if !n.o.quiet {
		i := n.Info()
		say(n.stderr, fmt.Sprintf("node %s of network %s is ready at %s%s%s", i.Name, i.Network, n.path, &n.o.sharing, n.door))
	}
}

// status formats the node's address and network for a service manager.
func (n *servedNode) status() string {
	return fmt.Sprintf("listening at %s%s%s, for network %s", n.path, &n.o.sharing, n.door, n.Info().Network)
}

// drain waits for queued and running calls until ctx, which lasts d, ends.
func (n *servedNode) drain(ctx context.Context, d time.Duration) {
	closeAll(n.l) // the socket goes first: nobody new finds the way
	closeAll(n.door.listeners)
	for range n.l {
		<-n.served
	}
	if open := n.Open(); open > 0 && !n.o.quiet {
		say(n.stderr, fmt.Sprintf("draining: %s queued or running; at most %s; repeat the signal to end them now", plural(open, "call"), formatDuration(d)))
	}
	if n.Drain(ctx) != nil {
		say(n.stderr, fmt.Sprintf("%d calls were ended before they finished", n.Open()))
	}
}

// close closes the open parts of the node.
func (n *servedNode) close() {
	if n.Node != nil {
		n.Node.Close()
	}
	closeAll(n.l)
	n.door.close()
	if n.jobs != nil {
		n.jobs.Close()
	}
	if err := n.log.Close(); err != nil {
		say(n.stderr, err.Error())
	}
}

// openLogFile opens the file of --log. An empty name gives a nil file, which is not
// written.
func openLogFile(name string, stdout io.Writer) (io.WriteCloser, error) {
	switch name {
	case "":
		return nil, nil
	case "-":
		return nopCloser{stdout}, nil
	}
	f, err := calllog.OpenFile(name, func() (*os.File, error) {
		return paths.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	})
	if err != nil {
		return nil, fail(args.CodeInternal, "log: %v", err)
	}
	return f, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// openLog opens the call log. A node whose directory for it cannot be used serves
// without fbus log.
func openLog(network string, file io.WriteCloser, warn func(string, ...any)) *calllog.Log {
	dir, err := networkState(network, "log")
	if err == nil {
		var l *calllog.Log
		if l, err = calllog.Open(calllog.Options{Dir: dir, Copy: file, Warn: warn}); err == nil {
			return l
		}
	}
	warn("fbus log is not available: %v", err)
	if file == nil {
		return nil
	}
	l, _ := calllog.Open(calllog.Options{Copy: file, Warn: warn}) // without a directory it cannot fail
	return l
}

// drainTime returns a context that limits draining: it ends after d, or at another
// signal.
func drainTime(d time.Duration, signals <-chan os.Signal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	go func() { // ends with the drain
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// jobOptions are the options for posted calls.
type jobOptions struct {
	max   int
	spool int64
}

func (o *jobOptions) flags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "max-jobs", Usage: "keep at most `N` posted calls, their results included; one ticket or user has a share", DefaultText: fmt.Sprint(jobs.DefaultMaxJobs), Destination: &o.max},
		&cli.GenericFlag{Name: "max-spool", Usage: "and at most `SIZE` of their arguments, input and output; shared in the same way", DefaultText: "16G", Value: setSize(&o.spool)},
	}
}

func (o *jobOptions) check() error {
	if o.max < 1 {
		return usage("--max-jobs must be at least 1, not %d", o.max)
	}
	return nil
}

// open opens the store of jobs. If that fails, the node works without it and retries
// while it runs. An untrusted directory, or one used by another node, is an error.
func (o *jobOptions) open(network string, warn func(string, ...any)) (*jobs.Manager, error) {
	place := func() (string, error) { return networkState(network, "jobs") }
	var disk *args.Error
	if _, err := place(); err != nil && !(errors.As(err, &disk) && disk.Code == args.CodeStorage) {
		warn("nothing can be posted: %v", err)
		return nil, err
	}
	m, err := jobs.Open(jobs.Config{Place: place, Patient: true, MaxJobs: int64(o.max), MaxSpool: o.spool, Warn: warn})
	if locked, ok := errors.AsType[*jobs.LockedError](err); ok {
		return nil, &args.Error{Code: args.CodeInternal, Err: locked, Hint: "a second node of this user needs another network: fbus serve --network ID"}
	}
	return m, err
}
