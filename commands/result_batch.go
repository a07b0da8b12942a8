package commands

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
)

// checkBatch refuses flags that are for one result.
func (o *resultOptions) checkBatch() error {
	switch {
	case o.hasFD || o.statusTo != "":
		return usage("--status-fd and --status-file are for one result, not for --batch")
	case o.pretty || o.follow:
		return usage("-p and --follow are for one result, not for --batch")
	case o.timeout.set && o.timeout.d <= 0:
		return usage("-t must be positive")
	case o.timeout.set && o.noWait:
		return usage("-t and --no-wait exclude each other")
	}
	return checkTemplate(o.output)
}

// resultBatch prints the results of a batch.
func resultBatch(o *resultOptions, stdout, stderr io.Writer) error {
	if err := o.checkBatch(); err != nil {
		return err
	}
	client, err := o.connect(context.Background(), o.wait, false, stderr)
	if err != nil {
		return err
	}
	defer client.Close()
	until := time.Now().Add(o.timeout.d)
	p := &printer{
		name: o.batch, out: newFlusher(stdout), screen: &screen{w: stderr},
		verbose: o.verbose, title: taskItems,
	}
	list := &batchList{o: o, client: client}
	unfinished := 0
	r := &fanout.Runner{Config: fanout.Config{
		Client: client, Function: o.function, Mode: fanout.Fixed, Jobs: maxResults, Next: list.next, Rest: p.rest,
		Request: func(t *fanout.Task) (*bus.Request, io.Closer, error) {
			req := &bus.Request{Args: args.List(t.Aux.(*printed).job, o.waitDocument(until))}
			closer, err := p.prepare(t, req, nil)
			return req, closer, err
		},
		Done: func(out *fanout.Outcome) error {
			if out.Result.Code == args.CodeUnfinished {
				unfinished++
			}
			return p.print(out)
		},
	}}
	if o.output != "" {
		p.names = fanout.NewNames(fanout.Template(o.output))
		r.Finish = p.writeFile
	}
	ctx, stop := interruptible(r, p.screen, false)
	defer stop()
	err = r.Run(ctx)
	if e := p.close(); e != nil && err == nil {
		err = e
	}
	n := r.Progress()
	var sig *interrupted
	switch {
	case errors.As(err, &sig):
		return sig
	case err != nil:
		f := explain(troubled(noStore(err, o.function), o.node))
		if f.Code == args.CodeNodeLost || f.Code == args.CodeDraining {
			f.Hint = "the results are where they were: " + join("fbus", "result", "--batch", o.batch) + "; " + doctorLine(o.node, nil) + " examines the node"
		}
		return f
	case unfinished > 0:
		return fail(args.CodeUnfinished, "%s: %d of %s not finished", o.batch, unfinished, plural(n.Ended, "job"))
	case n.Failed > 0:
		if !o.quiet {
			p.screen.say("%s: %d of %s failed", o.batch, n.Failed, plural(n.Ended, "job"))
		}
		return statusOnly(exitSomeFailed)
	}
	return nil
}

// maxResults is how many results are asked for at once, or waited for.
const maxResults = 64

// batchList lists the jobs of a batch, some at a time.
type batchList struct {
	o      *resultOptions
	client *bus.Client
	page   []bus.JobInfo
	after  string // the id of the last one
	n      int
	last   bool // there are no others
}

// listedAtOnce is how many jobs of a batch are held in memory.
const listedAtOnce = 1000

// next returns the next job as a task: its word is the item.
func (l *batchList) next() (fanout.Task, error) {
	if len(l.page) == 0 && !l.last {
		q := &bus.JobQuery{Batch: l.o.batch, After: l.after, Limit: listedAtOnce}
		_, err := askJobs(context.Background(), l.client, l.o.jobs, q, func(line []byte) error {
			var i bus.JobInfo
			err := json.Unmarshal(line, &i)
			l.page = append(l.page, i)
			return unreadable(err)
		})
		if err != nil {
			return fanout.Task{}, err
		}
		l.last = len(l.page) < listedAtOnce
	}
	if len(l.page) == 0 {
		return fanout.Task{}, io.EOF
	}
	j := &jobLine{JobInfo: l.page[0]}
	l.page, l.after = l.page[1:], j.ID
	l.n++
	item := j.item()
	if item == "" {
		item = j.ID
	}
	return fanout.Task{Seq: l.n, Words: []string{item}, Aux: &printed{job: j.ID}}, nil
}
