package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
	"fbus/bus/find"

	"github.com/urfave/cli/v2"
)

// nodeOptions are the flags of a command that calls functions.
type nodeOptions struct {
	node      string
	wait      durationValue
	keepAlive durationValue
	verbose   bool
}

func (o *nodeOptions) flags(wait, verbose string) []cli.Flag {
	o.wait.allow = true
	return []cli.Flag{
		nodeFlag(&o.node),
		&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: wait, Value: &o.wait},
		keepAliveFlag(&o.keepAlive, clientKeepAlive),
		verboseFlag(&o.verbose, verbose),
	}
}

// connect connects to the node, and reports with -v which it is.
func (o *nodeOptions) connect(ctx context.Context, wait durationValue, eager bool, stderr io.Writer) (*bus.Client, error) {
	c, p, err := connect(ctx, o.node, wait, &bus.Options{Name: hostname(), Eager: eager, KeepAlive: o.keepAlive.d})
	if err == nil && o.verbose {
		say(stderr, fmt.Sprintf("node: %s (%s)", p.Addr, p.Why))
	}
	return c, err
}

// patience sets how long a call may wait at the node, of which it has spent some.
func (o *nodeOptions) patience(req *bus.Request, spent time.Duration) {
	switch {
	case o.wait.forever:
		req.WaitFunction = bus.Forever
	case o.wait.set:
		left := bus.WaitFor(o.wait.d - spent)
		req.WaitFunction, req.WaitSlot = left, left
	}
}

// reach connects to a node on which workers offer the function, and returns these too.
func (o *nodeOptions) reach(name, on string, stderr io.Writer) (*bus.Client, []bus.WorkerInfo, error) {
	client, err := o.connect(context.Background(), o.wait, false, stderr)
	if err != nil {
		return nil, nil, err
	}
	deadline := time.Now().Add(o.wait.d)
	for {
		workers, err := fanout.Workers(context.Background(), client, name, on)
		if err == nil && slices.ContainsFunc(workers, func(w bus.WorkerInfo) bool { return w.Slots > 0 || w.Relay }) {
			return client, workers, nil
		}
		if err == nil && !o.wait.forever && !time.Now().Before(deadline) {
			err = fail(args.CodeNoFunction, "%s: no such function", name)
			if len(workers) > 0 {
				err = noneStarts(&bus.FunctionInfo{Name: name, Workers: workers})
			} else if on != "" {
				err = fail(args.CodeNoFunction, "%s: no worker whose name matches %s", name, on)
			}
		}
		if err != nil {
			err = suggest(client, err, name)
			client.Close()
			return nil, nil, troubled(err, o.node, name)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// suggest adds to the error of a function that is missing, or that the caller may not call,
// the most similar name of those that the caller may see.
func suggest(c *bus.Client, err error, name string) error {
	return didYouMean(err, func() string { return similar(c, name) })
}

// didYouMean adds a similar name to the error of a function that is missing or denied.
func didYouMean(err error, similar func() string) error {
	var e *args.Error
	if !errors.As(err, &e) || e.Code != args.CodeNoFunction && e.Code != args.CodeDenied {
		return err
	}
	near := similar()
	if near == "" {
		return err
	}
	f := explain(e)
	f.Hint = strings.TrimSuffix("did you mean "+near+"? "+f.Hint, " ")
	return f
}

// similarTime bounds the search for a similar name.
const similarTime = 2 * time.Second

// similar returns the function that the caller may see whose name is most similar to a name,
// "" if none is, or if there is a function of that name.
func similar(c *bus.Client, name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), similarTime)
	defer cancel()
	data, err := output(ctx, c, "fbus.functions", args.Args{})
	if err != nil {
		return ""
	}
	list, _ := decodeLines[bus.FunctionInfo](data)
	var names []string
	for _, f := range list {
		if f.Name == name && len(f.Workers)+f.Queued > 0 { // not one that is held, by mistake perhaps
			return ""
		}
		if len(f.Workers) > 0 {
			names = append(names, f.Name)
		}
	}
	return nearest(name, names)
}

// lasting is a connection to a node that is made again after a loss, for commands that
// wait longer than their node may live.
type lasting struct {
	o         *nodeOptions
	quiet     bool
	eager     bool      // the first connection
	until     time.Time // when the wait for a lost node ends; zero: never
	node      string    // what it waits for, in a message
	stderr    io.Writer
	client    *bus.Client // nil while there is none
	connected bool        // once
	said      bool        // reported that it waits
}

// do calls f with a connection. As long as wait allows, it calls f again after a loss. The
// first connection waits for a node as long as --wait allows.
func (l *lasting) do(ctx context.Context, wait func() bool, f func(c *bus.Client) error) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := l.connect(ctx)
		if err == nil {
			err = f(l.client)
		}
		if err == nil {
			l.said = false
			return nil
		}
		l.close()
		late := !l.until.IsZero() && !time.Now().Before(l.until)
		if !l.connected || late || ctx.Err() != nil || !args.Retryable(err) || !wait() {
			return err
		}
		if !l.said && !l.quiet {
			say(l.stderr, err.Error()+": waiting for "+l.node+" to come back")
		}
		l.said = true
		select {
		case <-time.After(pause): // it may accept connections but no calls
		case <-ctx.Done():
			return err
		}
	}
}

func (l *lasting) connect(ctx context.Context) (err error) {
	if l.client != nil {
		return nil
	}
	wait := l.o.wait
	if l.connected {
		wait = durationValue{set: true, forever: l.until.IsZero(), d: max(0, time.Until(l.until))}
	}
	if l.client, err = l.o.connect(ctx, wait, l.eager && !l.connected, l.stderr); err == nil {
		l.connected = true
	}
	return err
}

func (l *lasting) close() {
	if l.client != nil {
		l.client.Close()
		l.client = nil
	}
}

// connect chooses the node and connects, trying for as long as wait allows. It returns
// also where that was, or would have been. Its errors point to fbus doctor.
func connect(ctx context.Context, flag string, wait durationValue, o *bus.Options) (*bus.Client, find.Place, error) {
	var p find.Place
	with := *o
	with.Node, with.Wait = flag, wait.wait()
	with.CallTrace = args.Trace(os.Getenv("TRACEPARENT"), os.Getenv("TRACESTATE"))
	with.Trace = &bus.Trace{Place: func(at find.Place) { p = at }}
	c, err := bus.Connect(ctx, &with)
	if err == nil {
		p.Addr = c.Addr()
		return c, p, nil
	}
	err = troubled(err, flag)
	if t := new(trouble); errors.As(err, &t) {
		t.remote = p.Identity != nil
	}
	return nil, p, err
}

// wait returns the wait that the flag gives; without it none.
func (v *durationValue) wait() bus.Wait {
	switch {
	case !v.set:
		return bus.NoWait
	case v.forever:
		return bus.Forever
	}
	return bus.WaitFor(v.d)
}

// noneStarts returns the error for a function that no worker can start.
func noneStarts(f *bus.FunctionInfo) *args.Error {
	why, code := "its workers have no slots", args.CodeCannotRun
	for _, w := range slices.Backward(f.Workers) { // the first one that has a reason, as for a call
		if w.Note != "" {
			why, code = w.Name+": "+w.Note, args.CodeCannotRun
			if w.CannotStart == args.StatusOf(args.CodeNotFound) {
				code = args.CodeNotFound
			}
		}
	}
	return args.CannotStart(fail(code, "%s: no worker can start it: %s", f.Name, why))
}
