package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"

	"github.com/urfave/cli/v2"
)

// doctorOptions are the flags of fbus doctor.
type doctorOptions struct {
	name    string // of a function; empty: none
	node    string
	json    bool
	quiet   bool
	verbose bool
}

func doctorCommand() *cli.Command {
	o := &doctorOptions{}
	return &cli.Command{
		Name:      "doctor",
		Usage:     "find out why a node cannot be reached, or a function cannot be called",
		UsageText: "doctor [flags] [NAME]",
		Description: `Checks each step that a call takes and prints ok, warn (a call would still succeed), FAIL
with a hint, or skip. Nothing is called. The exit status is that of a call of NAME: 0 if
it would start at once.

  fbus doctor resize
  fbus doctor --node gpu-box
  FBUS_TICKET=ci.ticket fbus doctor resize

Steps: address (which node, and why that one), then socket and connection on this
machine, or dns, tcp, tls, clock and certificate on others; then node, store (if nothing
can be posted there), rights, function and workers. An invitation can be checked too, and
is not used up.

JSON fields: step, state (ok, warn, fail, skip), what, hint, and for a failure the code
and exit status of the call.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line for each step", Destination: &o.json, DisableDefaultText: true},
			nodeFlag(&o.node),
			quietFlag(&o.quiet),
			verboseFlag(&o.verbose, "print how long each step took"),
		},
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() > 1 {
				return usage("fbus doctor takes one function name, got %s", join(ctx.Args().Slice())).WithHint("fbus doctor NAME")
			}
			o.name = ctx.Args().First()
			if o.name != "" && !args.ValidName(o.name) {
				return usage("invalid function name %q", o.name)
			}
			return doctor(o, ctx.App.Writer)
		},
	}
}

// finding is the result of one step.
type finding struct {
	Step   string `json:"step"`
	State  string `json:"state"` // one of the states below
	What   string `json:"what"`
	Hint   string `json:"hint,omitempty"`   // the next step
	Code   string `json:"code,omitempty"`   // of a failure, as for a call
	Status int    `json:"status,omitempty"` // and its exit status

	took time.Duration
}

// States of a finding.
const (
	fine    = "ok"
	warning = "warn" // a call succeeds, but something is wrong
	failed  = "fail" // no call succeeds
	skipped = "skip" // not checked
)

// The steps, in the order of the output.
var (
	commonSteps = []string{"address", "node", "rights", "function", "workers"}
	socketSteps = []string{"address", "socket", "connection", "node", "rights", "function", "workers"}
	remoteSteps = []string{"address", "dns", "tcp", "tls", "certificate", "node", "clock", "rights", "function", "workers"}
)

// examination checks one node.
type examination struct {
	o        *doctorOptions
	report   func(*finding)
	reported map[string]bool
	began    time.Time // of the step
	place    find.Place
	client   *bus.Client // nil before the handshake
	status   int         // of the failure, 0 while there is none
}

// doctor checks the node that a call would use.
func doctor(o *doctorOptions, stdout io.Writer) error {
	x := &examination{o: o, reported: map[string]bool{}, began: time.Now(), report: func(f *finding) { o.print(stdout, f) }}
	// A signal ends the process: there is nothing to clean up.
	ctx := context.Background()
	x.look(ctx)
	steps := commonSteps
	switch {
	case x.place.Identity != nil:
		steps = remoteSteps
	case x.place.Why != "":
		steps = socketSteps
	}
	for _, step := range steps {
		if !x.reported[step] && x.status != 0 {
			x.skip(step, "not reached")
		}
	}
	if x.status != 0 {
		return statusOnly(x.status)
	}
	return nil
}

// look takes the steps until one fails.
func (x *examination) look(ctx context.Context) {
	if !x.address() {
		return
	}
	if x.place.Identity == nil {
		x.socket(ctx)
	} else {
		x.remote(ctx)
	}
	if x.client == nil {
		return
	}
	defer x.client.Close()
	n, ok := x.node(ctx)
	switch {
	case !ok:
	case n == nil:
		x.invitation(ctx)
	case x.posts(n) && x.rights(n):
		x.function(ctx)
	}
}

// print writes a finding for a person, or for a program.
func (o *doctorOptions) print(w io.Writer, f *finding) {
	switch {
	case o.json:
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.Encode(f) // a write error is reported at the end
		return
	case o.quiet && f.State != failed && f.State != warning:
		return
	}
	state := f.State
	if state == failed {
		state = "FAIL"
	}
	took := ""
	if o.verbose && f.State != skipped {
		took = fmt.Sprintf(" (%s)", f.took.Round(10*time.Microsecond))
	}
	fmt.Fprintf(w, "%-4s  %-11s  %s%s\n", state, f.Step, oneLine(f.What), took)
	if f.Hint != "" {
		fmt.Fprintf(w, "      hint: %s\n", oneLine(f.Hint))
	}
}

func (x *examination) add(f *finding) {
	f.took = time.Since(x.began)
	x.began = time.Now()
	x.reported[f.Step] = true
	x.report(f)
}

func (x *examination) ok(step, format string, args ...any) {
	x.add(&finding{Step: step, State: fine, What: fmt.Sprintf(format, args...)})
}

func (x *examination) warn(step, hint, format string, args ...any) {
	x.add(&finding{Step: step, State: warning, What: fmt.Sprintf(format, args...), Hint: hint})
}

func (x *examination) skip(step, format string, args ...any) {
	x.add(&finding{Step: step, State: skipped, What: fmt.Sprintf(format, args...)})
}

// fail reports the error that a call would end with. It returns false, for a step to
// return.
func (x *examination) fail(step string, err error) bool {
	f := explain(err)
	if x.status == 0 {
		x.status = f.Status()
	}
	if f.Hint == "" || f.Hint == hintFor(args.CodeNoNode) && (x.place.Identity != nil || step == "node") { // a node runs, or is not on this machine
		f.Hint = nextStep(step, f.Code)
	}
	x.add(&finding{Step: step, State: failed, What: f.Message, Hint: f.Hint, Code: f.Code, Status: f.Status()})
	return false
}

// address chooses the node as every command does.
func (x *examination) address() bool {
	p, err := find.Node(x.o.node)
	if err != nil {
		return x.fail("address", err)
	}
	passed := ""
	for p.Next != nil {
		gone := find.Probe(p.Addr.String())
		if !p.Passable(gone) {
			break
		}
		q, err := p.Next()
		if err != nil {
			p.Why = "the only node found" // the next step shows what is wrong with it
			break
		}
		passed += "; passed over: " + p.String() + ", where nobody listens"
		if errors.Is(gone, syscall.EACCES) {
			passed = strings.TrimSuffix(passed, "nobody listens") + "you may not call"
		}
		p = q
	}
	x.place = p
	if p.Identity != nil && len(p.Addresses()) == 0 {
		_, err := bus.Dial(context.Background(), bus.Addr{}, &bus.Options{Identity: p.Identity})
		return x.fail("address", explain(err).WithHint("fbus doctor --node HOST[:PORT]"))
	}
	if passed != "" {
		x.warn("address", "", "%s: %s%s", p, p.Why, passed)
		return true
	}
	x.ok("address", "%s: %s", p, p.Why)
	return true
}
