package commands

import (
	"context"
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
can be posted there), first node (at one that is not the network's first: the age of its
list of revoked tickets), mesh (beside a node that has one: NATS, and which other nodes are
left out, and why), rights, function and workers. An invitation can be checked too, and
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
	x.look()
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

// look takes the steps until one fails. A signal ends the process: there is nothing to
// clean up.
func (x *examination) look() {
	if !x.address() {
		return
	}
	if x.place.Identity == nil {
		x.socket()
	} else {
		x.remote()
	}
	if x.client == nil {
		return
	}
	defer x.client.Close()
	n, ok := x.node()
	switch {
	case !ok:
	case n == nil:
		x.invitation()
	case x.rights(n):
		x.function()
	}
}

// print writes a finding for a person, or for a program.
func (o *doctorOptions) print(w io.Writer, f *finding) {
	switch {
	case o.json:
		printJSON(w, f) // a write error is reported at the end
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
	fmt.Fprintf(w, "%-4s  %-11s  %s%s\n", state, f.Step, args.OneLine(args.HideSecrets(f.What)), took)
	if f.Hint != "" {
		fmt.Fprintf(w, "      hint: %s\n", args.OneLine(args.HideSecrets(f.Hint)))
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

// nextStep returns the hint for a failure without one: by its code, which is more
// specific, or by its step. Every failure gets a hint.
func nextStep(step, code string) string {
	switch code {
	case args.CodeBusy:
		return "fbus call -w 1m waits for room; give each user a ticket, or raise fbus serve --max-per-ticket or --max-connections"
	case args.CodeDraining:
		return "fbus call -w 1m waits for the next node"
	case args.CodeVersion:
		return "compare fbus --version at both ends, and replace the older one"
	case args.CodeNetwork:
		return "ask for a ticket of the node's network"
	case args.CodeProtocol:
		return "the program that listens there is not an fbus node: is it the right address?"
	case args.CodeNoNode:
		return "is the node running, and not stopped? fbus status on its machine shows that; an invitation is for the network's first node"
	case args.CodeShut:
		return "fbus doctor at that node shows why; until its first node can be reached, use that one: --node ADDR"
	case args.CodeDenied:
		return "ask the owner of the node: fbus serve --socket-group admits users of the machine, fbus invite those of other machines"
	case args.CodeListLost:
		return "the node admits nobody until its list of tickets is readable again: the stderr of fbus serve has the reason"
	case args.CodeBadTicket:
		return "the file must hold one ticket, complete and unchanged: ask for a new one"
	case args.CodeStorage, args.CodeUnsafe:
		return "is it the right file or directory, and is it yours? FBUS_HOME names the directory of fbus"
	case args.CodeBadCertificate, args.CodeWrongUse, args.CodeNoCertificate:
		return "ask for a new ticket, or, with a PKI of your own, for a certificate with its URI names: fbus:name:NAME, fbus:call:GLOB, …"
	}
	switch step {
	case "address":
		return "choose a node by --node ADDR, FBUS_NODE=ADDR, FBUS_TICKET=FILE or fbus join TICKET, the first of them that is given"
	case "socket", "connection":
		return "fbus status shows which node is used, and why; --node names another"
	case "dns", "tcp", "tls":
		return "is it the right address? fbus serve prints where it listens"
	case "certificate":
		return "ask for a new ticket; fbus log at the node shows why it refused this one"
	case "clock":
		return "check the clock at both ends: date -u"
	}
	return "fbus log at the node shows what it refused; compare fbus --version at both ends"
}

// address chooses the node as every command does.
func (x *examination) address() bool {
	p, err := find.Node(x.o.node)
	if err != nil {
		if why := inOtherTmp(err, ""); why != "" {
			f := explain(err)
			err = f.WithHint("%s; %s", f.Hint, why)
		}
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
