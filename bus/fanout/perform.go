package fanout

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
)

// Pauses between tries.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	// maxBusy limits the tries of a call that finds the queue full. That is not a failure
	// of its own, but it must end.
	maxBusy = 200
	// farewell is how long a cancelled call waits for the name of its worker.
	farewell = time.Second
)

// verdict is the step after a try.
type verdict int

const (
	final          verdict = iota
	tryNow                 // again
	tryAgain               // again, after a pause
	tryLater               // again, when the queue may have room: it has not begun
	tryWhenOffered         // again, when there is a worker
)

// perform makes the call of one task, with as many tries as it takes.
func (r *Runner) perform(ctx context.Context, t Task) *Outcome {
	if t.Context != nil {
		ctx = t.Context
	}
	o := &Outcome{Task: t, Output: r.output(), Began: time.Now()}
	if ctx.Err() != nil {
		o.Err, o.Skipped = context.Cause(ctx), true
		return o
	}
	defer func() { o.Took = time.Since(o.Began) }()
	for busy := 0; ; o.Output.reset() {
		o.Tries++
		shut := r.shut()
		o.Result, o.Err = r.try(ctx, o)
		switch r.verdict(ctx, o, busy) {
		case final:
			if ctx.Err() != nil && errors.Is(o.Err, bus.ErrBusy) {
				o.Err = context.Cause(ctx)
			}
			o.Skipped = o.Skipped || shut
			return o
		case tryAgain:
			if !r.pause(ctx, firstPause<<min(o.Tries-1, 10), nil) {
				return o
			}
		case tryLater:
			o.Tries--
			d := firstPause << min(busy, 10)
			if r.Queueing > 0 {
				d = min(d, r.Queueing-time.Since(o.Began))
			}
			if !r.pause(ctx, d, r.room) {
				busy++
				if ctx.Err() != nil {
					o.Err = context.Cause(ctx)
					return o
				}
			}
		case tryWhenOffered:
			o.Tries--
			if !r.awaitWorker(ctx) {
				o.Skipped = true
				return o
			}
			o.Began = time.Now() // it waited without a call
		}
	}
}

// verdict decides what follows a try.
func (r *Runner) verdict(ctx context.Context, o *Outcome, busy int) verdict {
	var e *args.Error
	if o.Err == nil || ctx.Err() != nil {
		return final
	}
	if errors.As(o.Err, &e) {
		switch {
		case r.Mode == Fixed && o.Result.Code == args.CodeNodeLost: // what a node says of another, in a result that it keeps
			return final
		case e.Code == args.CodeDraining && r.Mode != Mixed, e.Code == args.CodeNodeLost, r.shut():
			// Nothing more can be called: the node ends, or has refused us. A call that was
			// only queued has not run.
			r.Stop(e)
			o.Skipped = e.Code == args.CodeDraining
			return final
		case e.Code == args.CodeNoFunction && r.Mode == Spread:
			return tryWhenOffered
		case e.Code == args.CodeBusy && r.mayQueue(o, busy):
			return tryLater
		case e.Code == args.CodeDenied || e.Code == args.CodeUsage || e.Code == args.CodeBadInput:
			return final
		}
	}
	switch {
	case o.Tries > r.Retries || r.isStopped():
		return final
	case o.Tries == 1:
		return tryNow
	}
	return tryAgain
}

// mayQueue reports whether a call that was refused for lack of room is made again.
func (r *Runner) mayQueue(o *Outcome, busy int) bool {
	switch {
	case r.Mode == Fixed || r.isStopped():
		return false
	case r.Mode == Mixed && o.Result.Worker != "": // its program is busy, not the queue full
		return false
	case r.Mode == Mixed && !r.othersOf(o.function): // no end of ours will make room
		return false
	case r.Queueing > 0:
		return time.Since(o.Began) < r.Queueing
	}
	return busy < maxBusy
}

// shut reports whether the connection has ended.
func (r *Runner) shut() bool {
	select {
	case <-r.Client.Done():
		return true
	default:
		return false
	}
}

func (r *Runner) isStopped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.phase == stopped
}

// pause waits for room, or a random time between d/2 and d. False: there was no room, or
// ctx has ended.
func (r *Runner) pause(ctx context.Context, d time.Duration, room <-chan struct{}) bool {
	d = min(max(d, 0), lastPause)
	timer := time.NewTimer(d/2 + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return room == nil
	case <-room:
		return true
	case <-ctx.Done():
		return false
	}
}

// try makes the call once.
func (r *Runner) try(ctx context.Context, o *Outcome) (bus.Result, error) {
	req, closer, err := r.Request(&o.Task)
	if closer != nil {
		defer closer.Close()
	}
	if err != nil {
		return bus.Result{}, err
	}
	if r.Mode != Mixed {
		req.Function, req.Farewell = r.Function, farewell
	}
	if req.Stdout == nil {
		req.Stdout = o.Output
	}
	if r.Mode == Mixed {
		o.function = req.Function
		r.count(req.Function, 1)
		defer r.count(req.Function, -1)
	}
	req.On = cmp.Or(o.On, r.On)
	o.Sent = int64(len(req.Args.Data())) + size(req.Input)
	return r.Client.Call(ctx, req)
}

// count changes the number of calls of a function that are at the node.
func (r *Runner) count(function string, d int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls[function] += d; r.calls[function] == 0 {
		delete(r.calls, function)
	}
}

// othersOf reports whether calls of the function are at the node.
func (r *Runner) othersOf(function string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[function] > 0
}

// size returns the length of an input, 0 if it is unknown.
func size(in io.Reader) int64 {
	switch in := in.(type) {
	case interface{ Len() int }:
		return int64(in.Len())
	case *os.File:
		if st, err := in.Stat(); err == nil && st.Mode().IsRegular() {
			return st.Size()
		}
	}
	return 0
}

// Slots asks the node how many calls the function takes at once, on the workers that
// match on, with those at other nodes.
func Slots(ctx context.Context, client *bus.Client, function, on string) (int, error) {
	workers, err := Workers(ctx, client, function, on)
	n := 0
	for _, w := range workers {
		if w.Relay { // calls wait for it even if it has no slot now
			w.Slots = max(w.Slots, w.Elsewhere, 1)
		}
		n += w.Slots
	}
	return n, err
}

// Workers asks the node for the workers that offer the function and match on.
func Workers(ctx context.Context, client *bus.Client, function, on string) ([]bus.WorkerInfo, error) {
	var out bytes.Buffer
	if _, err := client.Call(ctx, &bus.Request{Function: "fbus.functions", Args: args.List(function), Stdout: &out}); err != nil {
		return nil, err
	}
	var list []bus.WorkerInfo
	for dec := json.NewDecoder(&out); ; {
		var f bus.FunctionInfo
		if dec.Decode(&f) != nil {
			return list, nil
		}
		for _, w := range f.Workers {
			if wire.MatchWorker(on, w.Name, w.ID) {
				list = append(list, w)
			}
		}
	}
}

// How often the node is asked for the function's slots.
const (
	followEvery = time.Second
	seekEvery   = 100 * time.Millisecond
)

// follow keeps the limit at the function's slots.
func (r *Runner) follow(ctx context.Context, done <-chan struct{}) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-done:
			return
		}
		if n, err := Slots(ctx, r.Client, r.Function, r.On); err == nil && n > 0 {
			r.mu.Lock()
			r.setLimit(ctx, n)
			r.mu.Unlock()
		}
	}
}

// awaitWorker waits until a worker offers the function. False: the run was stopped.
func (r *Runner) awaitWorker(ctx context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.phase == running {
		r.phase = waiting
		go r.seekWorker(ctx) // ends when there is one, or when stopped
	}
	for r.phase == waiting {
		r.cond.Wait()
	}
	return r.phase == running
}

// seekWorker ends the wait for a worker: it goes on, or is stopped.
func (r *Runner) seekWorker(ctx context.Context) {
	r.notice("%s: no worker is left: waiting for one", r.Function)
	err := r.findWorker(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	var e *args.Error
	switch {
	case r.phase == stopped:
	case err == nil:
		r.notice("%s: a worker is there again: going on", r.Function)
		r.phase = running
		r.cond.Broadcast()
	case errors.As(err, &e) && e.Code != args.CodeBusy:
		r.halt(e)
	default:
		r.halt(nil)
	}
}

// findWorker asks until there is a slot.
func (r *Runner) findWorker(ctx context.Context) error {
	for began := time.Now(); ; {
		n, err := Slots(ctx, r.Client, r.Function, r.On)
		if err != nil && !errors.Is(err, bus.ErrBusy) {
			return err
		}
		if n > 0 {
			return nil
		}
		if r.Patience > 0 && time.Since(began) > r.Patience {
			return args.Errorf(args.CodeNoFunction, "%s: no worker has come back", r.Function)
		}
		select {
		case <-time.After(seekEvery):
		case <-r.stop:
			return context.Canceled
		}
	}
}
