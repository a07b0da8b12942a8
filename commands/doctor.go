package commands

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/bus/wire"

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

// socket checks a unix socket, and connects to it.
func (x *examination) socket() {
	path := x.place.Addr.String()
	why, hint := "", "--node ADDR: the path of a node's socket, or HOST[:PORT]"
	st, err := os.Stat(path)
	tooLong := wire.CheckPath(path)
	switch {
	case tooLong != nil:
		why, hint = tooLong.Error(), "use a shorter path, or one relative to the current directory"
	case errors.Is(err, os.ErrNotExist):
		why, hint = "does not exist: no node listens there", serveThere(path)
	case errors.Is(err, os.ErrPermission):
		why, hint = "you may not enter a directory of this path", "it belongs to another user; --node names another socket"
	case err != nil:
		why = args.Plain(err)
	default:
		why = find.NotSocket(path)
		if in := find.SocketIn(path); in != "" {
			hint = "a node listens at " + in
		}
	}
	if elsewhere := find.Elsewhere(path); elsewhere != "" && errors.Is(err, os.ErrNotExist) {
		hint += "; " + elsewhere
	}
	if why != "" {
		x.fail("socket", fail(args.CodeNoNode, "%s: %s", path, why).WithHint("%s", hint))
		return
	}
	owner, mode := st.Sys().(*syscall.Stat_t), st.Mode().Perm()
	user, group := userName(int(owner.Uid)), groupName(int(owner.Gid))
	x.ok("socket", "it belongs to %s, mode %04o", user, mode)
	if x.client, err = bus.Connect(context.Background(), &bus.Options{Node: path, Name: hostname()}); err == nil {
		x.ok("connection", "a node answered")
		return
	}
	f := explain(err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Message, f.Hint = "a stale socket: the node that made it was killed", serveThere(path)
		if os.Getuid() != 0 && int(owner.Uid) != os.Getuid() {
			f.Hint = user + " must start the node again"
		}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		f.Message = fmt.Sprintf("permission denied: it belongs to %s and group %s, mode %04o", user, group, mode)
		f.Hint = "a node is only for its user; fbus serve starts one of your own"
		if mode&0o020 != 0 {
			f.Hint = "members of group " + group + " may use it"
		}
	case f.Code == args.CodeForeign:
		f.Hint = "a node of another user sees everything that you send, and is not trusted; " + f.Hint
	case f.Code == args.CodeProtocol:
		f.Hint = "the program that listens there is not an fbus node: is it the right socket?"
	case f.Code == args.CodeNoNode:
		f.Hint = "the program that listens there is not an fbus node, or is stopped"
	}
	if !strings.HasPrefix(f.Message, path) {
		f.Message = path + ": " + f.Message
	}
	x.fail("connection", f)
}

// pidOf returns the process id in the default path of a node's socket, 0 if there is none.
func pidOf(socket string) (pid int) {
	fmt.Sscanf(socket, find.SocketDir+"/"+find.SocketPrefix+"%d"+find.SocketSuffix, &pid)
	return pid
}

// serveThere returns the command that starts a node at a path, which a node may have
// chosen itself.
func serveThere(path string) string {
	if pidOf(path) > 0 {
		return "fbus serve starts a node"
	}
	return join("fbus", "serve", "--socket", path) + " starts a node there"
}

func userName(uid int) string {
	if uid == os.Getuid() {
		return "you"
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return fmt.Sprintf("%s (uid %d)", u.Username, uid)
	}
	return fmt.Sprintf("uid %d", uid)
}

func groupName(gid int) string {
	if g, err := user.LookupGroupId(strconv.Itoa(gid)); err == nil {
		return g.Name
	}
	return strconv.Itoa(gid)
}

// remote connects over TCP, and reports the steps of each address that is tried.
func (x *examination) remote() {
	left := len(x.place.Addresses())
	missed := func(step string, f *args.Error) {
		if left == 0 || errors.Is(f, bus.ErrDenied) { // a denial is the same for every address
			x.fail(step, f)
		} else {
			x.warn(step, f.Hint, "%s; trying the next address", f.Message)
		}
	}
	refused := func(err error) {
		f := explain(err)
		step := stepOf(f)
		if step != "tls" && !x.reported["tls"] {
			x.ok("tls", "fine until a certificate was refused")
		}
		missed(step, f)
	}
	x.client, _ = bus.Dial(context.Background(), x.place.Addr, &bus.Options{Name: hostname(), Identity: x.place.Identity, Trace: &bus.Trace{
		Lookup: func(host string, found []string, err error) {
			left--
			var dns *net.DNSError
			switch _, other := netip.ParseAddr(host); {
			case host == "" || other == nil:
				x.ok("dns", "%s is an address: nothing to look up", orLocal(host))
			case err == nil:
				x.ok("dns", "%s is %s", host, strings.Join(found, ", "))
			default:
				why := err.Error()
				if errors.As(err, &dns) {
					why = dns.Err
				}
				missed("dns", fail(args.CodeNoNode, "%s: cannot resolve the name: %s", host, why).
					WithHint("check the spelling; --node takes an address too; getent hosts %s asks the system", host))
			}
		},
		Connected: func(addr bus.Addr, nc net.Conn, err error) {
			if err != nil {
				missed("tcp", unanswered(addr, err))
				return
			}
			x.ok("tcp", "%s answers", nc.RemoteAddr())
		},
		Secured: func(_ bus.Addr, state tls.ConnectionState, err error) {
			if err != nil {
				refused(err)
				return
			}
			x.ok("tls", "%s, %s", tls.VersionName(state.Version), cmp.Or(state.NegotiatedProtocol, "no protocol"))
		},
		Greeted: func(_ bus.Addr, err error) {
			if err != nil {
				refused(err)
				return
			}
			x.certificate()
		},
	}})
}

func orLocal(host string) string { return cmp.Or(host, "this machine") }

// unanswered explains why a TCP connection failed.
func unanswered(addr bus.Addr, err error) *args.Error {
	host, port, _ := net.SplitHostPort(addr.String())
	why, hint := err.Error(), ""
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "connection refused: the machine answers, but nothing listens on that port"
		hint = fmt.Sprintf("is fbus serve running on %s, without --no-tcp, on port %s? it prints where it listens", orLocal(host), port)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		why, hint = "no answer", "is the machine up? a firewall that drops packets looks the same: TCP port "+port
	case errors.As(err, &errno):
		why = errno.Error()
		if errno == syscall.EHOSTUNREACH || errno == syscall.ENETUNREACH {
			hint = "there is no route to it: is the network up, is it the right address?"
		}
	}
	return fail(args.CodeNoNode, "%s: %s", addr, why).WithHint("%s", hint)
}

// stepOf returns the step that a refusal belongs to.
func stepOf(err error) string {
	code := ""
	var e *args.Error
	for below := err; errors.As(below, &e); below = e.Err { // the innermost one knows best
		code = e.Code
	}
	switch code {
	case args.CodeNotYetValid, args.CodeClock:
		return "clock"
	case args.CodeNotOurs:
		// A node renews its certificate long before it expires, so the two clocks disagree.
		if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return "clock"
		}
		return "certificate"
	case args.CodeExpired, args.CodeNoCertificate, args.CodeOtherNetwork, args.CodeNetwork, args.CodeRevoked, args.CodeUnlisted, args.CodeUsed,
		args.CodeWrongUse, args.CodeBadCertificate, args.CodeBadRight, args.CodeListLost:
		return "certificate"
	case args.CodeTLSVersion, args.CodePlainText, args.CodeHTTP, args.CodeNotFbus, args.CodeReset, args.CodeTimeout, args.CodeTLS:
		return "tls"
	}
	return "node"
}

// certificate reports that the node has accepted our certificate.
func (x *examination) certificate() {
	id := x.place.Identity
	cert, err := id.Config("").GetClientCertificate(nil)
	if err != nil || cert.Leaf == nil {
		x.ok("certificate", "accepted")
		return
	}
	what, until := "your certificate", cert.Leaf.NotAfter.UTC().Format(time.RFC3339)
	if t := id.Ticket; t != nil {
		what = fmt.Sprintf("ticket %s of network %s", t.Name, t.Network)
	}
	if id.Dir != "" && id.Ticket.RenewalDue(trust.Now()) {
		x.warn("certificate", "every command renews it if it can write to "+id.Dir, "%s was accepted; it needs renewal and is good until %s", what, until)
		return
	}
	x.ok("certificate", "%s was accepted; it is good until %s", what, until)
}

// node asks the node for its identity and ours. An invitation has no right to ask.
func (x *examination) node() (*bus.NodeInfo, bool) {
	name, network := x.client.Node()
	if x.place.Identity != nil && x.place.Identity.Ticket != nil && x.place.Identity.Ticket.Joining {
		x.ok("node", "%s of network %s", name, network)
		x.skip("clock", "an invitation may not ask the node for its time")
		return nil, true
	}
	asked := time.Now()
	data, err := x.ask("fbus.nodes", args.Args{})
	if err == nil && len(data) == 0 {
		err = fail(args.CodeInternal, "the node did not identify itself")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fail(args.CodeNoNode, "no answer within %s", formatDuration(askTime))
	}
	if err != nil {
		return nil, x.fail("node", err)
	}
	took := time.Since(asked)
	list, err := decodeLines[bus.NodeInfo](data)
	if err != nil || len(list) != 1 {
		return nil, x.fail("node", fail(args.CodeInternal, "the node did not identify itself"))
	}
	n := &list[0]
	if n.Draining {
		return nil, x.fail("node", fail(args.CodeDraining, "%s of network %s is shutting down", n.Name, n.Network))
	}
	x.ok("node", "%s of network %s, version %s, up for %s", n.Name, n.Network, n.Version, age(n.Time.Sub(n.Started).Seconds()))
	if x.place.Identity != nil {
		x.clock(n, took)
	}
	if n.NoPosts != "" { // a call would still succeed
		x.warn("store", storeHint(n.NoPosts), "nothing can be posted: %s", n.NoPosts)
	}
	if t := n.Trust; t != nil && t.Shut+t.Away != "" {
		what, hint := t.Shut, "is the first node running, and can it be reached from here? fbus status shows the state; fbus log at the first node shows what it refused"
		if what == "" {
			what = fmt.Sprintf("this node's list of revoked tickets is %s old: the first node, %s, cannot be reached: %s", age(t.Age), strings.Join(t.First, ", "), t.Away)
		}
		x.warn("first node", hint, "%s", what)
	}
	return n, true
}

// clockLimit is the difference of two clocks from which doctor warns.
const clockLimit = time.Minute

// clock compares the clock of the node with ours. took is the time of the request.
func (x *examination) clock(n *bus.NodeInfo, took time.Duration) {
	if n.Time.IsZero() {
		x.skip("clock", "the node does not report its time")
		return
	}
	here := trust.Now().Add(-took / 2)
	off := here.Sub(n.Time)
	if off.Abs() < time.Second+took {
		x.ok("clock", "same as the node's")
		return
	}
	way := "ahead of"
	if off < 0 {
		way = "behind"
	}
	what := fmt.Sprintf("this clock is %s %s the node's: %s here, %s there", age(off.Abs().Seconds()), way, here.UTC().Format(time.RFC3339), n.Time.Format(time.RFC3339))
	if off.Abs() < clockLimit {
		x.ok("clock", "%s", what)
		return
	}
	x.warn("clock", "check date -u at both ends: certificates are checked against either clock, and may be refused early or late", "%s", what)
}

// askTime bounds a question to a node.
const askTime = 10 * time.Second

// ask calls one of the node's own functions.
func (x *examination) ask(name string, a args.Args) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	return output(ctx, x.client, name, a)
}

// invitation checks whether it can be exchanged. A call with it is always denied.
func (x *examination) invitation() {
	id := x.place.Identity
	_, err := x.ask("fbus.join", args.Args{})
	if err == nil {
		x.fail("rights", id.Check())
		return
	}
	f := explain(err)
	switch f.Code {
	case args.CodeUsed:
		if hint := id.Exchanged(); hint != "" {
			f.Hint = hint
		}
	case args.CodeUsage: // an older node does not report that
		f = explain(id.Check())
		f.Hint += "; if it was used before, ask for a new one"
	}
	x.fail("rights", f)
}

// rights checks whether this identity may call the function.
func (x *examination) rights(n *bus.NodeInfo) bool {
	name, may := x.o.name, mayDo(n.Rights)
	if name == "" || n.Rights == nil || n.Rights.MayCall(name) || node.ForAll(name) {
		x.ok("rights", "%s may %s", n.Caller, may)
		return true
	}
	not := "may not call " + name
	if n.Rights.MayOffer(name) {
		not = "may offer " + name + " but not call it"
	}
	hint := join("fbus", "invite", "--call", name)
	if strings.HasPrefix(name, "fbus.") { // no glob matches these
		hint = "fbus invite --admin"
	}
	denied := fail(args.CodeDenied, "%s %s: it may %s", n.Caller, not, may).WithHint("ask for a ticket that allows it: %s", hint)
	return x.fail("rights", suggest(x.client, denied, name))
}

// function checks whether the function is offered.
func (x *examination) function() {
	name := x.o.name
	if name == "" {
		x.skip("function", "no function named: fbus doctor NAME checks one")
		x.skip("workers", "no function named")
		return
	}
	data, err := x.ask("fbus.functions", args.List(name))
	list, bad := decodeLines[bus.FunctionInfo](data)
	if err = cmp.Or(err, bad); err != nil {
		x.fail("function", err)
		return
	}
	if len(list) == 0 || len(list[0].Workers) == 0 {
		f := explain(suggest(x.client, fail(args.CodeNoFunction, "%s: no such function: no worker offers it", name), name))
		if len(list) > 0 && list[0].Queued > 0 {
			f.Message += fmt.Sprintf("; %s for it", plural(list[0].Queued, "call")+" wait")
		}
		if len(list) > 0 && list[0].Held {
			f.Message += "; " + bus.HeldNote(name)
		}
		x.fail("function", f)
		return
	}
	f := &list[0]
	offered := fmt.Sprintf("%s is offered by %s", name, plural(len(f.Workers), "worker"))
	if f.Held { // calls are not
		x.warn("function", "", "%s; %s", offered, bus.HeldNote(name))
	} else {
		x.ok("function", "%s", offered)
	}
	x.workers(f)
}

// workers checks whether a call would start at once.
func (x *examination) workers(f *bus.FunctionInfo) {
	free, notes := 0, ""
	for _, w := range f.Workers {
		if !w.Held && !w.Relay {
			free += max(0, w.Slots-w.Busy)
		}
		if w.Note != "" && notes == "" {
			notes = fmt.Sprintf("%s: %s", w.Name, w.Note)
		}
	}
	switch {
	case free == 0 && relayed(f):
		x.ok("workers", "%d of %s free here; calls also go to other nodes, %s", free, plural(f.Slots, "slot"), plural(f.Elsewhere, "slot"))
	case f.Slots == 0 && notes != "":
		x.fail("workers", noneStarts(f).WithHint("%s shows them; a worker looks again by itself", join("fbus", "describe", f.Name)))
	case strings.HasPrefix(f.Waits, node.AllHeld):
		x.fail("workers", fail(args.CodeBusy, "%s: a call would have to wait: all its workers are held", queued(f.Queued)).WithHint("%s", strings.TrimPrefix(f.Waits, node.AllHeld)))
	case free == 0 || strings.HasPrefix(f.Waits, node.NoFreeSlot):
		x.fail("workers", fail(args.CodeBusy, "%d of %s free, %s: a call would have to wait: %s", free, plural(f.Slots, "slot"), queued(f.Queued), cmp.Or(f.Waits, node.NoFreeSlot)).
			WithHint("fbus ps shows the calls; offering the function again, here or elsewhere, adds slots; fbus call -w 1m waits a minute"))
	case notes != "":
		x.warn("workers", join("fbus", "describe", f.Name)+" shows them", "%d of %s free; %s", free, plural(f.Slots, "slot"), notes)
	case f.Waits != "": // calls start
		x.warn("workers", storeHint(f.Waits), "%d of %s free; its jobs wait: %s", free, plural(f.Slots, "slot"), f.Waits)
	default:
		x.ok("workers", "%d of %s free", free, plural(f.Slots, "slot"))
	}
}

func queued(n int) string {
	if n == 1 {
		return "1 call waits"
	}
	return fmt.Sprintf("%d calls wait", n)
}

// storeHint says what helps when the store of jobs lets nothing run or be posted, for that reason.
func storeHint(why string) string {
	if strings.Contains(why, "the store of jobs is full") {
		return "fbus purge --state done, or --state dead, makes room"
	}
	return "the stderr of fbus serve has the reason"
}
