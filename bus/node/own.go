package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/wire"
)

// ownFunction is one of the node's own functions.
type ownFunction struct {
	name      string
	help      string // for people
	arguments string // for people
	everybody bool   // may be called whatever the caller's rights; it shows each caller no more than they may see
	changes   bool   // changes something: a drain waits for its end
	monitors  bool   // for those that may see what others do
	relays    bool   // for those that may make calls for others, and nobody else
	long      bool   // may take as long as it needs
	waits     bool   // for something that others do: many such calls run at once
	part      part
	serve     func(ctx context.Context, q *asked) error
}

// part is a part of the node that a function needs; without it the function fails, or is hidden.
type part int

const (
	ofNode    part = iota
	ofLog          // hidden without a log
	ofJobs         // hidden without a store, or an error if the store could not be opened
	ofTickets      // an error without an authority
	ofMesh         // it is the mesh that offers it
)

// noArguments describes the arguments of a function that is not called with any.
const noArguments = "none"

// ownFunctions lists them all. It is filled here since the functions themselves look at it.
var ownFunctions []ownFunction

func init() {
	ownFunctions = []ownFunction{
		{name: "fbus.functions", help: "the functions on the bus, one JSON object a line", arguments: "none, or names", everybody: true, serve: serveFunctions},
		{name: "fbus.calls", help: "the calls that run or wait, one JSON object a line", arguments: noArguments, everybody: true, serve: serveCalls},
		{name: "fbus.nodes", help: "the nodes of the bus, one JSON object a line", arguments: noArguments, everybody: true, serve: serveNodes},
		{name: "fbus.watch", help: "what the node has, and what changes, one JSON object a line", arguments: "none, or a JSON object", everybody: true, long: true, waits: true, serve: serveWatch},
		{name: "fbus.cancel", help: "end a call", arguments: "the call's id", everybody: true, changes: true, long: true, waits: true, serve: serveCancel},

		{name: "fbus.metrics", help: "counters and gauges, one JSON object", arguments: noArguments, monitors: true, serve: serveMetrics},
		{name: "fbus.log", help: "who called what, and who was refused, one JSON object a line", arguments: "a JSON object", monitors: true, part: ofLog, serve: serveLog},

		{name: "fbus.post", help: "keep a call that nobody waits for", arguments: "a name, options in JSON, arguments", everybody: true, changes: true, long: true, waits: true, part: ofJobs, serve: servePost},
		{name: "fbus.jobs", help: "posted calls, one JSON object a line", arguments: "none, or a JSON object", everybody: true, long: true, part: ofJobs, serve: serveJobs},
		{name: "fbus.result", help: "the output of a posted call, and how it ended", arguments: "its id, options in JSON", everybody: true, long: true, waits: true, part: ofJobs, serve: serveResult},
		{name: "fbus.wait", help: "wait for the end of posted calls", arguments: "a JSON object", everybody: true, long: true, waits: true, part: ofJobs, serve: serveWait},
		{name: "fbus.batch", help: "post a call when all of a batch have ended", arguments: "a JSON object", everybody: true, changes: true, long: true, part: ofJobs, serve: serveBatch},
		{name: "fbus.retry", help: "run posted calls again that are dead", arguments: "a JSON object", everybody: true, changes: true, long: true, part: ofJobs, serve: serveRetry},
		{name: "fbus.purge", help: "delete posted calls and their results", arguments: "a JSON object", everybody: true, changes: true, long: true, part: ofJobs, serve: servePurge},

		{name: "fbus.hold", help: "have jobs wait, or workers get nothing new", arguments: "none, or a JSON object", changes: true, part: ofJobs, serve: serveHold},
		{name: "fbus.release", help: "end what fbus.hold has begun", arguments: "a JSON object", changes: true, part: ofJobs, serve: serveRelease},

		{name: "fbus.invite", help: "make a ticket", arguments: "a JSON object", changes: true, part: ofTickets, serve: serveInvite},
		{name: "fbus.join", help: "exchange an invitation for an identity", arguments: "a certificate request in PEM", changes: true, part: ofTickets, serve: serveJoin},
		{name: "fbus.renew", help: "renew an identity", arguments: "a certificate request in PEM", everybody: true, changes: true, part: ofTickets, serve: serveRenew},
		{name: "fbus.admit", help: "whose token that is, and what it allows", arguments: "a token", relays: true, part: ofTickets, serve: serveAdmit},
		{name: "fbus.tickets", help: "the tickets that were issued, one JSON object a line", arguments: "none; from another node, who asks there", part: ofTickets, serve: serveTickets},
		{name: "fbus.trust", help: "what was revoked, as a list (CRL) that the network's CA has signed", arguments: "none, or a JSON object", relays: true, long: true, waits: true, part: ofTickets, serve: serveTrust},
		{name: bus.MeshFunction, help: "what this node's mesh knows of other nodes", arguments: noArguments, relays: true, long: true, waits: true, part: ofMesh},
		{name: "fbus.revoke", help: "take a ticket back", arguments: "its name or serial; from another node, who asks there", changes: true, part: ofTickets, serve: serveRevoke},
	}
}

// unknownOwn is used for names that begin with fbus. and are no function.
var unknownOwn ownFunction

// ownOf returns one of the node's own functions; nil: the name is not reserved for them.
func ownOf(name string) *ownFunction {
	if !reserved(name) {
		return nil
	}
	for i := range ownFunctions {
		if ownFunctions[i].name == name {
			return &ownFunctions[i]
		}
	}
	return &unknownOwn
}

// ForAll reports whether everybody may call that function, whatever their rights.
func ForAll(name string) bool {
	o := ownOf(name)
	return o != nil && o.everybody
}

// class is one of two kinds of the node's own functions. Each has slots, of which an identity has its
// share: a peer that does not read the answers must not take them from the others.
type class int

const (
	answers class = iota
	waits
	classes
)

var classSlots = [classes]int{answers: 16, waits: 2048}

// shortTime bounds a guest's call of a function that is not long, adminTime an administrator's: all
// that guests have left on a loaded node is a long answer.
const (
	shortTime = 10 * time.Second
	adminTime = time.Minute
)

func (o *ownFunction) class() class {
	if o.waits {
		return waits
	}
	return answers
}

// mayServe reports whether another call of a class may run for an identity.
func (n *Node) mayServe(id *identity, k class) bool {
	b := bound{max: int64(classSlots[k]), used: int64(n.ownBusy[k])}
	return n.exceeded(id, b, 1, func(id *identity) int64 { return int64(id.own[k]) }) == nil
}

// serves counts calls of one of the node's own functions that run.
func (n *Node) serves(id *identity, o *ownFunction, d int) {
	for ; id != nil; id = id.all {
		id.own[o.class()] += d
	}
	n.ownBusy[o.class()] += d
}

// fillOwn starts calls of the node's own functions that have waited for a slot of their class.
func (n *Node) fillOwn(b *wire.Batch) {
	for i := range ownFunctions {
		if fn := n.functions[ownFunctions[i].name]; fn != nil && fn.queue.n > 0 {
			for _, o := range fn.offers.list { // there is one
				o.fill(b)
			}
		}
	}
}

// asked is one call of a function of the node's own.
type asked struct {
	*bus.Invocation
	node     *Node
	peer     *Peer        // the caller
	out      bytes.Buffer // the answer
	ctx      context.Context
	own      chan struct{}     // has room for the caller's answer that is computed; nil: it needs no place
	turn     time.Time         // since when it has a place in the node's answering; zero: it has none
	unserved map[string]string // why jobs have no slot: by function and on; "": they have one
	result   *bus.Result       // the end, if it is not "exit 0"
}

// line appends a line of JSON to the answer.
func (q *asked) line(v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.Encode(v)
	q.out.Write(args.SafeJSON(b.Bytes())) // some show it on a terminal as it is
}

// put appends a line of JSON to a long answer.
func (q *asked) put(v any) error {
	q.line(v)
	return q.flush()
}

// flush sends what there is of a long answer.
func (q *asked) flush() error {
	if q.out.Len() < 64<<10 {
		return nil
	}
	q.pass()
	_, err := q.Stdout.Write(q.out.Bytes())
	q.out.Reset()
	q.take()
	return err
}

// maxRest bounds how long a place in the node's answering is kept free.
const maxRest = 50 * time.Millisecond

// take waits for a place among the answers that are computed at once, so that guests leave processors
// to calls, and for one of its caller's, so that a caller with many waits for itself first. The node's
// own user needs none.
func (q *asked) take() {
	if q.own == nil {
		return
	}
	select {
	case q.own <- struct{}{}:
	case <-q.ctx.Done():
		return
	}
	select {
	case q.node.answering <- struct{}{}:
	default:
		q.node.press()
		select {
		case q.node.answering <- struct{}{}:
		case <-q.ctx.Done():
			<-q.own
			return
		}
	}
	q.turn = time.Now()
}

// pass leaves the place to others, after a rest three times as long as the answer took.
func (q *asked) pass() {
	if q.turn.IsZero() {
		return
	}
	rest := min(3*time.Since(q.turn), maxRest)
	q.turn = time.Time{}
	time.AfterFunc(rest, func() {
		<-q.node.answering
		<-q.own
	})
}

// Words returns the arguments as strings. Input in their place is refused: it could be meant as
// arguments, and the answer would be about more than was asked for.
func (q *asked) Words() ([]string, error) {
	if q.Kind == args.KindRaw && len(q.Head()) > 0 {
		return nil, badInput("%s: it takes arguments, not input", q.Function)
	}
	words, err := q.Invocation.Words()
	if err != nil {
		return nil, usageError("%s: %v", q.Function, err)
	}
	return words, nil
}

// words returns the arguments, from least to most of them; form describes them.
func (q *asked) words(least, most int, form string) ([]string, error) {
	words, err := q.Words()
	switch {
	case err != nil:
		return nil, err
	case len(words) < least || len(words) > most:
		return nil, usageError("%s takes %s", q.Function, form)
	}
	return words, nil
}

// document decodes the JSON object that the call brings, as arguments or as input. A
// field that is not known is an error: it could be a filter that would widen the answer.
func (q *asked) document(v any) error {
	doc := q.Args
	switch q.Kind {
	case args.KindJSON:
	case args.KindRaw:
		doc = bytes.TrimSpace(q.Head())
	default:
		words, err := q.Words()
		if err != nil || len(words) != 1 {
			return usageError("%s takes one JSON object", q.Function)
		}
		doc = []byte(words[0])
	}
	return strict(q.Function, doc, v)
}

// hasObject reports whether the call brings a JSON object, in one of the forms that document reads.
func (q *asked) hasObject() bool {
	doc := q.Args
	switch q.Kind {
	case args.KindRaw:
		doc = q.Head()
	case args.KindList:
		words, err := q.Invocation.Words()
		if err != nil || len(words) != 1 {
			return false
		}
		doc = []byte(words[0])
	}
	return bytes.HasPrefix(bytes.TrimSpace(args.WithoutBOM(doc)), []byte("{"))
}

// strict decodes one JSON object, if there is one, and nothing else.
func strict(function string, doc []byte, v any) error {
	if len(doc) == 0 {
		return nil
	}
	if err := args.DecodeStrict(doc, v); err != nil {
		return usageError("%s: %v", function, err)
	}
	return nil
}

// offerOwn puts the node's own functions on the bus, over a connection of the node to
// itself: they are called, queued, cancelled and bounded like any other.
func (n *Node) offerOwn() error {
	near, far, err := socketPair()
	if err != nil {
		return err
	}
	go n.serve(far, Peer{Caller: "node"}, true) // ends with the node
	c, err := bus.NewClient(context.Background(), near, &bus.Options{Name: n.cfg.Name})
	if err != nil {
		return err
	}
	n.own = c
	for i := range ownFunctions {
		o := &ownFunctions[i]
		switch {
		case o.part == ofMesh, o.part == ofLog && !n.cfg.Log.Kept(), o.part == ofJobs && n.cfg.Jobs == nil && n.cfg.NoJobs == nil:
			continue
		}
		offer := bus.Offer{Name: o.name, Slots: classSlots[o.class()], Description: o.help, Arguments: o.arguments, Idempotent: !o.changes}
		if o.name == "fbus.post" && n.cfg.Jobs != nil {
			// Posts of one connection, made one after the other, have ids in that order,
			// however long each takes.
			offer.Arrive = func() any { return n.cfg.Jobs.Arrives() }
		}
		_, err := c.Offer(context.Background(), offer, func(ctx context.Context, inv *bus.Invocation) bus.Result { return n.serveOwn(ctx, o, inv) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) serveOwn(ctx context.Context, o *ownFunction, inv *bus.Invocation) bus.Result {
	if post, ok := inv.Arrival.(jobs.ID); ok {
		defer n.cfg.Jobs.Settled(post) // whatever becomes of it: younger jobs wait for it
	}
	q := &asked{Invocation: inv, node: n, ctx: ctx}
	q.peer, q.own = n.asker(inv)
	cancelled := bus.Result{End: bus.End{Source: args.FromBus, Status: args.StatusOf(args.CodeCancelled), Code: args.CodeCancelled}}
	var err error
	switch {
	case q.peer == nil:
		return cancelled
	case o.part == ofJobs && n.cfg.Jobs == nil:
		err = &args.Error{Code: args.CodeStoreFailed, Message: "nothing can be posted to this node: " + q.peer.told(n.cfg.NoJobs)}
	case o.part == ofTickets && n.first != nil:
		err = n.first.pass(ctx, q)
	case o.part == ofTickets && n.cfg.Authority == nil:
		err = lacks(q.peer, "this node makes no tickets", n.cfg.NoTickets)
	default:
		if o.arguments == noArguments {
			_, err = q.words(0, 0, "no arguments")
		}
		if err == nil {
			if !o.changes && !o.waits {
				q.take()
			}
			err = o.serve(ctx, q)
			q.pass()
		}
	}
	res := bus.Result{}
	if q.result != nil {
		res = *q.result
	}
	if err != nil {
		res = n.failure(o, err, q.peer)
		if ctx.Err() != nil { // nobody waits for it
			res = cancelled
		}
	}
	if q.out.Len() > 0 {
		res.Output = q.out.Bytes()
	}
	return res
}

// lacks returns the error of a request that the node is not configured for. Only an
// administrator gets the reason.
func lacks(p *Peer, what string, why error) error {
	e := args.Errorf(args.CodeBadInput, "%s", what)
	if why != nil && p.admin() {
		e.Message += ": " + why.Error()
		if k := known(why); k != nil {
			e.Hint = k.Hint
		}
	}
	return e
}

// failure is the end of a call of one of the node's own functions that returned an error.
func (n *Node) failure(o *ownFunction, err error, p *Peer) bus.Result {
	fail := func(status int, code string) bus.Result {
		return bus.Result{End: bus.End{Source: args.FromBus, Status: status, Code: code, Message: args.Plain(err)}}
	}
	e := jobs.Report(err)
	if e != nil {
		e.Message = p.told(err)
	} else {
		e = known(err)
	}
	switch {
	case e != nil:
		status := e.Status()
		if e.Code == args.CodeStorage || e.Code == args.CodeDamaged {
			status = args.StatusOf(args.CodeInternal)
		}
		return bus.Result{End: bus.End{Source: args.FromBus, Status: status, Code: e.Code, Message: e.Message, Hint: e.Hint}}
	case o.part == ofJobs, o.name == "fbus.cancel":
		return fail(65, args.CodeBadInput)
	}
	return fail(args.StatusOf(args.CodeInternal), args.CodeInternal)
}

func socketPair() (near, far net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, e := net.FileConn(f)
		f.Close()
		ends[i], err = c, errors.Join(err, e)
	}
	return ends[0], ends[1], err
}
