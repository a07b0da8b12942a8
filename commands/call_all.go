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

// checkAll refuses what does not go with --all.
func (o *callOptions) checkAll() error {
	switch {
	case o.hasReplies && o.replies < 1:
		return usage("--replies %d: at least 1 is due", o.replies)
	case o.tag && o.json:
		return usage("--tag and --json exclude each other: with --json, worker says whose answer it is")
	case o.hasFD || o.statusTo != "":
		return usage("--status-fd and --status-file are for one call: with --all, --json says how each ended")
	case o.pretty:
		return usage("-p is for one call: it does not go with --all")
	}
	return nil
}

// callAll makes one call to every worker that offers the function. Outputs come
// as the calls end, each in one piece.
func callAll(o *callOptions, stdout, stderr io.Writer) error {
	if err := errors.Join(o.checkAll(), o.check()); err != nil {
		return err
	}
	req, file, err := o.request()
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
	client, p, err := reach(o.node, o.name, o.on, o.wait, o.keepAlive.d)
	if err != nil {
		return err
	}
	defer client.Close()
	if o.verbose {
		say(stderr, fmt.Sprintf("node: %s (%s)", p.Addr, p.Why))
	}
	workers, err := fanout.Workers(context.Background(), client, o.name, o.on)
	if err != nil {
		return troubled(err, o.node, o.name)
	}
	s := &scatter{o: o, req: req, workers: workers, out: out, screen: &screen{w: stderr}}
	return troubled(s.run(client), o.node, o.name)
}

// scatter is a call to many workers.
type scatter struct {
	o       *callOptions
	req     *bus.Request
	workers []fanout.Worker
	out     *outputFile
	screen  *screen
	answers int
	seq     int // workers that were asked
}

// errEnough ends a scatter that has its answers.
var errEnough = errors.New("enough answers")

func (s *scatter) run(client *bus.Client) error {
	o := s.o
	var shared *fanout.SharedInput
	if s.req.Input != nil {
		var err error
		if shared, err = fanout.NewSharedInput(s.req.Input); err != nil {
			return fail(args.CodeInternal, "input: %v", pathReason(err))
		}
		defer shared.Close()
	}
	began := time.Now()
	p := &printer{
		name: o.name, out: newFlusher(s.out), screen: s.screen, tag: o.tag, json: o.json,
		verbose: o.verbose, timeout: o.timeout.d, label: s.worker,
	}
	r := &fanout.Runner{
		Client: client, Function: o.name, Jobs: min(len(s.workers), maxJobs), Unordered: true, Fixed: true,
		Next: s.next, Rest: p.rest,
		Request: func(t *fanout.Task) (*bus.Request, io.Closer, error) {
			if err := p.attend(t); err != nil {
				return nil, nil, err
			}
			req := *s.req
			if shared != nil {
				req.Input = shared.Reader()
			}
			o.patience(&req, time.Since(began))
			return &req, p.stderr(t, &req, nil), nil
		},
		Done: func(out *fanout.Outcome) error {
			if s.enough() {
				return nil // one that came too late
			}
			if out.Result.Worker == "" {
				out.Result.Worker = s.workers[out.Seq-1].Name
			}
			if err := p.print(out); err != nil {
				return err
			}
			if out.Result.Source != args.FromBus && (out.Err == nil || errors.As(out.Err, new(*bus.ExitError))) {
				s.answers++
			}
			if s.enough() {
				return errEnough
			}
			return nil
		},
	}
	ctx, stop := interruptible(r, s.screen, false)
	defer stop()
	err := r.Run(ctx)
	if errors.Is(err, errEnough) {
		err = nil
	}
	return s.end(p, err)
}

func (s *scatter) enough() bool { return s.o.replies > 0 && s.answers >= s.o.replies }

// next makes a task for each worker.
func (s *scatter) next() (fanout.Task, error) {
	n := s.seq
	if n == len(s.workers) {
		return fanout.Task{}, io.EOF
	}
	s.seq++
	return fanout.Task{Seq: s.seq, On: "#" + s.workers[n].ID}, nil
}

// worker is the name of the worker that a task is for, with its id if another
// one has the same name.
func (s *scatter) worker(t *fanout.Task) string {
	w := s.workers[t.Seq-1]
	for _, other := range s.workers {
		if other.Name == w.Name && other.ID != w.ID {
			return w.Name + "#" + w.ID
		}
	}
	return w.Name
}

// end says how it ended: with the worst status.
func (s *scatter) end(p *printer, err error) error {
	if e := p.close(); e != nil && err == nil {
		err = e
	}
	var sig *interrupted
	switch {
	case errors.As(err, &sig):
		return sig
	case err != nil:
		return err
	case p.worst != 0:
		return statusOnly(p.worst)
	}
	if err := s.out.commit(); err != nil {
		return fail(args.CodeInternal, "output: %v", pathReason(err))
	}
	return nil
}
