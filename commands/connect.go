package commands

import (
	"context"
	"errors"

	"fbus/bus"
	"fbus/bus/find"
)

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
