package commands

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
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

// resultBatch prints the results of a batch. It goes on with another node if it waits.
func resultBatch(o *resultOptions, stdout, stderr io.Writer) error {
	if err := o.checkBatch(); err != nil {
		return err
	}
	screen := &screen{w: stderr}
	b := &batchResults{o: o, until: time.Now().Add(o.timeout.d)}
	b.printer = &printer{
		name: o.batch, out: newFlusher(stdout), screen: screen, verbose: o.verbose, title: taskItems,
	}
	if o.output != "" {
		b.names = fanout.NewNames(fanout.Template(o.output))
	}
	node := &lasting{o: &o.nodeOptions, quiet: o.quiet, node: "it", stderr: screen}
	defer node.close()
	if o.timeout.set {
		node.until = b.until
	}
	looking, stop := context.WithCancel(context.Background())
	var looks sync.WaitGroup
	err := node.do(context.Background(), func() bool { return !o.noWait }, func(c *bus.Client) error {
		if !o.quiet && !o.noWait {
			b.explain.Do(func() {
				looks.Go(func() { // ends with the command
					explainWait(looking, screen, func() (*jobLine, bool) { return o.waiting(looking, c) })
				})
			})
		}
		return b.print(c)
	})
	stop()
	looks.Wait()
	err = cmp.Or(err, b.close())
	var sig *interrupted
	switch {
	case errors.As(err, &sig):
		return sig
	case b.denied:
		return fail(args.CodeDenied, "%s: only their poster and an administrator may read the results of these jobs", o.batch)
	case err != nil:
		f := explain(troubled(noStore(err, o.function), o.node))
		if f.Code == args.CodeNodeLost || f.Code == args.CodeDraining {
			f.Hint = "the results are where they were: " + join("fbus", "result", "--batch", o.batch) + "; " + doctorLine(o.node, nil) + " examines the node"
		}
		return f
	case b.unfinished > 0:
		return fail(args.CodeUnfinished, "%s: %d of %s not finished", o.batch, b.unfinished, plural(b.printed, "job"))
	case b.failed > 0:
		if !o.quiet {
			screen.say("%s: %d of %s failed: %s", o.batch, b.failed, plural(b.printed, "job"), fewOf(b.which, b.failed))
		}
		return statusOnly(exitSomeFailed)
	}
	return nil
}

// batchResults prints results in the order of the posts.
type batchResults struct {
	*printer
	o          *resultOptions
	until      time.Time // with -t
	last       string    // id of the last job whose result was printed
	printed    int       // results
	failed     int       // of them
	which      []string  // the ids of the first few of these
	unfinished int       // of the failed ones
	denied     bool      // the jobs are listed, but their results are not for the caller
	explain    sync.Once // why the first jobs wait
}

// waiting returns the first job of the batch that waits, if any.
func (o *resultOptions) waiting(ctx context.Context, c *bus.Client) (job *jobLine, over bool) {
	for _, state := range []string{"queued", "delayed"} {
		list, _, err := listJobs(ctx, c, o.jobs, &bus.JobQuery{Batch: o.batch, State: state, Limit: 1})
		if err != nil {
			return nil, true
		}
		if len(list) > 0 {
			return list[0], false
		}
	}
	return nil, false
}

// isDenied reports whether a result was refused although the caller sees the job. The job may also have
// ended so.
func isDenied(out *fanout.Outcome) bool {
	return out.Result.Code == args.CodeDenied && strings.HasSuffix(out.Result.Message, " may not call fbus.result for a job of somebody else")
}

// print prints results until the last one, or the loss of the node.
func (b *batchResults) print(c *bus.Client) error {
	list := &batchList{o: b.o, client: c, after: b.last, n: b.printed}
	lost := false // the node was, before the result of the next job had come
	r := &fanout.Runner{Config: fanout.Config{
		Client: c, Function: b.o.function, Mode: fanout.Fixed, Jobs: maxResults, Next: list.next, Rest: b.rest,
		Request: func(t *fanout.Task) (*bus.Request, io.Closer, error) {
			req := &bus.Request{Args: args.List(t.Aux.(*printed).job, b.o.waitDocument(b.until))}
			closer, err := b.prepare(t, req, nil)
			return req, closer, err
		},
		Done: func(out *fanout.Outcome) error {
			if lost = lost || out.Skipped || out.Err != nil && (out.Result.Code == "" || out.Result.Code == args.CodeDraining) && args.Retryable(out.Err); lost {
				return nil
			}
			if b.denied = b.denied || out.Err != nil && isDenied(out); b.denied {
				return out.Err
			}
			b.last = out.Aux.(*printed).job
			b.printed++
			if out.Err != nil {
				if b.failed++; b.failed <= maxFew {
					b.which = append(b.which, b.last)
				}
			}
			if out.Result.Code == args.CodeUnfinished {
				b.unfinished++
			}
			return b.printer.print(out)
		},
	}}
	if b.names != nil {
		r.Finish = b.writeFile
	}
	ctx, stop := interruptible(r, b.screen, false)
	defer stop()
	return r.Run(ctx)
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
	return fanout.Task{Seq: l.n, Words: []string{cmp.Or(j.item(), j.ID)}, Aux: &printed{job: j.ID}}, nil
}
