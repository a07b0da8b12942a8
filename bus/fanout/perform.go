package fanout

import (
	"bytes"
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
	// maxBusy is how often a call is offered again that found queues full: that is
	// no failure of its own, but it must end.
	maxBusy = 200
	// farewell is how long a cancelled call is given to say which worker had it.
	farewell = time.Second
)

// perform makes one task's call, as often as it takes.
func (r *Runner) perform(ctx context.Context, t Task) *Outcome {
	o := &Outcome{Task: t, Output: r.output(), Began: time.Now()}
	if ctx.Err() != nil {
		o.Err, o.Skipped = context.Cause(ctx), true
		return o
	}
	busy := 0
	for {
		o.Tries++
		shut := r.shut()
		o.Result, o.Err = r.try(ctx, o)
		switch again := r.verdict(ctx, o, busy); again {
		case final:
			o.Skipped = o.Skipped || shut
			o.Took = time.Since(o.Began)
			return o
		case tryNow:
		case tryWhenOffered:
			o.Tries--
			if r.awaitWorker(ctx) {
				o.Began = time.Now() // what it waited for was no call
				break
			}
			o.Skipped = true
			o.Took = time.Since(o.Began)
			return o
		default:
			if again == tryLater {
				o.Tries--
				busy++
			}
			if !pause(ctx, min(firstPause<<min(max(o.Tries-1, busy-1, 0), 10), lastPause)) {
				o.Took = time.Since(o.Began)
				return o
			}
		}
		o.Output.reset()
	}
}

// verdict of a try.
type verdict int

const (
	final          verdict = iota // that was it
	tryNow                        // again
	tryAgain                      // again, after a pause
	tryLater                      // again, after a pause: it has not begun
	tryWhenOffered                // when there is a worker again
)

func (r *Runner) verdict(ctx context.Context, o *Outcome, busy int) verdict {
	var e *args.Error
	mine := errors.As(o.Err, &e)
	switch {
	case o.Err == nil, ctx.Err() != nil:
		return final
	case mine && (e.Code == args.CodeDraining || e.Code == args.CodeNodeLost || r.shut()):
		// Nothing more can be called: the node goes, or we were shut out. What was only
		// queued has not run.
		r.mu.Lock()
		r.halt(e)
		r.mu.Unlock()
		o.Skipped = e.Code == args.CodeDraining
		return final
	case mine && e.Code == args.CodeNoFunction && !r.Fixed:
		return tryWhenOffered
	case mine && e.Code == args.CodeBusy && !r.Fixed && busy < maxBusy && !r.isStopped():
		return tryLater
	case mine && (e.Code == args.CodeDenied || e.Code == args.CodeUsage || e.Code == args.CodeBadInput):
		return final
	case o.Tries > r.Retries || r.isStopped():
		return final
	case o.Tries == 1:
		return tryNow
	}
	return tryAgain
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
	return r.stopped
}

// pause waits, give or take; false: ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *Runner) try(ctx context.Context, o *Outcome) (bus.Result, error) {
	req, closer, err := r.Request(&o.Task)
	if err != nil {
		return bus.Result{}, err
	}
	if closer != nil {
		defer closer.Close()
	}
	req.Function, req.Stdout = r.Function, o.Output
	if req.On = o.On; req.On == "" {
		req.On = r.On
	}
	req.Farewell = farewell
	o.Sent = int64(req.Args.Len()) + size(req.Input)
	return r.Client.Call(ctx, req)
}

// size is how long an input is, 0 if that is not known.
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

// Worker is one that offers a function.
type Worker struct {
	Name  string `json:"name"`
	ID    string `json:"id"` // of its connection: Task.On may be # and this
	Slots int    `json:"slots"`
}

// Slots asks the node how many calls the function takes at once, on the workers
// that on admits.
func Slots(ctx context.Context, client *bus.Client, function, on string) (int, error) {
	workers, err := Workers(ctx, client, function, on)
	n := 0
	for _, w := range workers {
		n += w.Slots
	}
	return n, err
}

// Workers asks the node who offers the function.
func Workers(ctx context.Context, client *bus.Client, function, on string) ([]Worker, error) {
	var out bytes.Buffer
	if _, err := client.Call(ctx, &bus.Request{Function: "fbus.functions", Args: args.List(function), Stdout: &out}); err != nil {
		return nil, err
	}
	var list []Worker
	for dec := json.NewDecoder(&out); ; {
		var f struct {
			Workers []Worker `json:"workers"`
		}
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

// awaitWorker waits until somebody offers the function; false: it is not to be
// waited for any more.
func (r *Runner) awaitWorker(ctx context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.waiting && !r.stopped {
		r.waiting = true
		go r.seekWorker(ctx) // ends when there is one, or when stopped
	}
	for r.waiting && !r.stopped {
		r.cond.Wait()
	}
	return !r.stopped
}

func (r *Runner) seekWorker(ctx context.Context) {
	r.notice("%s: no worker is left: waiting for one", r.Function)
	err := r.findWorker(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = false
	var e *args.Error
	switch {
	case err == nil:
		r.notice("%s: a worker is there again: going on", r.Function)
	case errors.As(err, &e) && e.Code != args.CodeBusy:
		r.halt(e)
	default:
		r.halt(nil)
	}
	r.cond.Broadcast()
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
			return &args.Error{Code: args.CodeNoFunction, Message: r.Function + ": no worker has come back"}
		}
		select {
		case <-time.After(seekEvery):
		case <-r.stop:
			return context.Canceled
		}
	}
}

func (r *Runner) notice(format string, args ...any) {
	if r.Notice != nil {
		r.Notice(format, args...)
	}
}
