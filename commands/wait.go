package commands

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"

	"github.com/urfave/cli/v2"
)

// waitOptions are the flags of fbus wait.
type waitOptions struct {
	nodeOptions
	barOptions
	batch    string
	timeout  durationValue
	json     bool
	quiet    bool
	function string // called to wait; a test has its own
	jobs     string // called for the list of --json; the same
}

func waitCommand() *cli.Command {
	o := &waitOptions{function: "fbus.wait", jobs: "fbus.jobs"}
	return &cli.Command{
		Usage:     "wait until posted jobs have ended",
		UsageText: "wait [flags] ID…|--batch NAME",
		Description: `Waits until all of these jobs have ended, also while their node is away. The exit status
is 0 if all are done, 123 if one is dead or was cancelled, 124 after -t: the jobs go on.
On a terminal it shows their progress, and what their programs report of theirs.

  fbus wait --batch pages
  fbus wait -t 5m "$id"

With --json it prints each job that has ended, with the fields of fbus jobs. The function
fbus.wait does the same.`,
		Flags: append(slices.Concat(o.nodeOptions.flags("wait `D|forever` for a node", "say which node it was"), o.barOptions.flags()),
			batchFlag(&o.batch, "the jobs of the batch `NAME`"),
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "wait for `D` and no longer", Value: &o.timeout},
			&cli.BoolFlag{Name: "json", Usage: "at the end one JSON object a line for each job that has ended", Destination: &o.json, DisableDefaultText: true},
			quietFlag(&o.quiet),
		),
		Action: func(ctx *cli.Context) error {
			return waitForJobs(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// batchFlag is --batch of the commands for posted jobs.
func batchFlag(dest *string, usage string) cli.Flag {
	return &cli.GenericFlag{Name: "batch", Usage: usage, Value: setter(func(s string) error {
		if _, name, ok := strings.Cut(s, "/"); s == "" || !ok && !args.ValidName(s) || ok && name == "" {
			return errors.New("a batch is named like a function")
		}
		*dest = s
		return nil
	})}
}

func (o *waitOptions) check(ids []string) error {
	switch {
	case len(ids) == 0 && o.batch == "":
		return usage("wait needs ids of jobs, or --batch").WithHint("fbus wait ID, which fbus post has printed; fbus jobs lists them")
	case len(ids) > 0 && o.batch != "":
		return usage("ids and --batch exclude each other")
	case slices.Contains(ids, ""):
		return usage("a job's id must not be empty")
	case o.timeout.set && o.timeout.d <= 0:
		return usage("-t must be positive")
	}
	return o.barOptions.check()
}

// portions divides ids among calls, of which there is one without ids too.
func portions(ids []string) (parts [][]string) {
	begin, size := 0, 0
	for i, id := range ids {
		if size += len(id) + len(`"",`); size > maxPortion && i > begin {
			parts, begin, size = append(parts, ids[begin:i]), i, len(id)+len(`"",`)
		}
	}
	return append(parts, ids[begin:])
}

// maxPortion is how many bytes the ids of one call have: they have to fit into its arguments.
const maxPortion = 512 << 10

func waitForJobs(o *waitOptions, ids []string, stdout, stderr io.Writer) error {
	if err := o.check(ids); err != nil {
		return err
	}
	ids = distinct(ids)
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	screen := &screen{w: stderr}
	node := &lasting{o: &o.nodeOptions, quiet: o.quiet, node: "it", stderr: screen}
	defer node.close()
	if o.timeout.set {
		node.until = time.Now().Add(o.timeout.d)
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, node.until, bus.ErrDeadline)
		defer cancel()
	}
	w := &jobsWaiter{o: o, total: len(ids)}
	if o.show(stderr, o.quiet) {
		w.screen = screen
	}
	var err error
	for _, part := range portions(ids) {
		err = node.do(ctx, func() bool { return true }, func(c *bus.Client) error {
			return w.wait(ctx, c, &bus.JobWait{IDs: part, Batch: o.batch})
		})
		if err != nil {
			break
		}
		w.next()
	}
	screen.stop()
	late := o.timeout.set && err != nil && (ctx.Err() != nil || errors.Is(err, bus.ErrDeadline))
	if o.json && (err == nil || late) {
		if e := o.list(node, ids, stdout); e != nil {
			return e
		}
	}
	switch {
	case late:
		return fail(args.CodeDeadline, "%s not ended after %s", w.left(), formatDuration(o.timeout.d)).WithHint("the jobs go on: %s", join("fbus", "wait", o.batchWords(), ids))
	case err != nil:
		return troubled(err, o.node)
	case w.before.Failed > 0:
		if !o.quiet {
			o.sayFailed(node, ids, w.before, stderr)
		}
		return statusOnly(exitSomeFailed)
	}
	return nil
}

// sayFailed names the first few jobs that are dead or were cancelled.
func (o *waitOptions) sayFailed(node *lasting, ids []string, p fanout.Progress, stderr io.Writer) {
	var failed []string
	queries := []*bus.JobQuery{{Batch: o.batch, State: "dead", Limit: maxFew}, {Batch: o.batch, State: "cancelled", Limit: maxFew}}
	if o.batch == "" {
		queries = nil
		for _, part := range portions(ids) {
			queries = append(queries, &bus.JobQuery{IDs: part})
		}
	}
	ctx := context.Background()
	err := node.do(ctx, func() bool { return false }, func(c *bus.Client) error {
		for _, q := range queries {
			_, err := askJobs(ctx, c, o.jobs, q, func(line []byte) error {
				var j bus.JobInfo
				if json.Unmarshal(line, &j) == nil && (j.State == "dead" || j.State == "cancelled") {
					failed = append(failed, j.ID)
				}
				return nil
			})
			if err != nil || len(failed) >= maxFew {
				return err
			}
		}
		return nil
	})
	text := fmt.Sprintf("%d of %s failed", p.Failed, plural(p.Ended, "job"))
	if err == nil && len(failed) >= min(p.Failed, maxFew) { // some may be purged already
		text += ": " + fewOf(failed, p.Failed)
	}
	say(stderr, text)
}

// distinct returns ids without repetitions. Upper and lower case are the same.
func distinct(ids []string) (list []string) {
	seen := map[string]bool{}
	for _, id := range ids {
		if key := strings.ToUpper(id); !seen[key] {
			seen[key] = true
			list = append(list, id)
		}
	}
	return list
}

func (o *waitOptions) batchWords() []string {
	if o.batch == "" {
		return nil
	}
	return []string{"--batch", o.batch}
}

// list prints the jobs that have ended.
func (o *waitOptions) list(node *lasting, ids []string, stdout io.Writer) error {
	ctx := context.Background()
	return node.do(ctx, func() bool { return false }, func(c *bus.Client) error {
		for _, part := range portions(ids) {
			q := &bus.JobQuery{IDs: part, Batch: o.batch}
			_, err := askJobs(ctx, c, o.jobs, q, func(line []byte) error {
				var j bus.JobInfo
				if err := json.Unmarshal(line, &j); err != nil || !j.State.Finished() {
					return unreadable(err)
				}
				_, err := stdout.Write(line)
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// jobsWaiter waits for jobs, and knows how far they are.
type jobsWaiter struct {
	o      *waitOptions
	screen *screen // nil: progress is not shown
	total  int     // jobs, 0 if they are a batch
	again  bool    // it has waited before: the node may have just begun

	mu     sync.Mutex // protects the fields below
	before fanout.Progress
	now    bus.WaitInfo
}

// wait waits once.
func (w *jobsWaiter) wait(ctx context.Context, c *bus.Client, q *bus.JobWait) error {
	doc, err := marshal(q)
	if err != nil {
		return err
	}
	lines := &lineWriter{to: writerFunc(func(p []byte) (int, error) {
		for line := range bytes.Lines(p) {
			if err := w.note(line); err != nil {
				return 0, err
			}
		}
		return len(p), nil
	})}
	req := &bus.Request{Function: w.o.function, Args: args.JSON(doc), Stdout: lines}
	if w.again {
		req.WaitFunction = bus.WaitFor(logWait)
	}
	w.again = true
	_, err = c.Call(ctx, req)
	return noStore(err, w.o.function)
}

// note takes a line of the answer.
func (w *jobsWaiter) note(line []byte) error {
	var i bus.WaitInfo
	if err := json.Unmarshal(line, &i); err != nil {
		return unreadable(err)
	}
	w.mu.Lock()
	w.now = i
	total := max(w.total, i.Jobs)
	w.mu.Unlock()
	if w.screen != nil {
		w.screen.report(i.Progress) // none: what was shown is over
	}
	switch {
	case w.screen == nil:
	case w.screen.meter == nil: // now the number of jobs is known
		w.screen.start(cmp.Or(w.o.batch, "jobs"), total, w.progress, isTerminal(w.screen.w))
	default:
		w.screen.total(total)
	}
	return nil
}

// next adds up what has ended, before the next jobs are waited for.
func (w *jobsWaiter) next() {
	p := w.progress()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before, w.now = p, bus.WaitInfo{}
}

// progress is for the bar.
func (w *jobsWaiter) progress() fanout.Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, i := w.before, w.now
	p.Ended += i.Done + i.Dead + i.Cancelled
	p.Failed += i.Dead + i.Cancelled
	p.Running = i.Running
	return p
}

// left names the jobs that have not ended.
func (w *jobsWaiter) left() string {
	p := w.progress()
	w.mu.Lock()
	total := max(w.total, w.now.Jobs)
	w.mu.Unlock()
	switch n := total - p.Ended; {
	case total == 0: // the node has not answered yet
		return "the jobs of " + w.o.batch + " have"
	case n == 1:
		return "1 job has"
	default:
		return plural(n, "job") + " have"
	}
}
