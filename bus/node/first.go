package node

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	identities "fbus/bus/find"
	"fbus/bus/trust"
)

const (
	// trustWait is how long a second node may wait for a change of the revocation list. Then it
	// gets the same one, signed again.
	trustWait = 50 * time.Second
	// trustTime is how long it waits for an answer beyond that.
	trustTime = 10 * time.Second
	// firstPause bounds the pause between two tries to reach the first node.
	firstPause = 2 * time.Second
)

// A first node whose process is stopped keeps its connections. It is away if it does not answer
// a call within firstHangs, of which there is one after each firstPing.
var firstPing, firstHangs = 3 * time.Second, 5 * time.Second

// first is the network's first node, as another node of the network uses it: it alone issues,
// renews and revokes tickets.
type first struct {
	node   *Node
	second *trust.Second

	mu     sync.Mutex  // protects the fields below
	client *bus.Client // nil while it is away
	err    error       // why it is away
	admits map[[sha256.Size]byte]admitted
	tokens map[string]*trust.Record // by serial: those that were admitted here
	names  map[string]string        // serials of tokens, by name, as they were admitted last

	warned string // what the last warning was about; belongs to run
}

// admitted is an answer of fbus.admit, by the hash of the token.
type admitted struct {
	answer []byte
	token  bus.TokenInfo // what that says
	until  time.Time
}

// maxAdmits bounds the answers that are kept.
const maxAdmits = 10_000

// admitTime is how long an answer of fbus.admit is kept. A revocation drops all.
const admitTime = 50 * time.Second

// run keeps a connection to the first node, and the revocation list up to date, until the node
// is closed.
func (f *first) run() {
	ctx, cancel := context.WithCancel(context.Background())
	f.node.serving.Go(func() { // ends with the node
		<-f.node.done
		cancel()
	})
	for pause := 50 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, firstPause) {
		c, err := f.connect(ctx)
		if err == nil {
			pause = 50 * time.Millisecond
			f.set(c, nil)
			err = f.follow(ctx, c)
		}
		f.set(nil, err)
		if c != nil {
			c.Close()
		}
		if ctx.Err() != nil {
			return
		}
		f.warn("the network's first node cannot be reached", err, ": nothing can be invited, revoked or renewed here, and revocations are not known")
		wait(ctx, pause/2+rand.N(pause/2))
	}
}

func (f *first) set(c *bus.Client, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.client, f.err = c, err
}

// warn gives a warning about a state, once until the state or the error's code changes: the text may
// change all the time.
func (f *first) warn(state string, err error, more string) {
	if what := state + args.AsError(err, "").Code; what != f.warned {
		f.node.cfg.Warn("%s: %v%s", state, err, more)
		f.warned = what
	}
}

// connect returns a connection to the first node. An address may be that of another node, which
// has no revocation list.
func (f *first) connect(ctx context.Context) (*bus.Client, error) {
	f.second.Reload()
	id := identities.ForTicket(f.second.Ticket())
	err := errors.New("its ticket contains no address")
	for i, addr := range id.Addresses {
		c, e := bus.Dial(ctx, addr, &bus.Options{Name: f.node.cfg.Name, Network: f.node.cfg.Network, Identity: id, KeepAlive: f.node.cfg.KeepAlive})
		if e == nil {
			if e = f.update(ctx, c, 0); e == nil {
				f.refused(nil)
				return c, nil
			}
			c.Close()
		}
		f.refused(e)
		if i == 0 || errors.Is(e, bus.ErrDenied) {
			err = e
		}
	}
	return nil, err
}

// refused notes the first node's answer to this node's ticket.
func (f *first) refused(err error) {
	if err := f.second.Refused(err); err != nil {
		f.warn("the first node's answer to this node cannot be kept", err, "")
	}
}

// follow keeps the revocation list and this node's certificates up to date while the connection
// lasts.
func (f *first) follow(ctx context.Context, c *bus.Client) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	f.node.serving.Go(func() { // ends with ctx
		for wait(ctx, firstPing) {
			if _, err := ask(ctx, c, firstHangs, "fbus.nodes", args.Args{}); errors.Is(err, bus.ErrDeadline) {
				end(err)
			}
		}
	})
	for {
		unrenewed := f.renew(ctx, c)
		err := f.update(ctx, c, f.second.Interval())
		if c.Err() != nil || ctx.Err() != nil {
			return cmp.Or(context.Cause(ctx), c.Err())
		}
		switch {
		case err == nil && unrenewed == nil:
			f.warned = ""
			continue
		case err == nil:
			f.warn("this node's certificates cannot be renewed", unrenewed, "")
			continue
		}
		f.warn("the list of revoked tickets cannot be got from the network's first node", err, "")
		wait(ctx, firstPause)
	}
}

// wait waits for a time, and reports whether ctx has not ended.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// update gets the revocation list when it has changed, at the latest after a time.
func (f *first) update(ctx context.Context, c *bus.Client, wait time.Duration) error {
	query, err := json.Marshal(bus.TrustQuery{After: f.second.Number(), Wait: wait.Seconds()})
	if err != nil {
		return err
	}
	text, err := ask(ctx, c, wait+trustTime, "fbus.trust", args.JSON(query))
	if err != nil {
		return err
	}
	err = f.take(text, trust.FromFirst)
	if e := known(err); e != nil && e.Code == args.CodeStorage { // it is in use, if not kept
		f.warn("the list of revoked tickets cannot be kept", err, "")
		return nil
	}
	return err
}

// take has a revocation list used.
func (f *first) take(text []byte, from string) error {
	before := f.second.Number()
	err := f.second.Update(text, from)
	if f.second.Number() != before {
		f.node.changes.ticket()
	}
	return err
}

// trust answers with the revocation list that this node has, or takes one that a relay has from
// elsewhere: the CA's signature says what it is worth. Another query is for the first node. If it was
// passed on, two nodes could take each other for that.
func (f *first) trust(ctx context.Context, q *asked) error {
	var d bus.TrustQuery
	if err := q.document(&d); err != nil {
		return err
	}
	switch {
	case d.List != "":
		err := f.take([]byte(d.List), trust.FromRelay)
		if e := known(err); e != nil && e.Code != args.CodeStorage {
			f.node.cfg.Log.Append(&bus.LogEntry{
				Event: calllog.EventRefused, Caller: q.peer.Caller, From: q.peer.From, Function: q.Function, Code: args.CodeBadInput, Message: err.Error(), Serial: q.peer.Serial,
			})
			return args.BadInput("fbus.trust: %v", err)
		}
		q.line(bus.TrustQuery{After: f.second.Number()})
		return err
	case d.Kept:
		return q.await(ctx, &d, func() ([]byte, int64, error) { return f.second.List(), f.second.Number(), nil })
	}
	return args.Errorf(args.CodeNoNode, "this node is not the network's first node; %s is", f.second.First())
}

// renew renews the node's certificates when that is due.
func (f *first) renew(ctx context.Context, c *bus.Client) error {
	if !f.second.RenewalDue() {
		return nil
	}
	request, err := f.second.Ticket().Request()
	if err != nil {
		return err
	}
	certs, err := ask(ctx, c, trustTime, "fbus.renew", args.List(string(request)))
	if err != nil {
		return err
	}
	return f.second.Renewed(certs)
}

// ask calls a function of the first node and returns its output.
func ask(ctx context.Context, c *bus.Client, limit time.Duration, function string, a args.Args) ([]byte, error) {
	var out bytes.Buffer
	_, err := c.Call(ctx, &bus.Request{Function: function, Args: a, Stdout: &out, Timeout: limit})
	if errors.Is(err, bus.ErrDeadline) {
		err = args.Errorf(args.CodeDeadline, "it has not answered for %s", limit)
	}
	return out.Bytes(), err
}

// pass has the first node answer a call of a function that needs the CA or the list of tickets.
// There this node's ticket must have the right, and so must the ticket that asks here: it ends
// what it has issued, wherever it has asked.
func (f *first) pass(ctx context.Context, q *asked) error {
	var a args.Args
	by := cmp.Or(q.peer.Serial, q.peer.Caller)
	switch q.Function {
	case "fbus.admit":
		return f.admit(ctx, q)
	case "fbus.join":
		return serveJoin(ctx, q)
	case "fbus.trust":
		return f.trust(ctx, q)
	case "fbus.invite":
		var d bus.Invitation
		if err := q.invitation(&d); err != nil {
			return err
		}
		d.By = by
		text, err := json.Marshal(d)
		if err != nil {
			return err
		}
		a = args.JSON(text)
	case "fbus.tickets":
		if _, err := q.words(0, 0, "no arguments"); err != nil {
			return err
		}
		a = args.List(by)
	case "fbus.revoke":
		words, err := q.words(1, 1, "one argument: the name or serial of a ticket")
		if err != nil {
			return err
		}
		a = args.List(words[0], by)
	case "fbus.renew":
		words, err := q.Words()
		if err != nil || len(words) != 1 || q.peer.Serial == "" {
			return badInput("fbus.renew takes a certificate request in PEM, from a peer that has joined")
		}
		a = args.List(words[0], q.peer.Serial)
	}
	answer, err := f.ask(ctx, q.Function, a)
	if err != nil {
		return err
	}
	q.out.Write(answer)
	if q.Function == "fbus.renew" {
		serial, expires, err := trust.CertificateEnd(answer)
		if err != nil {
			return err
		}
		q.node.renewed(q.Call, serial, expires)
	}
	return nil
}

// ask calls a function of the first node, if it can be reached now.
func (f *first) ask(ctx context.Context, function string, a args.Args) ([]byte, error) {
	f.mu.Lock()
	c, away := f.client, f.err
	f.mu.Unlock()
	if c == nil {
		return nil, args.Errorf(args.CodeNoNode, "this node is not the network's first node; %s is, and cannot be reached: %v", f.second.First(), away).
			WithHint("it is tried again all the time: fbus status shows when it is back")
	}
	answer, err := ask(ctx, c, adminTime, function, a)
	if err != nil {
		if lost := c.Err(); function == "fbus.revoke" && lost != nil && args.AsError(lost, "").Code == args.CodeRevoked {
			// This node's own ticket was revoked, which has ended the connection before the answer.
			answer, err := json.Marshal(bus.RevokedInfo{Serials: []string{f.second.Ticket().Serial}, Connections: 1})
			return append(answer, '\n'), err
		}
		e := args.AsError(err, args.CodeNodeLost)
		if f.mu.Lock(); f.client != c { // it was closed
			e = args.Errorf(args.CodeNodeLost, "the network's first node, %s, was lost before it had answered, so it may have done that: %v", f.second.First(), f.err)
		}
		f.mu.Unlock()
		if e.Code == args.CodeDenied && e.Hint == "" {
			e.WithHint("this node's ticket does not administer the network: use the first node, %s, or join with a ticket of fbus invite --for-node --admin", f.second.First())
		}
		return nil, e
	}
	return answer, nil
}

// admit answers whose token a relay was given, from an earlier answer if that is not a minute old.
func (f *first) admit(ctx context.Context, q *asked) error {
	text, err := q.token()
	if err != nil {
		return err
	}
	hash := sha256.Sum256(text)
	f.mu.Lock()
	known, ok := f.admits[hash]
	f.mu.Unlock()
	if !ok || time.Now().After(known.until) {
		if known.answer, err = f.ask(ctx, q.Function, args.List(string(text))); err == nil {
			err = json.Unmarshal(known.answer, &known.token)
		}
		if err != nil {
			return err
		}
		known.until = time.Now().Add(min(admitTime, known.token.Expires.Sub(trust.Now())))
	}
	f.mu.Lock()
	if len(f.admits) >= maxAdmits || f.admits == nil {
		f.admits = map[[sha256.Size]byte]admitted{}
	}
	f.admits[hash] = known
	isNew := f.admitted(&known.token, hash)
	f.mu.Unlock()
	if isNew {
		f.node.changes.ticket()
	}
	if _, err := f.token(known.token.Name); err != nil { // it was revoked after the first node had answered
		return err
	}
	q.out.Write(known.answer)
	return nil
}

// admitted notes a token, and reports whether it is new here. f.mu is held.
func (f *first) admitted(r *bus.TokenInfo, hash [sha256.Size]byte) bool {
	if f.tokens == nil {
		f.tokens, f.names = map[string]*trust.Record{}, map[string]string{}
	}
	f.names[r.Name] = r.Serial
	if f.tokens[r.Serial] != nil {
		return false
	}
	if len(f.tokens) >= maxAdmits {
		maps.DeleteFunc(f.tokens, func(_ string, t *trust.Record) bool { return f.second.CheckToken(t) != nil })
		for serial := range f.tokens { // its relay has it admitted again
			if len(f.tokens) < maxAdmits {
				break
			}
			delete(f.tokens, serial)
		}
		maps.DeleteFunc(f.names, func(_, serial string) bool { return f.tokens[serial] == nil && serial != r.Serial })
	}
	f.tokens[r.Serial] = &trust.Record{
		Serial: r.Serial, Name: r.Name, Kind: trust.Token, Rights: r.Rights, State: trust.Active, Issued: trust.Now().UTC().Truncate(time.Second), Expires: r.Expires, Key: hex.EncodeToString(hash[:]),
	}
	return true
}

// token returns the token of that name that was admitted here last, or an error if it is not valid.
func (f *first) token(name string) (*trust.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.tokens[f.names[name]]
	if r == nil {
		return nil, args.Errorf(args.CodeUnlisted, "no token %s was admitted at this node: call fbus.admit first", args.Shown(name))
	}
	return r, f.second.CheckToken(r)
}

// tokenExpired reports whether a token that was admitted here has expired between two times.
func (f *first) tokenExpired(from, to time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.tokens {
		if r.Expires.After(from) && !r.Expires.After(to) {
			return true
		}
	}
	return false
}

// records returns the tokens that were admitted here, as they are now.
func (f *first) records() []trust.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]trust.Record, 0, len(f.tokens))
	for _, r := range f.tokens {
		f.second.CheckToken(r)
		list = append(list, *r)
	}
	return list
}

// revoked forgets what was admitted: a token may be among what was revoked.
func (f *first) revoked(serials []string) {
	f.mu.Lock()
	f.admits = nil
	f.mu.Unlock()
	f.node.Revoked(serials)
}

// info describes the first node to a peer.
func (f *first) info(p *Peer) *trust.SecondInfo {
	t := f.second.Info()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.client == nil {
		t.Away = f.err.Error()
	}
	if !p.admin() {
		t.Identity = ""
	}
	return t
}

// serveTrust answers with the revocation list, signed now. With a number it waits for a list
// with a greater one.
func serveTrust(ctx context.Context, q *asked) error {
	var d bus.TrustQuery
	if err := q.document(&d); err != nil {
		return err
	}
	if d.List != "" {
		return args.BadInput("fbus.trust: this is the network's first node, which makes the list")
	}
	return q.await(ctx, &d, q.node.cfg.Authority.RevocationList)
}

// await answers with a revocation list, when it has another number than the query or the time is over.
func (q *asked) await(ctx context.Context, d *bus.TrustQuery, list func() (text []byte, number int64, err error)) error {
	end, over := time.After(time.Duration(min(max(d.Wait, 0), trustWait.Seconds())*float64(time.Second))), false
	for {
		more := q.node.changes.moreTickets()
		text, number, err := list()
		if err != nil {
			return err
		}
		if over || number != d.After {
			q.out.Write(text)
			return nil
		}
		select {
		case <-more:
		case <-end:
			over = true
		case <-ctx.Done():
			return nil
		}
	}
}
