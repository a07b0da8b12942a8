// Command fbus-conformance judges implementations of the wire protocol by the rules of
// bus/PROTOCOL.md. It is run as fbus conformance.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/vectors"
	"fbus/cmd/companion"

	"github.com/spf13/pflag"
)

func main() { companion.Main(run) }

const help = `fbus conformance: judge an implementation of the wire protocol

Usage: fbus conformance node --node ADDR [flags] [-- CMD…]
       fbus conformance worker [flags] -- CMD…
       fbus conformance caller [flags] -- CMD…

node    judges the node at the path ADDR. With CMD it starts the node with it, and judges how that
        stops on TERM, too.
        Over TLS ADDR is HOST:PORT, and FBUS_TICKET a reusable ticket of it that may call and offer *,
        and make calls for others; CMD starts the node with the network that has issued it.
worker  plays a node, and starts CMD with FBUS_NODE set, once for each check. CMD offers four
        functions, at least one slot each: echo (its input, or its arguments one a line), args (its
        arguments as JSON), sleep (for as many seconds as its argument says), exit (with the status
        that its argument says).
caller  plays a node and a worker with these functions, and runs CMD NAME [ARG…] with an input.

Each check prints PASS, FAIL or, where the page only recommends it, NOTE, the numbers of the
rules in bus/PROTOCOL.md, and its name; after FAIL and NOTE the reason and the last frames: > was sent to
the program, < came from it. SKIP is a check that says nothing about the program, and why: it has not
named a capability, or was not started here. The exit status is 1 if a check has failed, 127 or 126 if
CMD does not exist or cannot be run. After three checks in a row to which the program sends nothing,
the rest is left out. In all checks, each frame that comes is judged by the rules for senders.

  fbus conformance node --node /tmp/n.sock -- fbus serve --no-tcp --socket /tmp/n.sock
  fbus conformance worker -- python3 my_worker.py
  FBUS_TICKET=judge.ticket fbus conformance node --tls --node localhost:10101
  fbus conformance caller --json -- fbus call | jq -r 'select(.verdict == "FAIL") | .name'
  fbus conformance node --only C-5.3 --node /tmp/n.sock

JSON fields: name, rules, verdict, pass (true: PASS), should (true: only recommended), reason, frames.

Flags:
%s`

// options are the flags, and the command.
type options struct {
	json, quiet bool
	tls         bool
	ticket      *trust.Ticket // of the one who judges a node over TLS
	node        string
	limit       time.Duration
	only        string
	cmd         []string
}

// check is one thing that is judged.
type check struct {
	name   string
	rules  []string
	run    func(ctx context.Context, o *options) (*vectors.Conn, error)
	should bool // it is only recommended
}

func run(ctx context.Context, words []string, stdout, stderr io.Writer) error {
	var o options
	flags := pflag.NewFlagSet("conformance", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&o.node, "node", "", "`ADDR` of the node to judge: the path of its socket, HOST:PORT with --tls")
	flags.BoolVar(&o.tls, "tls", false, "over TLS: CMD gets FBUS_TICKET, or the node is at HOST:PORT")
	flags.StringVar(&o.only, "only", "", "only the checks of this `RULE`, or of those that begin so (C-5.3); of this part: core, codes, tls, functions, jobs; or whose name has this text")
	flags.DurationVarP(&o.limit, "timeout", "t", 10*time.Second, "how long the program may be silent, `D`")
	flags.BoolVar(&o.json, "json", false, "one JSON object a line for each check")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "only checks that fail, and errors without hints")
	wantHelp := flags.BoolP("help", "h", false, "show this help")
	fail := func(format string, a ...any) error {
		e := args.Errorf(args.CodeUsage, format, a...)
		if !o.quiet {
			e.Hint = "fbus conformance --help"
		}
		return e
	}
	if err := flags.Parse(words); err != nil {
		return fail("%v", err)
	}
	if *wantHelp {
		_, err := fmt.Fprintf(stdout, help, flags.FlagUsages())
		return err
	}
	checks := map[string]func() ([]check, error){"node": nodeChecks, "worker": workerChecks, "caller": callerChecks}
	side := flags.Arg(0)
	switch {
	case checks[side] == nil:
		return fail("%q is not a side to judge: it is node, worker or caller", side)
	case flags.ArgsLenAtDash() > 1 || flags.ArgsLenAtDash() < 0 && flags.NArg() > 1:
		return fail("the command to judge goes behind --")
	case (o.node == "") == (side == "node"):
		return fail("--node ADDR is for node, which needs it")
	case o.limit <= 0:
		return fail("-t must be positive")
	}
	o.cmd = flags.Args()[1:]
	if side != "node" && len(o.cmd) == 0 {
		return fail("%s needs a command: fbus conformance %s -- CMD…", side, side)
	}
	list, err := checks[side]()
	if err != nil {
		return err
	}
	if o.tls {
		more, err := o.secured(side)
		if err != nil {
			return err
		}
		list = append(more, list...)
	}
	list = slices.DeleteFunc(list, func(c check) bool {
		return o.only != "" && !slices.ContainsFunc(c.rules, o.selects) && !strings.Contains(c.name, o.only)
	})
	if len(list) == 0 {
		return fail("no check of %s has the rule or the name %q", side, o.only)
	}
	if len(o.cmd) > 0 {
		if err := runnable(o.cmd[0]); err != nil {
			return err
		}
	}
	return judge(ctx, side, list, &o, stdout)
}

// runnable checks that a command can be run.
func runnable(program string) error {
	_, err := exec.LookPath(program)
	switch {
	case err == nil || errors.Is(err, exec.ErrDot):
		return nil
	case errors.Is(err, fs.ErrPermission):
		return args.Errorf(args.CodeCannotRun, "cannot run %s: %v", program, errors.Unwrap(err))
	}
	return args.Errorf(args.CodeNotFound, "cannot run %s: not found", program)
}

// parts of the page, and how their rules begin.
var parts = map[string]string{"core": "C", "codes": "E", "tls": "T", "functions": "F", "jobs": "J"}

// selects reports whether --only names a rule, a section of the page, or a part of it.
func (o *options) selects(rule string) bool {
	prefix := strings.ToUpper(strings.TrimRight(o.only, "-."))
	if letter, ok := parts[strings.ToLower(o.only)]; ok {
		prefix = letter
	}
	rest, ok := strings.CutPrefix(rule, prefix)
	return ok && (rest == "" || strings.ContainsAny(rest[:1], "-."))
}

// secured prepares to judge over TLS, and returns the checks that are about that.
func (o *options) secured(side string) ([]check, error) {
	switch side {
	case "worker":
		return clientTLSChecks(), nil
	case "caller":
		return clientTLSChecks("echo"), nil
	}
	var err error
	o.ticket, err = trust.ReadTicket(os.Getenv("FBUS_TICKET"), "FBUS_TICKET")
	return nodeTLSChecks(), err
}

// result is a line of --json.
type result struct {
	Name    string   `json:"name"`
	Rules   []string `json:"rules"`
	Verdict string   `json:"verdict"`
	Pass    bool     `json:"pass"`
	Should  bool     `json:"should,omitempty"` // it is only recommended
	Reason  string   `json:"reason,omitempty"`
	Frames  []string `json:"frames,omitempty"`
}

// result says how a check has ended.
func (c *check) result(end ending) *result {
	r := &result{Name: c.name, Rules: c.rules, Should: c.should, Verdict: "FAIL"}
	var skipped vectors.NotJudged
	var breach *vectors.Breach
	switch {
	case end.err == nil:
		r.Verdict, r.Pass = "PASS", true
		return r
	case errors.As(end.err, &skipped):
		r.Verdict, r.Reason = "SKIP", skipped.Error()
		return r
	case errors.As(end.err, &breach):
		r.Should = false
		if !slices.Contains(r.Rules, breach.Rule) {
			r.Rules = append([]string{breach.Rule}, r.Rules...)
		}
	case c.should:
		r.Verdict = "NOTE"
	}
	r.Reason = args.Plain(end.err)
	if end.conn != nil {
		r.Frames = end.conn.Log
	}
	if len(r.Frames) == 0 {
		r.Frames = []string{"(no frames)"}
	}
	return r
}

// silent reports whether the program has sent nothing for a check.
func (e *ending) silent() bool {
	return errors.Is(e.err, os.ErrDeadlineExceeded) && (e.conn == nil || !e.conn.Heard)
}

// maxSilent is how many checks in a row a program may send nothing for.
const maxSilent = 3

// judge runs the checks and reports them.
func judge(ctx context.Context, side string, list []check, o *options, stdout io.Writer) error {
	count, silent := map[string]int{}, 0
	ctx, cancel := context.WithCancel(ctx)
	ends := begin(ctx, list, o)
	done := 0
	defer func() { // what a check has started ends with it
		cancel()
		for _, end := range ends[done:] {
			<-end
		}
	}()
	for i, c := range list {
		end := ending{err: vectors.NotJudged("gave up, as the program sends nothing")}
		if silent < maxSilent {
			end = <-ends[i]
			done++
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		r := c.result(end)
		count[r.Verdict]++
		if silent < maxSilent || o.json {
			if err := o.write(r, stdout); err != nil {
				return err
			}
		}
		switch {
		case silent == maxSilent:
		case !end.silent():
			silent = 0
		default:
			if silent++; silent == maxSilent {
				cancel()
			}
		}
	}
	if passed := count["PASS"]; !o.json && (!o.quiet || count["FAIL"]+count["NOTE"] > 0) {
		fmt.Fprintf(stdout, "%s: %d of %d checks passed", side, passed, len(list))
		if n := count["SKIP"]; n > 0 {
			fmt.Fprintf(stdout, ", %d not judged", n)
		}
		if silent == maxSilent {
			fmt.Fprintf(stdout, ": gave up, as the program sent nothing in %d checks in a row", maxSilent)
		}
		fmt.Fprintln(stdout)
	}
	if count["FAIL"] > 0 {
		return companion.Status(1)
	}
	return nil
}

// ending is how a check has ended.
type ending struct {
	conn *vectors.Conn
	err  error
}

// begin runs the checks, several at a time, except those that start a node: they share its address.
// Each has a channel for its end.
func begin(ctx context.Context, list []check, o *options) []chan ending {
	free := make(chan struct{}, 2*runtime.NumCPU())
	if o.node != "" && len(o.cmd) > 0 {
		free = make(chan struct{}, 1)
	}
	ends := make([]chan ending, len(list))
	for i := range ends {
		ends[i] = make(chan ending, 1)
	}
	go func() { // ends with the last check, or the process
		for i, c := range list {
			free <- struct{}{}
			go func() { // ends with the check
				var e ending
				if ctx.Err() == nil {
					e.conn, e.err = c.run(ctx, o)
				}
				<-free
				ends[i] <- e
			}()
		}
	}()
	return ends
}

func (o *options) write(r *result, stdout io.Writer) error {
	if o.json {
		enc := json.NewEncoder(stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(r)
	}
	if o.quiet && (r.Pass || r.Verdict == "SKIP") {
		return nil
	}
	_, err := fmt.Fprintf(stdout, "%s  %s  %s\n", r.Verdict, strings.Join(r.Rules, " "), r.Name)
	if r.Reason != "" && err == nil {
		_, err = fmt.Fprintf(stdout, "      %s\n", args.OneLine(r.Reason))
		for _, line := range r.Frames {
			fmt.Fprintf(stdout, "      %s\n", args.OneLine(line))
		}
	}
	return err
}

// errGone is the end of a program that is judged.
var errGone = errors.New("the program has ended")
