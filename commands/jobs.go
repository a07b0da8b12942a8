package commands

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// jobsOptions are the flags of fbus jobs.
type jobsOptions struct {
	lookOptions
	state    string
	glob     string
	batch    string
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
	o := &jobsOptions{function: "fbus.jobs", every: watchEvery}
	return &cli.Command{
		Usage:     "list posted jobs, or show one in full",
		UsageText: "jobs [flags] [ID…]",
		Description: `  fbus jobs
  fbus jobs --state dead --json | jq -r .id
  fbus jobs --watch --function 'resize*'
  fbus jobs --batch pages --state dead
  fbus jobs "$id"

Lists the newest 100, or --limit of them; with --json all. With an ID it shows each
attempt, and the chain of jobs that posted each other. --watch redraws a terminal each
second; elsewhere it prints what has changed. States are queued,
delayed, running, done, dead and cancelled. JSON fields, each where it applies: id,
function, state, poster, owner (the poster with its serial), posted, age (seconds), due, started, ended, attempts, used
(those that count against retries), lost (workers in a row), retries, priority, unique, then,
else, finally, timeout and keep (seconds), on, batch, item
(with item_encoding, "base64" if it is not UTF-8), at_most_once, unique_for (seconds), worker, call, source, status, code and message (of the
last end), in, out and err (bytes), note (why it waits), progress (done, total, text), parent, children; with an ID also history (attempt, started, ended, worker, call, source,
status, code, message) and chain (these jobs, the first one first). The function
fbus.jobs returns the same.`,
		Flags: append(o.flags(),
			&cli.StringFlag{Name: "state", Usage: "only jobs in this state: `S`", Destination: &o.state},
			&cli.StringFlag{Name: "function", Usage: "only jobs of functions whose name matches `GLOB`", Destination: &o.glob},
			batchFlag(&o.batch, "only jobs of the batch `NAME`, or of another's, POSTER/NAME"),
			&cli.IntFlag{Name: "limit", Usage: "show the newest `N`", DefaultText: "100, with --json all", Destination: &o.limit},
			watchFlag(&o.watch),
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
	case len(ids) > 0 && (o.state != "" || o.glob != "" || o.batch != "" || o.hasLimit):
		return usage("--state, --function, --batch and --limit select from all jobs: they do not go with an ID")
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
	if o.json && len(ids) == 0 {
		out := bufio.NewWriter(stdout)
		_, err := askJobs(ctx, c, o.function, o.query(0), func(line []byte) error {
			_, err := out.Write(line)
			return err
		})
		return cmp.Or(err, out.Flush())
	}
	page, _, more, err := o.page(ctx, c, ids, defaultJobs)
	stdout.Write(page)
	if err == nil && more > 0 && !o.quiet {
		say(stderr, fmt.Sprintf("%d more: --limit N shows the newest N, --json all", more))
	}
	return err
}

// page shows the jobs of the ids in full, or up to rows of those that the flags select
// in a table, of which there are more. The key changes with the jobs, and not with time alone.
func (o *jobsOptions) page(ctx context.Context, c *bus.Client, ids []string, rows int) (page []byte, key string, more int, err error) {
	var out bytes.Buffer
	if len(ids) == 0 {
		list, total, err := listJobs(ctx, c, o.function, o.query(rows))
		jobsTable(&out, list)
		for _, j := range list {
			key += j.key()
		}
		return out.Bytes(), key, total - len(list), err
	}
	for i, id := range ids {
		j, err := oneJob(ctx, c, o.function, id)
		if err != nil {
			return out.Bytes(), "", 0, err
		}
		chain := chainOf(ctx, o, c, j)
		for _, l := range chain.links {
			key += l.key()
		}
		if o.json {
			chain.json(&out)
			continue
		}
		if i > 0 {
			out.WriteByte('\n')
		}
		chain.show(&out)
	}
	return out.Bytes(), key, 0, nil
}

// query selects the jobs that the flags select; without --limit n of them, 0 for all.
func (o *jobsOptions) query(n int) *bus.JobQuery {
	if o.hasLimit {
		n = o.limit
	}
	return &bus.JobQuery{State: o.state, Function: o.glob, Batch: o.batch, Limit: n, Newest: n > 0}
}

// jobLine is a job, and its line from the node: that of a newer node has more fields.
type jobLine struct {
	text []byte // with its newline
	bus.JobInfo
}

// askJobs calls fbus.jobs and passes the line of each matching job to each, which must not
// keep it. There may be millions: only the last line is decoded, the total, which
// includes jobs that were left out.
func askJobs(ctx context.Context, c *bus.Client, function string, q *bus.JobQuery, each func(line []byte) error) (total int, err error) {
	doc, err := marshal(q)
	if err != nil {
		return 0, err
	}
	lines := &allButLast{each: func(line []byte) error { return each(args.SafeJSON(line)) }}
	if _, err = c.Call(ctx, &bus.Request{Function: function, Args: args.JSON(doc), Stdout: lines}); err != nil {
		if len(lines.last) > 0 {
			lines.each(lines.last) // a job: there is no total then
		}
		return 0, noStore(err, function)
	}
	var last bus.JobTotal
	err = json.Unmarshal(lines.last, &last)
	return last.Total, unreadable(err)
}

// unreadable explains an answer of the node that cannot be decoded.
func unreadable(err error) error {
	if err != nil {
		err = fail(args.CodeInternal, "the node's answer cannot be read: %v", err)
	}
	return err
}

// allButLast passes all lines but the last one, with their newlines, to each.
type allButLast struct {
	each func(line []byte) error
	last []byte
}

// Write implements io.Writer.
func (l *allButLast) Write(p []byte) (int, error) {
	l.last = append(l.last, p...)
	for {
		i := bytes.IndexByte(l.last, '\n') + 1
		if i == 0 || i == len(l.last) {
			return len(p), nil
		}
		if err := l.each(l.last[:i]); err != nil {
			return 0, err
		}
		l.last = l.last[i:]
	}
}

// noStore explains a missing function: the node keeps no jobs.
func noStore(err error, function string) error {
	if errors.Is(err, bus.ErrNoFunction) {
		return fail(args.CodeNoFunction, "the node keeps no jobs: it has no function %s", function).WithHint("fbus status shows which node that is, and its version")
	}
	return err
}

func listJobs(ctx context.Context, c *bus.Client, function string, q *bus.JobQuery) (list []*jobLine, total int, err error) {
	total, err = askJobs(ctx, c, function, q, func(line []byte) error {
		j := &jobLine{text: bytes.Clone(line)}
		list = append(list, j)
		return unreadable(json.Unmarshal(line, &j.JobInfo))
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
	table(w, "ID\tFUNCTION\tSTATE\tAGE\tATTEMPTS\tPOSTER\tNOTE", func(row func(...any)) {
		for _, j := range list {
			row(j.ID, j.Function, j.State, age(j.Age), j.Attempts, j.Poster, j.note())
		}
	})
}

// item returns the item that was posted, or "".
func (j *jobLine) item() string {
	if j.ItemEncoding == "base64" {
		if item, err := base64.StdEncoding.DecodeString(j.Item); err == nil {
			return string(item)
		}
	}
	return j.Item
}

// note describes the state of a job for a person.
func (j *jobLine) note() string {
	parts := []string{args.Shorten(j.item())}
	switch j.State {
	case "running":
		parts = append(parts, "on "+j.Worker, progressText(j.Progress))
	case "delayed":
		if j.Note == "" && !j.Due.IsZero() { // an older node
			parts = append(parts, "due in "+age(max(0, time.Until(j.Due).Seconds())))
		}
		parts = append(parts, j.lastEnd())
	case "dead", "queued":
		parts = append(parts, j.lastEnd())
	}
	parts = append(parts, j.Note)
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

// lastEnd describes the end of the last attempt, unless the note does.
func (j *jobLine) lastEnd() string {
	if why, ok := strings.CutPrefix(j.Message, "its output could not be kept: "); ok && strings.HasPrefix(j.Note, why) {
		return ""
	}
	return endText(j.JobEnd)
}

// endText describes the end of a job or an attempt, "" if there is none.
func endText(e bus.JobEnd) string {
	if e.Status == nil {
		return ""
	}
	if end := programEnd(e.Source, *e.Status, e.Code); end != "" {
		return end
	}
	if e.Message == "" {
		return e.Code
	}
	return e.Code + ": " + e.Message
}

// change calls one of the node's own functions that change jobs: for many ids several times. With
// an error it returns the answers before that.
func (o *lookOptions) change(function string, q *bus.JobQuery) (all []byte, err error) {
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	c, err := o.dial(ctx, o.wait)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	some := *q
	for _, some.IDs = range portions(distinct(q.IDs)) {
		doc, err := marshal(&some)
		if err != nil {
			return all, err
		}
		data, err := output(ctx, c, function, args.JSON(doc))
		if all = append(all, data...); err != nil {
			return all, troubled(noStore(err, function), o.node)
		}
	}
	return all, nil
}

// maxChain bounds how many jobs of a chain are shown.
const maxChain = 1000

// chain is a job with its parents and its children, each after its parent.
type chain struct {
	job   *jobLine
	links []link
}

// link is a job of a chain.
type link struct {
	*jobLine
	depth int
}

// chainOf follows a job's parents up and all their children down. It ends at jobs that
// were purged, or that the caller may not see.
func chainOf(ctx context.Context, o *jobsOptions, c *bus.Client, j *jobLine) *chain {
	seen := map[string]*jobLine{j.ID: j}
	get := func(id string) *jobLine {
		if seen[id] == nil && len(seen) < maxChain {
			if other, err := oneJob(ctx, c, o.function, id); err == nil {
				seen[id] = other
			}
		}
		return seen[id]
	}
	first, above := j, map[string]bool{j.ID: true}
	for first.Parent != "" {
		parent := get(first.Parent)
		if parent == nil || above[parent.ID] {
			break
		}
		first = parent
		above[parent.ID] = true
	}
	ch, shown := &chain{job: j}, map[string]bool{}
	var down func(j *jobLine, depth int)
	down = func(j *jobLine, depth int) {
		shown[j.ID] = true
		ch.links = append(ch.links, link{j, depth})
		for _, id := range j.Children {
			if child := get(id); child != nil && !shown[child.ID] {
				down(child, depth+1)
			}
		}
	}
	down(first, 0)
	return ch
}

// json writes the job as it came from the node, with the chain as its last field.
func (ch *chain) json(out *bytes.Buffer) {
	out.Write(bytes.TrimSuffix(bytes.TrimSpace(ch.job.text), []byte("}")))
	out.WriteString(`,"chain":[`)
	for i, l := range ch.links {
		if i > 0 {
			out.WriteByte(',')
		}
		out.Write(bytes.TrimSpace(l.text))
	}
	out.WriteString("]}\n")
}

// show writes the job for a person.
func (ch *chain) show(stdout io.Writer) {
	j := ch.job
	facts(stdout, func(fact func(string, string, ...any)) {
		text := func(name, value string) {
			if value != "" {
				fact(name, "%s", value)
			}
		}
		fact("id", "%s", j.ID)
		fact("function", "%s", j.Function)
		fact("state", "%s", j.State)
		text("note", j.Note)
		fact("poster", "%s", j.Poster)
		fact("posted", "%s, %s ago", moment(j.Posted), age(j.Age))
		text("due", moment(j.Due))
		text("ended", moment(j.Ended))
		lost := ""
		if j.Lost > 0 {
			lost = "; " + plural(j.Lost, "worker") + " lost"
		}
		fact("attempts", "%d; %d of %d used%s", j.Attempts, j.Used, j.Retries+1, lost)
		if j.AtMostOnce {
			fact("at most once", "yes")
		}
		text("end", endText(j.JobEnd))
		if j.Priority != 0 {
			fact("priority", "%d", j.Priority)
		}
		if text("unique", j.Unique); j.UniqueFor > 0 {
			fact("unique for", "%s after its end", span(j.UniqueFor))
		}
		text("on", j.On)
		text("batch", j.Batch)
		text("item", j.item())
		if j.Timeout > 0 {
			fact("timeout", "%s", span(j.Timeout))
		}
		fact("keep", "%s", span(j.Keep))
		text("then", j.Then)
		text("else", j.Else)
		text("finally", j.Finally)
		fact("bytes", "%d in, %d out, %d stderr", j.In, j.Out, j.Err)
	})
	if len(j.History) > 0 {
		fmt.Fprintln(stdout)
		table(stdout, "ATTEMPT\tSTARTED\tSECONDS\tWORKER\tCALL\tEND", j.attempts)
	}
	if len(ch.links) > 1 {
		fmt.Fprintln(stdout)
		table(stdout, "CHAIN\tFUNCTION\tSTATE\tATTEMPTS\tEND", ch.rows)
	}
}

// attempts writes a row for each attempt.
func (j *jobLine) attempts(row func(...any)) {
	for _, t := range j.History {
		ran := "-"
		if !t.Ended.IsZero() {
			ran = fmt.Sprintf("%.3f", t.Ended.Sub(t.Started).Seconds())
		}
		row(t.Attempt, moment(t.Started), ran, orDash(t.Worker), orDash(t.Call), orDash(endText(t.JobEnd)))
	}
}

// rows writes a row for each job of the chain, indented below its parent.
func (ch *chain) rows(row func(...any)) {
	for _, l := range ch.links {
		row(strings.Repeat("  ", l.depth)+l.ID, l.Function, l.State, l.Attempts, orDash(endText(l.JobEnd)))
	}
}

// moment formats a time for a person, "" for none.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05.000")
}

// span formats seconds as flags take a duration.
func span(seconds float64) string {
	return formatDuration(time.Duration(seconds * float64(time.Second)))
}

// watchJobs shows jobs again and again, also across a restart of the node.
func watchJobs(ctx context.Context, o *jobsOptions, ids []string, stdout, stderr io.Writer) error {
	w := &jobWatcher{o: o, ids: ids, pager: pager{stdout: stdout, json: o.json}, seen: map[string]string{}}
	return o.watchNode(ctx, []string{"job", "function", "worker"}, o.every, stderr, w.show)
}

// jobWatcher shows changes of jobs.
type jobWatcher struct {
	o   *jobsOptions
	ids []string
	pager

	seen map[string]string // with --json: each job as it was printed last
}

// show shows the jobs once.
func (w *jobWatcher) show(ctx context.Context, c *bus.Client) error {
	if w.o.json && len(w.ids) == 0 {
		return w.showChanges(ctx, c)
	}
	_, rows := w.size()
	n := defaultJobs
	if rows > 0 {
		n = max(1, rows-2) // the heading, and the cursor below
	}
	page, key, _, err := w.o.page(ctx, c, w.ids, n)
	if err != nil {
		return err
	}
	if len(page) == 0 && !w.json {
		page, key = []byte("no jobs\n"), "no jobs"
	}
	return w.print(page, key)
}

// showChanges prints the jobs that have changed since they were printed.
func (w *jobWatcher) showChanges(ctx context.Context, c *bus.Client) error {
	list, _, err := listJobs(ctx, c, w.o.function, w.o.query(0))
	if err != nil {
		return err
	}
	now := map[string]string{}
	var out bytes.Buffer
	for _, j := range list {
		if now[j.ID] = j.key(); w.seen[j.ID] != now[j.ID] {
			out.Write(j.text)
		}
	}
	w.seen = now
	_, err = w.stdout.Write(out.Bytes())
	return err
}

// key contains every field of a job that does not change with time alone.
func (j *jobLine) key() string {
	i := j.JobInfo
	if i.Age, i.Due = 0, (time.Time{}); i.State == "delayed" {
		i.Note = "" // the same time, perhaps in other words
	}
	key, _ := marshal(i)
	return string(key) + "\n"
}
