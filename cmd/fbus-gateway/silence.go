package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// A node whose process is stopped keeps its connections, and answers nothing. What it was asked is given up then, and
// so is a call that would wait longer for a slot than it may. A call that has begun to run, or may wait forever, goes on.
const (
	// quietTime is how long a call may take before the node is asked whether it runs.
	quietTime = 250 * time.Millisecond
	// lateTime is how long the node may take to show that. The gateway looks every lateTick, so that a time in which
	// it did not run itself does not count.
	lateTime = 2 * time.Second
	lateTick = lateTime / 8
	// slotGrace is how much longer than Fbus-Wait the node may take to end a call that has got no slot.
	slotGrace = 100 * time.Millisecond
	// longWait bounds what is added to a time.
	longWait = 365 * 24 * time.Hour
)

// errSilent is that the node does not answer, so that nothing was asked of it.
var errSilent = &httpError{args.Errorf(args.CodeNoNode, "the node does not answer"), http.StatusServiceUnavailable, 0}

// unanswered returns the error of a call that the node does not answer, but may have got, or still gets.
func unanswered(function string) error {
	message := errSilent.Error()
	switch {
	case !isOwn(function):
		message += ": the call may have run"
	case function == "fbus.post": // what serves /jobs adds it
	case function == "fbus.cancel" || function == "fbus.retry":
		message += ": it may do later what was asked"
	default: // it changes nothing
		return errSilent
	}
	return &httpError{args.Errorf(args.CodeNodeLost, "%s", message), errSilent.status, 0}
}

// isOwn reports whether a function is one of the node's own.
func isOwn(function string) bool { return strings.HasPrefix(function, "fbus.") }

// probe is a call of the node that shows whether it answers.
type probe struct {
	client   *bus.Client
	sent     time.Time
	late     chan struct{} // closed when the node is silent
	answered chan struct{} // closed when it has answered, or the connection is lost
	info     bus.NodeInfo  // valid once it has answered, and so is err
	err      error
}

// probe returns the probe that the node has not answered yet, or a new one.
func (l *link) probe(c *bus.Client) *probe {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked == nil || l.asked.client != c {
		l.asked = &probe{client: c, sent: time.Now(), late: make(chan struct{}), answered: make(chan struct{})}
		go l.awaitAnswer(l.asked) // ends with the answer, or with the connection
	}
	return l.asked
}

// awaitAnswer waits for the answer to a probe.
func (l *link) awaitAnswer(p *probe) {
	called := make(chan struct{})
	go func() { // ends with the answer, or with the connection
		defer close(called)
		var text []byte
		if text, p.err = output(context.Background(), p.client, "", "fbus.nodes", bus.Args{}); p.err == nil {
			p.err = json.Unmarshal(text, &p.info)
		}
	}()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.asked == p {
			l.asked = nil
		}
		close(p.answered)
	}()
	tick := time.NewTicker(lateTick)
	defer tick.Stop()
	heard := l.heard.Load()
	for quiet := time.Duration(0); quiet < lateTime; quiet += lateTick {
		select {
		case <-called:
			return
		case <-tick.C:
		}
		if now := l.heard.Load(); now != heard { // it runs, but has much to do
			heard, quiet = now, 0
		}
	}
	l.note("the node does not answer")
	close(p.late)
	<-called
	if p.err == nil {
		l.note("the node answers again")
	}
}

// silent returns the probe that the node should have answered by now; nil: there is none.
func (l *link) silent() *probe {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if p := l.asked; p != nil && p.client == l.client {
		select {
		case <-p.late:
			return p
		default:
		}
	}
	return nil
}

// ask asks the node about itself. All that it was asked before has reached it once it has answered. The error is
// errSilent if it does not answer.
func (l *link) ask(ctx context.Context, c *bus.Client) (*bus.NodeInfo, error) {
	for began := time.Now(); ; {
		p := l.probe(c)
		select {
		case <-p.answered:
			if p.err != nil || !p.sent.Before(began) {
				return &p.info, p.err
			}
		case <-p.late:
			return nil, errSilent
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// call makes a call for somebody.
func (l *link) call(ctx context.Context, req *bus.Request) (bus.Result, error) {
	r := *req
	if l.silent() != nil {
		if err := l.hold(ctx, &r); err != nil {
			return bus.Result{}, err
		}
	}
	c, err := l.connected()
	if err != nil {
		return bus.Result{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &attended{link: l, client: c, own: isOwn(r.Function)}
	defer a.begin(ctx, &r, func() { cancel(unanswered(r.Function)) })()
	res, err := c.Call(ctx, &r)
	if err == nil {
		l.heard.Add(1)
	}
	return res, err
}

// hold waits until the node answers again, for as long as a call may wait for a slot. The call is made after that.
func (l *link) hold(ctx context.Context, r *bus.Request) error {
	if isOwn(r.Function) {
		return errSilent
	}
	began := time.Now()
	if wait := time.Duration(r.WaitSlot); wait != 0 && r.WaitSlot != bus.Forever {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, wait, errSilent)
		defer cancel()
		defer func() { r.WaitSlot = bus.WaitFor(wait - time.Since(began)) }()
	}
	if timeout := r.Timeout; timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errDeadline)
		defer cancel()
		defer func() { r.Timeout = max(timeout-time.Since(began), 1) }()
	}
	for p := l.silent(); p != nil; p = l.silent() {
		select {
		case <-p.answered:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// errDeadline is that the time of a request was up before its call was made.
var errDeadline = args.Errorf(args.CodeDeadline, args.DeadlineMessage)

// attended is a call that is given up if the node is silent.
type attended struct {
	link   *link
	client *bus.Client
	own    bool        // of one of the node's own functions
	until  time.Time   // when the node should have ended it if it has no slot
	runs   atomic.Bool // something has come of it, so that it has one
}

// begin looks after a call that is about to be made, until stop is called.
func (a *attended) begin(ctx context.Context, r *bus.Request, giveUp func()) (stop func() bool) {
	if r.Stdout != nil {
		r.Stdout = signOut{a, r.Stdout}
	}
	if r.Stderr != nil {
		r.Stderr = signOut{a, r.Stderr}
	}
	first := quietTime
	if !a.own {
		if r.WaitSlot == 0 || r.WaitSlot == bus.Forever {
			return func() bool { return true }
		}
		if _, whole := r.Input.(interface{ Len() int }); r.Input != nil && !whole { // it is read once the call has a slot
			r.Input = signIn{a, r.Input}
		}
		if report := r.Progress; report != nil {
			r.Progress = func(p bus.Progress) {
				a.hears()
				report(p)
			}
		}
		wait := min(max(0, time.Duration(r.WaitSlot)), longWait)
		a.until = time.Now().Add(wait + slotGrace)
		first = max(wait-lateTime, min(wait, quietTime)) // so that it is known by then
	}
	var timer *time.Timer
	timer = time.AfterFunc(time.Hour, func() {
		if again := a.look(ctx, giveUp); again > 0 && ctx.Err() == nil {
			timer.Reset(again)
		}
	})
	timer.Reset(first)
	return timer.Stop
}

// look gives the call up if the node is silent. It returns when to look again, 0 for never.
func (a *attended) look(ctx context.Context, giveUp func()) time.Duration {
	if left := time.Until(a.until); left > 0 && !a.runs.Load() {
		a.link.probe(a.client)
		return left
	}
	if !a.own && a.runs.Load() {
		return 0
	}
	_, err := a.link.ask(ctx, a.client)
	switch {
	case a.own && !errors.Is(err, errSilent):
		return lateTime
	case a.own || errors.Is(err, errSilent) && !a.runs.Load():
		giveUp()
	}
	return 0
}

// hears notes that something has come of the call.
func (a *attended) hears() {
	a.runs.Store(true)
	a.link.heard.Add(1)
}

// signOut is output of a call, which shows that it runs.
type signOut struct {
	call *attended
	io.Writer
}

func (o signOut) Write(p []byte) (int, error) {
	o.call.hears()
	return o.Writer.Write(p)
}

// signIn is input that the call takes, which shows that it runs.
type signIn struct {
	call *attended
	io.Reader
}

func (i signIn) Read(p []byte) (int, error) {
	i.call.hears()
	return i.Reader.Read(p)
}
