// Command fbus-conformance judges implementations of the wire protocol by the rules of
// bus/PROTOCOL.md. It is run as fbus conformance.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
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
the program, < came from it. The exit status is 1 if a check has failed.

  fbus conformance node --node /tmp/n.sock -- fbus serve --no-tcp --socket /tmp/n.sock
  fbus conformance worker -- python3 my_worker.py
  FBUS_TICKET=judge.ticket fbus conformance node --tls --node localhost:10101
  fbus conformance caller --json -- fbus call | jq -r 'select(.pass | not) | .name'

JSON fields: name, rules, pass, should (true: only recommended), reason, frames.

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
	flags.StringVar(&o.only, "only", "", "only the checks of this `RULE`, or whose name has this text")
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
		return o.only != "" && !slices.Contains(c.rules, o.only) && !strings.Contains(c.name, o.only)
	})
	if len(list) == 0 {
		return fail("no check of %s has the rule or the name %q", side, o.only)
	}
	return judge(ctx, side, list, &o, stdout)
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
	Name   string   `json:"name"`
	Rules  []string `json:"rules"`
	Pass   bool     `json:"pass"`
	Should bool     `json:"should,omitempty"` // it is only recommended
	Reason string   `json:"reason,omitempty"`
	Frames []string `json:"frames,omitempty"`
}

// judge runs the checks and reports them.
func judge(ctx context.Context, side string, list []check, o *options, stdout io.Writer) error {
	passed, failed := 0, 0
	ends := begin(ctx, list, o)
	for i, c := range list {
		end := <-ends[i]
		if ctx.Err() != nil {
			return ctx.Err()
		}
		conn, err := end.conn, end.err
		r := result{Name: c.name, Rules: c.rules, Pass: err == nil, Should: c.should}
		switch {
		case err == nil:
			passed++
		case !c.should:
			failed++
		}
		if err != nil {
			r.Reason = args.Plain(err)
		}
		if err != nil && conn != nil {
			r.Frames = conn.Log[max(0, len(conn.Log)-40):]
		}
		if err := o.write(&r, stdout); err != nil {
			return err
		}
	}
	if !o.json && (!o.quiet || passed < len(list)) {
		fmt.Fprintf(stdout, "%s: %d of %d checks passed\n", side, passed, len(list))
	}
	if failed > 0 {
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
	verdict := "PASS"
	switch {
	case r.Pass && o.quiet:
		return nil
	case !r.Pass && r.Should:
		verdict = "NOTE"
	case !r.Pass:
		verdict = "FAIL"
	}
	_, err := fmt.Fprintf(stdout, "%s  %s  %s\n", verdict, strings.Join(r.Rules, " "), r.Name)
	if !r.Pass && err == nil {
		_, err = fmt.Fprintf(stdout, "      %s\n", args.OneLine(r.Reason))
		for _, line := range r.Frames {
			fmt.Fprintf(stdout, "      %s\n", args.OneLine(line))
		}
	}
	return err
}

// errGone is the end of a program that is judged.
var errGone = errors.New("the program has ended")
