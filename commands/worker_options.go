package commands

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/exec/keeper"

	"github.com/urfave/cli/v2"
)

// workerOptions are the flags of the commands that are workers.
type workerOptions struct {
	node      string
	wait      durationValue
	worker    string
	drain     durationValue
	keepAlive keepAliveValue
	quiet     bool
	verbose   bool
}

func newWorkerOptions() workerOptions {
	return workerOptions{wait: durationValue{allow: true}, drain: durationValue{d: time.Minute}}
}

func (o *workerOptions) flags() []cli.Flag {
	return []cli.Flag{
		&cli.GenericFlag{Name: "drain", Usage: "let running calls finish for `D` at shutdown", Value: &o.drain},
		&cli.StringFlag{Name: "worker", Usage: "call this worker `NAME`; default: the host's name", Destination: &o.worker},
		nodeFlag(&o.node),
		keepAliveFlag(&o.keepAlive),
		&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node", Value: &o.wait},
		quietFlag(&o.quiet),
		verboseFlag(&o.verbose, "report how each call ended"),
	}
}

func nodeFlag(dest *string) cli.Flag {
	return &cli.StringFlag{Name: "node", Usage: "talk to the node at `ADDR`, a path or HOST[:PORT]", Destination: dest}
}

func (o *workerOptions) workerName() string { return cmp.Or(o.worker, hostname()) }

// begin makes the worker. The caller must close it.
func (o *workerOptions) begin(list []*function, stderr io.Writer) (*worker, error) {
	if err := keeper.BecomeReaper(); err != nil {
		return nil, fail(args.CodeInternal, "%v", err)
	}
	log := logger(stderr)
	var ended func(string, ...any)
	if o.verbose {
		ended = log
	}
	outliveReaders()
	tuned := tune()
	p, _ := find.Node(o.node) // processes that are started ahead need it
	w, err := newWorker(list, p.Addr.String(), log, ended)
	if err != nil {
		tuned.stop()
		return nil, err
	}
	w.tuned = tuned
	return w, nil
}

// start connects and makes the first offers, unless a signal comes first.
func (o *workerOptions) start(ctx context.Context, cancel context.CancelFunc, w *worker, signals <-chan os.Signal) error {
	w.bus.Options = &bus.Options{Name: o.workerName(), KeepAlive: o.keepAlive.d}
	wait := o.wait
	w.bus.Dial = func(ctx context.Context, dial *bus.Options) (*bus.Client, error) {
		c, p, err := connect(ctx, o.node, wait, dial)
		if err == nil {
			w.setNode(p.Addr.String())
		}
		return c, err
	}
	started := make(chan error, 1)
	go func() { started <- w.bus.Start(ctx) }() // ends with the first connection
	select {
	case err := <-started:
		wait = durationValue{} // later the worker itself decides when to try again
		return troubled(err, o.node)
	case sig := <-signals:
		cancel()
		<-started
		return statusOnly(exitSignal + int(sig.(syscall.Signal)))
	}
}

// serve serves until a signal, then drains, starting with the node if it runs in this
// process. A second signal kills. A hangup reloads.
func (o *workerOptions) serve(ctx context.Context, cancel context.CancelFunc, w *worker, n *servedNode, signals, hangups <-chan os.Signal, reload func(context.Context)) error {
	served := make(chan error, 1)
	go func() { served <- w.bus.Run(ctx) }() // ends when it is cancelled or denied
	running := w.bus.Running
	if n != nil {
		running = n.Open // queued calls will run here
	}
	defer watchdog(w.log, func() { running() })()
	err := work(ctx, served, signals, hangups, reload)
	defer notifyDraining(w.log, running, o.drain.d)()
	limit, stop := drainTime(o.drain.d, signals)
	defer stop()
	if n != nil && err == nil {
		n.drain(limit, o.drain.d) // its queued calls still run here
	}
	cancel()
	if err == nil {
		err = <-served
	}
	if w.bus.Drain(limit) != nil {
		w.log("calls were ended before they finished")
		w.bus.Disconnect() // first, or the caller of a program that ends quickly would see it as cancelled
		w.kill()
	}
	return troubled(err, o.node)
}

// work returns at a signal, or when the worker has ended by itself. It cancels a reload
// that is running then.
func work(ctx context.Context, served chan error, signals, hangups <-chan os.Signal, reload func(context.Context)) error {
	var reloads sync.WaitGroup
	defer reloads.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reloads.Go(func() { // ends with ctx
		for {
			select {
			case <-hangups: // one at a time: the next one waits in the channel
				reload(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	select {
	case err := <-served:
		return err
	case <-signals:
		return nil
	}
}

// logger writes messages, one line at a time.
func logger(stderr io.Writer) func(string, ...any) {
	var mu sync.Mutex
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		say(stderr, fmt.Sprintf(format, args...))
	}
}
