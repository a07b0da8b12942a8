package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	keepAlive keepAliveValue
	verbose   bool
}

func (o *nodeOptions) flags(wait, verbose string) []cli.Flag {
	o.wait.allow = true
	return []cli.Flag{
		nodeFlag(&o.node),
		&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: wait, Value: &o.wait},
		keepAliveFlag(&o.keepAlive),
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

// reach connects to a node on which a worker offers the function.
func (o *nodeOptions) reach(name, on string, stderr io.Writer) (*bus.Client, error) {
	client, err := o.connect(context.Background(), o.wait, false, stderr)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(o.wait.d)
	for {
		n, err := fanout.Slots(context.Background(), client, name, on)
		if n > 0 && err == nil {
			return client, nil
		}
		if err == nil && !o.wait.forever && !time.Now().Before(deadline) {
			err = fail(args.CodeNoFunction, "%s: no such function", name)
			if on != "" {
				err = fail(args.CodeNoFunction, "%s: no worker whose name matches %s", name, on)
			}
		}
		if err != nil {
			client.Close()
			return nil, troubled(err, o.node, name)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// connect chooses the node and connects, trying for as long as wait allows. It returns
// also where that was, or would have been. Its errors point to fbus doctor.
func connect(ctx context.Context, flag string, wait durationValue, o *bus.Options) (*bus.Client, find.Place, error) {
	var p find.Place
	with := *o
	with.Node, with.Wait = flag, wait.wait()
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
