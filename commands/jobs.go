package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"

	"github.com/urfave/cli/v2"
)

// jobsOptions are the flags of fbus jobs.
type jobsOptions struct {
	lookOptions
	state    string
	glob     string
	limit    int
	hasLimit bool
	watch    bool
	every    time.Duration // --watch looks
	function string        // called for the list; a test has its own
}

// defaultJobs is how many jobs a table has without --limit.
const defaultJobs = 100

// states are the states of a job.
var states = []string{"queued", "delayed", "running", "done", "dead", "cancelled"}

func jobsCommand() *cli.Command {
	o := &jobsOptions{function: "fbus.jobs", every: time.Second}
	return &cli.Command{
		Name:      "jobs",
		Usage:     "list posted jobs, or show one in full",
		UsageText: "jobs [flags] [ID…]",
		Description: `  fbus jobs
  fbus jobs --state dead --json | jq -r .id
  fbus jobs --watch --function 'resize*'
  fbus jobs "$id"

Lists the newest 100, or --limit of them; with --json all. With an ID it shows each
attempt, and the chain of jobs that posted each other. --watch redraws a terminal each
second; elsewhere it prints what has changed. States are queued,
delayed, running, done, dead and cancelled. JSON fields, each where it applies: id,
function, state, poster, posted, age (seconds), due, started, ended, attempts, used
(those that count against retries), retries, priority, unique, then, else, finally,
timeout and keep (seconds), on, worker, call, source, status, code and message (of the
last end), in, out and err (bytes), note, parent, children; with an ID also history (attempt, started, ended, worker, call, source,
status, code, message) and chain (these jobs, the first one first). The function
fbus.jobs returns the same.`,
		Flags: append(o.flags(),
			&cli.StringFlag{Name: "state", Usage: "only jobs in this state: `S`", Destination: &o.state},
			&cli.StringFlag{Name: "function", Usage: "only jobs of functions whose name matches `GLOB`", Destination: &o.glob},
			&cli.IntFlag{Name: "limit", Usage: "show the newest `N`", DefaultText: "100, with --json all", Destination: &o.limit},
			&cli.BoolFlag{Name: "watch", Usage: "go on, and show what changes", Destination: &o.watch, DisableDefaultText: true},
		),
		Action: func(ctx *cli.Context) error {
			o.hasLimit = ctx.IsSet("limit")
			return troubled(showJobs(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter), o.node)
		},
	}
}

func (o *jobsOptions) check(ids []string) error {
	switch {
	case o.state != "" && !slices.Contains(states, o.state):
		return usage("--state %s: must be one of %s", o.state, strings.Join(states, ", "))
	case o.hasLimit && o.limit < 1:
		return usage("--limit must be at least 1")
	case len(ids) > 0 && (o.state != "" || o.glob != "" || o.hasLimit):
		return usage("--state, --function and --limit select from all jobs: they do not go with an ID")
	case slices.Contains(ids, ""):
		return usage("a job's id must not be empty")
	}
	return nil
}

func showJobs(o *jobsOptions, ids []string, stdout, stderr io.Writer) error {
	if err := o.check(ids); err != nil {
		return err
	}
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	if o.watch {
		return watchJobs(ctx, o, ids, stdout, stderr)
	}
	c, err := o.dial(ctx, o.wait)
	if err != nil {
		return err
	}
	defer c.Close()
	switch {
	case len(ids) > 0:
		return showEach(ctx, o, c, ids, stdout)
	case o.json:
		return passJobs(ctx, c, o.function, o.query(0), stdout)
	}
	list, total, err := listJobs(ctx, c, o.function, o.query(defaultJobs))
	if err != nil {
		return err
	}
	jobsTable(stdout, list)
	if more := total - len(list); more > 0 && !o.quiet {
		say(stderr, fmt.Sprintf("%d more: --limit N shows the newest N, --json all", more))
	}
	return nil
}

// query selects the jobs that the flags select; without --limit n of them, 0 for all.
func (o *jobsOptions) query(n int) *bus.JobQuery {
	if o.hasLimit {
		n = o.limit
	}
	return &bus.JobQuery{State: o.state, Function: o.glob, Limit: n, Newest: n > 0}
}

// jobLine is a job, and its line from the node: that of a newer node has more fields.
type jobLine struct {
	text []byte // with its newline
	jobs.Info
}

// askJobs calls fbus.jobs and passes each matching job to each, which must not keep its
// text. The total includes jobs that were left out.
func askJobs(ctx context.Context, c *bus.Client, function string, q *bus.JobQuery, each func(j *jobLine) error) (total int, err error) {
	doc, err := marshal(q)
	if err != nil {
		return 0, err
	}
	lines := &lineSplitter{each: func(line []byte) error {
		var v struct {
			jobs.Info
			Total *int `json:"total"`
		}
		if err := json.Unmarshal(line, &v); err != nil {
			return fail(args.CodeInternal, "the node's answer cannot be read: %v", err)
		}
		if v.Total != nil {
			total = *v.Total
			return nil
		}
		return each(&jobLine{line, v.Info})
	}}
	_, err = c.Call(ctx, &bus.Request{Function: function, Args: args.JSON(doc), Stdout: lines})
	return total, noStore(err, function)
}

// passJobs writes the lines of the matching jobs to w as they come. There may be
// millions: only the last line, the total, is decoded.
func passJobs(ctx context.Context, c *bus.Client, function string, q *bus.JobQuery, w io.Writer) error {
	doc, err := marshal(q)
	if err != nil {
		return err
	}
	out := &allButLast{w: w}
	if _, err = c.Call(ctx, &bus.Request{Function: function, Args: args.JSON(doc), Stdout: out}); err != nil {
		w.Write(out.last) // a job: there is no total then
		return noStore(err, function)
	}
	var last bus.JobTotal
	if err := json.Unmarshal(out.last, &last); err != nil {
		return fail(args.CodeInternal, "the node's answer cannot be read: %v", err)
	}
	return nil
}

// allButLast writes all lines but the last one.
type allButLast struct {
	w    io.Writer
	last []byte
}

// Write implements io.Writer.
func (l *allButLast) Write(p []byte) (int, error) {
	l.last = append(l.last, p...)
	whole := bytes.LastIndexByte(bytes.TrimSuffix(l.last, []byte("\n")), '\n') + 1
	if whole > 0 {
		if _, err := l.w.Write(l.last[:whole]); err != nil {
			return 0, err
		}
		l.last = append(l.last[:0], l.last[whole:]...)
	}
	return len(p), nil
}

// noStore explains a missing function: the node keeps no jobs.
func noStore(err error, function string) error {
	if errors.Is(err, bus.ErrNoFunction) {
		return fail(args.CodeNoFunction, "the node keeps no jobs: it has no function %s", function).WithHint("fbus status shows which node that is, and its version")
	}
	return err
}

// lineSplitter passes whole lines, with their newlines, to each.
type lineSplitter struct {
	each    func(line []byte) error
	partial []byte
}

// Write implements io.Writer.
func (s *lineSplitter) Write(p []byte) (int, error) {
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n') + 1
		if i == 0 {
			s.partial = append(s.partial, p...)
			return n, nil
		}
		line := p[:i]
		if len(s.partial) > 0 {
			line = append(s.partial, line...)
			s.partial = s.partial[:0]
		}
		if err := s.each(line); err != nil {
			return 0, err
		}
		p = p[i:]
	}
}

func listJobs(ctx context.Context, c *bus.Client, function string, q *bus.JobQuery) (list []*jobLine, total int, err error) {
	total, err = askJobs(ctx, c, function, q, func(j *jobLine) error {
		j.text = bytes.Clone(j.text)
		list = append(list, j)
		return nil
	})
	return list, total, err
}

// oneJob asks for one job and its history.
func oneJob(ctx context.Context, c *bus.Client, function, id string) (*jobLine, error) {
	list, _, err := listJobs(ctx, c, function, &bus.JobQuery{IDs: []string{id}})
	if err == nil && len(list) != 1 {
		err = fail(args.CodeInternal, "the node's answer cannot be read: %d jobs for one", len(list))
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

func jobsTable(w io.Writer, list []*jobLine) {
	if len(list) == 0 {
		return
	}
	table(w, "ID\tFUNCTION\tSTATE\tAGE\tATTEMPTS\tPOSTER\tNOTE", func(w io.Writer) {
		for _, j := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", j.ID, j.Function, j.State, age(j.Age), fmt.Sprint(j.Attempts), oneLine(j.Poster), oneLine(j.note()))
		}
	})
}

// finished reports whether the job stays in its state until a user changes it.
func (j *jobLine) finished() bool {
	return j.State == "done" || j.State == "dead" || j.State == "cancelled"
}

// note describes the state of a job for a person.
func (j *jobLine) note() string {
	var parts []string
	switch j.State {
	case "running":
		parts = append(parts, "on "+j.Worker)
	case "delayed":
		if !j.Due.IsZero() {
			parts = append(parts, "due in "+age(max(0, time.Until(j.Due).Seconds())))
		}
		parts = append(parts, j.end())
	case "dead", "queued":
		parts = append(parts, j.end())
	}
	parts = append(parts, j.Note)
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

// end describes the end of the job or its last attempt, "" if there is none.
func (j *jobLine) end() string { return endText(j.Source, j.Status, j.Code, j.Message) }

func endText(source string, status *int, code, message string) string {
	if status == nil {
		return ""
	}
	if end := programEnd(source, *status, code); end != "" {
		return end
	}
	if message == "" {
		return code
	}
	return code + ": " + message
}

// change calls one of the node's own functions that change jobs.
func (o *lookOptions) change(function string, q *bus.JobQuery) ([]byte, error) {
	doc, err := marshal(q)
	if err != nil {
		return nil, err
	}
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	c, err := o.dial(ctx, o.wait)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	data, err := output(ctx, c, function, args.JSON(doc))
	return data, troubled(noStore(err, function), o.node)
}
