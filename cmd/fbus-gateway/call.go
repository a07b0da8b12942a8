package main

import (
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// call serves /call/NAME: the body of the request is the input or the arguments of a function, and the
// body of the response is its output.
func (g *gateway) call(w http.ResponseWriter, r *http.Request, c *caller) {
	name := r.PathValue("name")
	err := g.permit(c, r, name)
	switch {
	case err == error(errMethod): // errors.Is compares only codes
		w.Header().Set("Allow", "POST")
		fail(w, r, http.StatusMethodNotAllowed, errMethod.End(), "", "")
		return
	case err != nil:
		g.refuse(w, r, err)
		return
	case prefersAsync(r) && r.Method == http.MethodPost:
		g.post(w, r, c)
		return
	}
	q := r.URL.Query()
	err = callQuery(q)
	if _, ok := r.Header["Idempotency-Key"]; ok && err == nil {
		err = args.Errorf(args.CodeUsage, "Idempotency-Key is for jobs: POST /jobs/%s, or Prefer: respond-async", name)
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	streams := accepts(r, "text/event-stream")
	done, err := g.limits.begin(c, streams)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	defer done()
	req, body, err := g.request(w, r, c, name, q, false)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	if streams {
		g.callEvents(w, r, c, req, body, done)
		return
	}
	a := newAnswer(w, r, q)
	defer a.leave()
	a.kind, a.status = g.outputType(name), g.cfg.Functions[name].Status
	var id atomic.Value
	req.Opened = func(call string) { id.Store(call) }
	a.call = func() string { s, _ := id.Load().(string); return s }
	req.Stdout = a
	if g.cfg.showsStderr(c) && wantsProblem(r) {
		req.Stderr = &a.stderr
	}
	ctx, cancel := body.watch(w, r)
	defer cancel()
	began := time.Now()
	res, err := g.link.call(ctx, req)
	noted(r).call, noted(r).took = res.Call, time.Since(began)
	if wrong := body.failure(); wrong != nil {
		err = wrong
	}
	unread := body.remains()
	ended := c.ended()
	if ended != nil && err != nil {
		err = ended
	}
	switch {
	case ctx.Err() != nil && ended == nil: // nobody reads an answer
		if unread {
			connOf(r).Close() // the server would wait for the rest of the body
		}
		panic(http.ErrAbortHandler)
	case a.broken(err): // every client has to see that the answer is not complete
		if unread {
			done() // the rest of the body is not a part of the call
			a.hangUp(false)
		}
		panic(http.ErrAbortHandler)
	case unread:
		w.Header().Set("Connection", "close")
	}
	if (isRefusal(err) || body.failure() != nil) && !a.begun {
		g.refuse(w, r, err)
	} else {
		a.end(res, err)
	}
	if unread {
		done()
		a.hangUp(true)
	}
}

// callEvents answers a call with a stream of events.
func (g *gateway) callEvents(w http.ResponseWriter, r *http.Request, c *caller, req *bus.Request, body *body, done func()) {
	if _, err := g.link.connected(); err != nil {
		g.refuse(w, r, err)
		return
	}
	ctx, cancel := body.watch(w, r)
	defer cancel()
	if body.remains() {
		w.Header().Set("Connection", "close")
	}
	e := &events{w: w}
	end := e.begin()
	stdout, stderr := &stream{to: e, name: "stdout"}, &stream{to: e, name: "stderr"}
	req.Stdout = stdout
	if g.cfg.showsStderr(c) {
		req.Stderr = stderr
	}
	progress := make(chan bus.Progress, 1)
	stop, sent := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(sent)
		for {
			select {
			case p := <-progress:
				e.document("progress", p)
			case <-stop:
				return
			}
		}
	}()
	req.Progress = func(p bus.Progress) { // it must not wait: the last report counts
		select {
		case <-progress:
		default:
		}
		progress <- p
	}
	res, err := g.link.call(ctx, req)
	noted(r).call = res.Call
	close(stop)
	<-sent
	if wrong := body.failure(); wrong != nil {
		err = wrong
	}
	ended := c.ended()
	if ended != nil && err != nil {
		err = ended
	}
	complete := ctx.Err() == nil || ended != nil
	if complete {
		stdout.close()
		stderr.close()
		e.end(res, err)
	}
	end()
	if body.remains() {
		done()
		(&answer{w: w, begun: true}).hangUp(complete)
	}
	if !complete {
		panic(http.ErrAbortHandler)
	}
}

// callQuery checks the parameters of a call.
func callQuery(q url.Values) error {
	if v, ok := q["status"]; ok && (len(v) != 1 || v[0] != "header") {
		return args.Errorf(args.CodeUsage, "?status must be header")
	}
	return known(q, "arg", "as", "status")
}

var errMethod = args.Errorf(args.CodeUsage, "a function is called with POST")

// permit checks whether a caller may call a function, and in this way. Denied and absent look alike.
func (g *gateway) permit(c *caller, r *http.Request, name string) error {
	if !args.ValidName(name) {
		return args.Errorf(args.CodeUsage, "invalid function name %q", args.Shown(name))
	}
	if !g.mayCall(c, name) {
		return denied(c, name)
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		if g.link.function(name) == nil {
			return args.Errorf(args.CodeNoFunction, "%s: no such function", name)
		}
		if !g.readOnly(name) {
			return errMethod
		}
	}
	return nil
}

// readOnly reports whether a function can be called by GET.
func (g *gateway) readOnly(name string) bool {
	info := g.link.function(name)
	if info == nil {
		return false
	}
	_, ok := info.Attributes["read-only"]
	return ok
}

func denied(c *caller, name string) error {
	return args.Errorf(args.CodeDenied, "%s may not call %s", c.shown(), name)
}

// outputType returns the media type of a function's output, "" if it gives none.
func (g *gateway) outputType(name string) string {
	if info := g.link.function(name); info != nil {
		return info.Attributes["output-type"]
	}
	return ""
}
