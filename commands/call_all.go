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
)

// checkAll refuses flags that exclude --all.
func (o *callOptions) checkAll() error {
	switch {
	case o.hasReplies && o.replies < 1:
		return usage("--replies must be at least 1")
	case o.tag && o.json:
		return usage("--tag and --json exclude each other: with --json, the member worker names the worker")
	case o.hasFD || o.statusTo != "":
		return usage("--status-fd and --status-file are for one call: with --all, use --json")
	case o.pretty:
		return usage("-p is for one call: it does not go with --all")
	}
	return nil
}

// errEnough ends the calls of --all when there are enough answers.
var errEnough = errors.New("enough answers")

// callAll makes one call to every worker that offers the function. Each output is printed
// whole when its call has ended.
func callAll(o *callOptions, stdout, stderr io.Writer) error {
	if err := errors.Join(o.checkAll(), o.check()); err != nil {
		return err
	}
	request, file, err := o.request()
	if err != nil {
		return err
	}
	if file != nil {
		defer file.Close()
	}
	out := &outputFile{w: stdout}
	if o.output != "" {
		if out, err = openOutput(&o.endOptions); err != nil {
			return err
		}
		defer out.discard()
	}
	client, at, err := reach(o.node, o.name, o.on, o.wait, o.keepAlive.d)
	if err != nil {
		return err
	}
	defer client.Close()
	if o.verbose {
		say(stderr, fmt.Sprintf("node: %s (%s)", at.Addr, at.Why))
	}
	workers, err := fanout.Workers(context.Background(), client, o.name, o.on)
	if err != nil {
		return troubled(err, o.node, o.name)
	}
	var shared *fanout.SharedInput
	if request.Input != nil {
		if shared, err = fanout.NewSharedInput(request.Input); err != nil {
			return fail(args.CodeInternal, "input: %v", args.PathReason(err))
		}
		defer shared.Close()
	}
	began := time.Now()
	p := &printer{
		name: o.name, out: newFlusher(out), screen: &screen{w: stderr}, tag: o.tag, json: o.json,
		verbose: o.verbose, timeout: o.timeout.d, title: func(t *fanout.Task) string { return workerTitle(workers, workers[t.Seq-1]) },
	}
	seq, answers := 0, 0
	r := &fanout.Runner{Config: fanout.Config{
		Client: client, Function: o.name, Mode: fanout.Fixed, Jobs: min(len(workers), maxJobs), Unordered: true, Rest: p.rest,
		Next: func() (fanout.Task, error) {
			if seq == len(workers) {
				return fanout.Task{}, io.EOF
			}
			seq++
			return fanout.Task{Seq: seq, On: "#" + workers[seq-1].ID}, nil
		},
		Request: func(t *fanout.Task) (*bus.Request, io.Closer, error) {
			req := *request
			if shared != nil {
				req.Input = shared.Reader()
			}
			o.patience(&req, time.Since(began))
			closer, err := p.prepare(t, &req, nil)
			return &req, closer, err
		},
		Done: func(out *fanout.Outcome) error {
			if o.replies > 0 && answers >= o.replies {
				return nil // this one came too late
			}
			if out.Result.Worker == "" {
				out.Result.Worker = workers[out.Seq-1].Name
			}
			if err := p.print(out); err != nil {
				return err
			}
			if out.Result.Source != args.FromBus && (out.Err == nil || errors.As(out.Err, new(*bus.ExitError))) {
				answers++
			}
			if o.replies > 0 && answers >= o.replies {
				return errEnough
			}
			return nil
		},
	}}
	ctx, stop := interruptible(r, p.screen, false)
	defer stop()
	if err = r.Run(ctx); errors.Is(err, errEnough) {
		err = nil
	}
	if e := p.close(); e != nil && err == nil {
		err = e
	}
	var sig *interrupted
	switch {
	case errors.As(err, &sig):
		return sig
	case err != nil:
		return troubled(err, o.node, o.name)
	case p.worst != 0:
		return statusOnly(p.worst)
	}
	if err := out.commit(); err != nil {
		return outputError(err)
	}
	return nil
}

// workerTitle returns the worker's name, with its id if another has the same name.
func workerTitle(workers []fanout.Worker, w fanout.Worker) string {
	for _, other := range workers {
		if other.Name == w.Name && other.ID != w.ID {
			return w.Name + "#" + w.ID
		}
	}
	return w.Name
}
