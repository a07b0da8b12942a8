package commands

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"

	"github.com/urfave/cli/v2"
)

// logOptions are the flags of fbus log.
type logOptions struct {
	lookOptions
	last     int
	follow   bool
	event    string
	function string // the function to ask; a test has its own
}

// logWait limits the wait of one call for an entry. A stopped node is noticed after that
// time, and a draining one is not held up.
const logWait = 5 * time.Second

func logCommand() *cli.Command {
	o := &logOptions{function: "fbus.log", last: 50}
	return &cli.Command{
		Usage:     "show who called what, and who was refused",
		UsageText: "log [flags] [NAME]",
		Description: `  fbus log
  fbus log --follow 'resize*'
  fbus log ticket:ci
  fbus log --event revoked
  fbus log --json --last 1000 | jq -r 'select(.status != 0) | .call'

NAME is a function or, with a colon in it, a caller (ticket:NAME, uid:N); globs work
for both. ticket:NAME is also a relay's callers, ticket:NAME/CALLER, and token:NAME the bearer of
that token, by any relay. --follow continues when the node restarts. Calls, refusals, and changes to
tickets are kept in files of their own: many of one kind do not remove the others. Of the
refusals of one caller with one code, and of its calls that fbus ended before a worker had
them, 50 a minute have an entry each; the others are counted ("and 12000 more").

JSON fields, each where it applies: seq, time, event (call, refused, invited, joined,
renewed, revoked, removed, dropped: entries are missing, …), call (its id), relayed (the id that a relay has given it), caller, from,
function, worker, waited and ran (seconds), in and out (bytes), source (program, signal,
fbus), status, code, message, trace (W3C traceparent), name and serial (of a ticket), more (how many such ends or
refusals this entry counts), dropped (how many). The function fbus.log answers the same,
page by page.`,
		Flags: append(o.flags(),
			&cli.BoolFlag{Name: "follow", Usage: "print new entries as they come", Destination: &o.follow, DisableDefaultText: true},
			&cli.StringFlag{Name: "event", Usage: "only entries whose event matches `GLOB`", Destination: &o.event},
			&cli.IntFlag{Name: "last", Usage: "show the last `N` entries", DefaultText: "50", Destination: &o.last},
		),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() > 1 {
				return usage("fbus log takes one NAME, and got %s as well", ctx.Args().Get(1)).WithHint("a glob matches several names: %s", join("fbus", "log", ctx.Args().First()+"*"))
			}
			if o.last < 0 {
				return usage("--last must not be negative, got %d", o.last)
			}
			// A signal ends the process: there is nothing to clean up.
			return showLog(context.Background(), o, ctx.Args().First(), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// showLog prints the last entries, and with --follow later ones.
func showLog(ctx context.Context, o *logOptions, name string, stdout, stderr io.Writer) error {
	r := &logReader{o: o, node: &lasting{o: &o.nodeOptions, quiet: o.quiet, node: "the node", stderr: stderr}}
	defer r.node.close()
	p := &logPrinter{w: stdout, json: o.json, follow: o.follow}
	q := bus.LogQuery{Function: name, Event: o.event, Last: max(1, o.last)}
	if strings.Contains(name, ":") { // no function's name contains one
		q.Function, q.Caller = "", name
	}
	for left := o.last; o.follow || left > 0; {
		entries, next, err := r.read(ctx, q)
		if err != nil {
			return err
		}
		if o.last == 0 && q.Last > 0 {
			entries = nil // the request was only for the end of the log
		}
		if err := p.print(entries); err != nil {
			return fail(args.CodeInternal, "output: %v", err)
		}
		if !o.follow && len(entries) == 0 {
			return nil
		}
		left -= len(entries)
		q.Last, q.After = 0, next
		if o.follow && left <= 0 || len(entries) == 0 {
			q.Wait = logWait.Seconds()
		}
	}
	return nil
}

// logReader reads a node's log. With --follow it outlives the node.
type logReader struct {
	o        *logOptions
	node     *lasting
	answered bool // once
}

// logEntry is an entry with its original line, which may have fields of a newer node.
type logEntry struct {
	text []byte // with its newline
	bus.LogEntry
}

// read returns a query's entries and the position to continue from.
func (r *logReader) read(ctx context.Context, q bus.LogQuery) (entries []logEntry, next uint64, err error) {
	doc, err := json.Marshal(q)
	if err != nil {
		return nil, 0, err
	}
	var out bytes.Buffer
	err = r.node.do(ctx, func() bool { return r.o.follow }, func(c *bus.Client) error {
		out.Reset()
		req := &bus.Request{Function: r.o.function, Args: args.JSON(doc), Stdout: &out, Stderr: r.node.stderr}
		if r.answered {
			req.WaitFunction = bus.WaitFor(logWait) // it is there, or a node has just begun
		}
		_, err := c.Call(ctx, req)
		r.answered = r.answered || err == nil
		if errors.Is(err, bus.ErrNoFunction) {
			return fail(args.CodeNoFunction, "the node keeps no log: it has no function %s", r.o.function).WithHint("fbus status shows which node that is, and its version")
		}
		return troubled(err, r.o.node)
	})
	if err == nil {
		entries, next, err = parseLog(args.SafeJSON(out.Bytes()))
	}
	if err == nil && next < q.After {
		if !r.o.quiet {
			say(r.node.stderr, "the log has started again")
		}
		q.After = 0
		return r.read(ctx, q)
	}
	return entries, next, err
}

// parseLog parses the answer of fbus.log. If its last line has no position to continue
// from, next is that of the last entry.
func parseLog(data []byte) (entries []logEntry, next uint64, err error) {
	for text := range bytes.Lines(data) {
		var v struct {
			bus.LogEntry
			Next *uint64 `json:"next"`
		}
		if err := json.Unmarshal(text, &v); err != nil {
			return nil, 0, fail(args.CodeInternal, "the node's answer cannot be read: %v", err)
		}
		if v.Next != nil {
			return entries, *v.Next, nil
		}
		entries = append(entries, logEntry{text, v.LogEntry})
		next = v.Seq
	}
	return entries, next, nil
}

type logPrinter struct {
	w      io.Writer
	json   bool
	follow bool   // later entries cannot be measured before they come
	begun  bool   // the heading was printed
	widths [5]int // of the widest cells so far
}

var logHead = [6]string{"TIME", "CALLER", "FUNCTION", "WORKER", "SECONDS", "END"}

// print prints entries in one write, so that a concurrent reader sees whole lines.
func (p *logPrinter) print(entries []logEntry) error {
	if len(entries) == 0 {
		return nil
	}
	var out bytes.Buffer
	var rows [][6]string
	if !p.json && !p.begun {
		p.begun, rows = true, append(rows, logHead)
		if p.follow {
			p.widths = [5]int{len("2006-01-02 15:04:05.000"), 10, 12, 10, 7}
		}
	}
	for _, e := range entries {
		if p.json {
			out.Write(bytes.TrimSuffix(e.text, []byte{'\n'}))
			out.WriteByte('\n')
			continue
		}
		rows = append(rows, logRow(&e.LogEntry))
	}
	for _, row := range rows {
		for i := range p.widths {
			if n := utf8.RuneCountInString(row[i]); n <= 40 || !p.follow { // one outlier does not widen all that follow
				p.widths[i] = max(p.widths[i], n)
			}
		}
	}
	for _, row := range rows {
		for i, width := range p.widths {
			fmt.Fprintf(&out, "%-*s  ", width, row[i])
		}
		fmt.Fprintln(&out, row[5])
	}
	_, err := p.w.Write(out.Bytes())
	return err
}

// logRow is an entry for people: local time, caller, function, worker, seconds with
// the worker, end.
func logRow(e *bus.LogEntry) [6]string {
	row := [6]string{
		e.Time.Local().Format("2006-01-02 15:04:05.000"),
		orDash(e.Caller), orDash(e.Function), orDash(e.Worker), "-", logEnd(e),
	}
	if e.Worker != "" {
		row[4] = strconv.FormatFloat(e.Ran, 'f', 3, 64)
	}
	for i := range row {
		row[i] = args.OneLine(row[i]) // tabs as well, which would shift the columns
	}
	return row
}

// logEnd describes the end of a call: "exit 0", "signal KILL", "busy: WHY", "refused:
// revoked: ticket ci (SERIAL) from 10.0.0.5".
func logEnd(e *bus.LogEntry) string {
	if end := programEnd(e.Source, e.Status, e.Code); e.Event == calllog.EventCall && end != "" {
		return end
	}
	var parts []string
	if e.Event != calllog.EventCall && e.Event != calllog.EventDropped {
		parts = append(parts, cmp.Or(e.Event, "?"))
	}
	for _, s := range []string{e.Code, logTicket(e), e.Message} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// programEnd describes a program's end. It returns "" if fbus ended the program.
func programEnd(source string, status int, code string) string {
	switch source {
	case "program":
		return fmt.Sprintf("exit %d", status)
	case "signal":
		return "signal " + strings.TrimPrefix(code, "SIG")
	}
	return ""
}

// logTicket describes the ticket and the peer's address.
func logTicket(e *bus.LogEntry) string {
	var words []string
	if e.Name != "" {
		words = append(words, "ticket "+e.Name)
	}
	switch {
	case e.Serial != "" && e.Name != "":
		words = append(words, "("+e.Serial+")")
	case e.Serial != "":
		words = append(words, "serial "+e.Serial)
	}
	if e.From != "" && e.Event != calllog.EventCall {
		words = append(words, "from "+e.From)
	}
	return strings.Join(words, " ")
}
