package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// keyTime is how long an Idempotency-Key is kept after its job has ended.
const keyTime = 24 * time.Hour

// maxWait bounds ?wait.
const maxWait = time.Hour

// posting is the options that fbus.post takes.
type posting struct {
	Kind  string `json:"kind"`
	Input bool   `json:"input,omitempty"` // the job has input in addition to arguments
	jobs.Options
}

// kindNames are the names of kinds of arguments in a posting.
var kindNames = [...]string{args.KindRaw: "raw", args.KindList: "list", args.KindMap: "map", args.KindJSON: "json"}

// post serves POST /jobs/NAME: a call that nobody waits for.
func (g *gateway) post(w http.ResponseWriter, r *http.Request, c *caller) {
	name := r.PathValue("name")
	if err := g.permit(c, r, name); err != nil {
		g.refuse(w, r, err)
		return
	}
	q := r.URL.Query()
	if prefersAsync(r) {
		q.Del("status") // a job has its status in what it is asked later
	}
	if err := known(q, "arg", "as", "then", "else", "finally", "delay", "backoff", "keep", "retries", "priority", "batch"); err != nil {
		g.refuse(w, r, err)
		return
	}
	done, err := g.limits.begin(c, false)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	defer done()
	p, err := g.jobOptions(r, c)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	req, body, err := g.request(w, r, c, name, q, true)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	p.Timeout = req.Timeout.Seconds()
	kind := req.Args.Kind()
	p.Kind, p.Input = kindNames[kind], req.Input != nil && kind != args.KindRaw
	doc, err := json.Marshal(p)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	words := []string{name, string(doc)}
	if kind != args.KindRaw {
		words = append(words, string(req.Args.Data()))
	}
	var out bytes.Buffer
	ctx, cancel := body.watch(w, r)
	defer cancel()
	_, err = g.link.call(ctx, &bus.Request{Function: "fbus.post", Caller: c.name, Args: args.List(words...), Input: req.Input, Stdout: &out, Trace: req.Trace})
	if wrong := body.failure(); wrong != nil {
		err = wrong
	}
	if ctx.Err() != nil && c.ended() == nil { // nobody reads an answer
		connOf(r).Close()
		panic(http.ErrAbortHandler)
	}
	if body.remains() { // what follows is not another request
		w.Header().Set("Connection", "close")
		defer func() {
			done()
			(&answer{w: w, r: r}).hangUp(true)
		}()
	}
	if e, ok := errors.AsType[*args.Error](err); ok && e.Code == args.CodeNodeLost {
		lost := args.Errorf(e.Code, "%s: the job may have been posted", e.Message)
		if other, ok := errors.AsType[*httpError](err); ok {
			err = &httpError{lost, other.status, other.after}
		} else {
			err = lost
		}
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	id := strings.TrimSpace(out.String())
	w.Header().Set("Location", "/jobs/"+id)
	if prefersAsync(r) {
		w.Header().Set("Preference-Applied", "respond-async")
	}
	writeJSON(w, http.StatusAccepted, map[string]string{"id": id, "function": name, "location": "/jobs/" + id})
}

// prefersAsync reports whether a call is to become a job (RFC 7240, section 4.1).
func prefersAsync(r *http.Request) bool {
	for _, v := range r.Header["Prefer"] {
		for word := range strings.SplitSeq(v, ",") {
			word, _, _ = strings.Cut(word, ";")
			if strings.EqualFold(strings.TrimSpace(word), "respond-async") {
				return true
			}
		}
	}
	return false
}

// jobOptions are what the query and the headers say about a job.
func (g *gateway) jobOptions(r *http.Request, c *caller) (p posting, err error) {
	q := r.URL.Query()
	for name, to := range map[string]*string{"then": &p.Then, "else": &p.Else, "finally": &p.Finally} {
		if *to = q.Get(name); *to == "" {
			continue
		}
		if !args.ValidName(*to) {
			return p, args.Errorf(args.CodeUsage, "?%s: invalid function name %q", name, args.Shown(*to))
		}
		if !g.mayCall(c, *to) {
			return p, denied(c, *to)
		}
	}
	for name, to := range map[string]*float64{"delay": &p.Delay, "backoff": &p.Backoff, "keep": &p.Keep} {
		if v := q.Get(name); v != "" {
			d, err := parseDuration("?"+name, v)
			if err != nil {
				return p, err
			}
			*to = d.Seconds()
		}
	}
	for name, to := range map[string]*int{"retries": &p.Retries, "priority": &p.Priority} {
		if v := q.Get(name); v != "" {
			if *to, err = strconv.Atoi(v); err != nil || name == "retries" && *to < 0 {
				return p, args.Errorf(args.CodeUsage, "?%s: invalid number %q", name, args.Shown(v))
			}
		}
	}
	p.Batch = q.Get("batch")
	if keys, ok := r.Header["Idempotency-Key"]; ok {
		key := keys[0]
		if len(key) > 1 && key[0] == '"' && key[len(key)-1] == '"' { // a string, as RFC 9651 has it
			key = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(key[1 : len(key)-1])
		}
		if len(keys) > 1 || key == "" {
			return p, args.Errorf(args.CodeUsage, "the header Idempotency-Key may be there once, and must not be empty")
		}
		p.Unique, p.UniqueFor = key, keyTime.Seconds()
	}
	return p, nil
}

// listJobs serves GET /jobs.
func (g *gateway) listJobs(w http.ResponseWriter, r *http.Request, c *caller) {
	q := r.URL.Query()
	query := bus.JobQuery{State: q.Get("state"), Function: q.Get("function"), Batch: q.Get("batch"), After: q.Get("after"), Limit: 100}
	if err := known(q, "state", "function", "batch", "after", "limit"); err != nil {
		g.refuse(w, r, err)
		return
	}
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 10_000 {
			g.refuse(w, r, args.Errorf(args.CodeUsage, "?limit must be from 1 to 10000"))
			return
		}
		query.Limit = n
	}
	query.Newest = query.After == ""
	query.Among = g.mayList(c)
	list, total, err := g.jobs(r.Context(), c.lister(), query)
	if err != nil {
		g.refuse(w, r, absent(err, "batch "+query.Batch))
		return
	}
	looked := map[string]bool{}
	for i := range list {
		if list[i], err = g.censored(r.Context(), c, list[i], looked); err != nil {
			g.refuse(w, r, err)
			return
		}
	}
	w.Header().Set("Fbus-Total", strconv.Itoa(total))
	writeJSON(w, http.StatusOK, list)
}

// lister is as whom a caller lists calls and jobs: those who may see what others do see what the gateway
// sees.
func (c *caller) lister() string {
	if c.monitors() {
		return ""
	}
	return c.name
}

// known refuses parameters that a path does not have, and empty ones: one that is mistyped could widen the answer. Only
// ?arg may be repeated, or empty.
func known(q url.Values, names ...string) error {
	for name, values := range q {
		switch {
		case !slices.Contains(names, name):
			return args.Errorf(args.CodeUsage, "unknown parameter %q", args.Shown(name))
		case len(values) > 1 && name != "arg":
			return args.Errorf(args.CodeUsage, "the parameter %s may be there once", name)
		case values[0] == "" && name != "arg":
			return args.Errorf(args.CodeUsage, "the parameter %s must not be empty", name)
		}
	}
	return nil
}

// job is a job, and its line from the node: that of a newer node has more fields.
type job struct {
	text json.RawMessage
	bus.JobInfo
}

func (j job) MarshalJSON() ([]byte, error) { return j.text, nil }

// jobs asks the node for jobs.
func (g *gateway) jobs(ctx context.Context, as string, q bus.JobQuery) ([]job, int, error) {
	doc, err := json.Marshal(q)
	if err != nil {
		return nil, 0, err
	}
	text, err := g.link.output(ctx, as, "fbus.jobs", args.JSON(doc))
	if err != nil {
		return nil, 0, err
	}
	list := []job{}
	var last bus.JobTotal
	for line := range bytes.Lines(text) {
		j := job{text: bytes.TrimSpace(line)}
		if err := json.Unmarshal(line, &j.JobInfo); err == nil && j.ID != "" {
			list = append(list, j)
		} else if err := json.Unmarshal(line, &last); err != nil {
			return nil, 0, args.Errorf(args.CodeInternal, "the node's answer cannot be read: %v", err)
		}
	}
	return list, last.Total, nil
}

// censored returns a job without the functions that the caller may not call: what it would post, and the jobs
// that it comes from and has posted. Looked has the jobs that were looked up before, and whether they are shown.
func (g *gateway) censored(ctx context.Context, c *caller, j job, looked map[string]bool) (job, error) {
	if g.mayCallAll(c) {
		return j, nil
	}
	shows := func(id string) (bool, error) {
		if show, ok := looked[id]; ok {
			return show, nil
		}
		list, _, err := g.jobs(ctx, c.lister(), bus.JobQuery{IDs: []string{id}})
		if e, ok := errors.AsType[*args.Error](err); err != nil && !(ok && (e.Code == args.CodeBadInput || e.Code == args.CodeDenied)) {
			return false, err
		}
		looked[id] = err == nil && len(list) == 1 && g.mayCall(c, list[0].Function)
		return looked[id], nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(j.text, &fields); err != nil {
		return j, args.Errorf(args.CodeInternal, "the node's answer cannot be read: %v", err)
	}
	for name, function := range map[string]string{"then": j.Then, "else": j.Else, "finally": j.Finally} {
		if function != "" && !g.mayCall(c, function) {
			delete(fields, name)
		}
	}
	if j.Parent != "" {
		if show, err := shows(j.Parent); err != nil {
			return j, err
		} else if !show {
			delete(fields, "parent")
		}
	}
	var children []string
	for _, id := range j.Children {
		if show, err := shows(id); err != nil {
			return j, err
		} else if show {
			children = append(children, id)
		}
	}
	delete(fields, "children")
	if len(children) > 0 {
		fields["children"], _ = json.Marshal(children)
	}
	text, err := json.Marshal(fields)
	j.text = text
	return j, err
}

// job returns the job in the path of a request, as the caller may see it.
func (g *gateway) job(r *http.Request, c *caller) (job, error) {
	id := r.PathValue("id")
	if !args.ValidName(id) {
		return job{}, errNoJob(id)
	}
	list, _, err := g.jobs(r.Context(), c.lister(), bus.JobQuery{IDs: []string{id}})
	switch {
	case err != nil:
		return job{}, absent(err, "job "+id)
	case len(list) != 1 || !g.mayCall(c, list[0].Function):
		return job{}, errNoJob(id)
	}
	return list[0], nil
}

// ownJob returns the job in the path of a request. One that the caller only sees is refused.
func (g *gateway) ownJob(r *http.Request, c *caller) (job, error) {
	j, err := g.job(r, c)
	if err != nil || c.lister() == c.name {
		return j, err
	}
	list, _, err := g.jobs(r.Context(), c.name, bus.JobQuery{IDs: []string{j.ID}})
	if e, ok := errors.AsType[*args.Error](err); ok && e.Code == args.CodeBadInput || err == nil && len(list) == 0 {
		err = args.Errorf(args.CodeDenied, "the job %s is not one of %s: the right to monitor shows it, and no more", j.ID, c.shown())
	}
	return j, err
}

func errNoJob(id string) error { return errAbsent("job " + args.Shown(id)) }

// errAbsent is that something does not exist, or is not the caller's.
func errAbsent(what string) error {
	return &httpError{args.Errorf(args.CodeBadInput, "there is no %s", what), http.StatusNotFound, 0}
}

// absent returns the error of the node for something that it does not have, as 404.
func absent(err error, what string) error {
	if e, ok := errors.AsType[*args.Error](err); ok && e.Code == args.CodeBadInput {
		return errAbsent(what)
	}
	return err
}

// showJob serves GET /jobs/ID.
func (g *gateway) showJob(w http.ResponseWriter, r *http.Request, c *caller) {
	q := r.URL.Query()
	j, err := g.job(r, c)
	if err == nil {
		err = known(q, "wait")
	}
	if v := q.Get("wait"); err == nil && v != "" {
		var d time.Duration
		if d, err = parseDuration("?wait", v); err == nil && !j.State.Finished() {
			if err = g.await(r.Context(), c, j.ID, min(d, maxWait)); err == nil {
				j, err = g.job(r, c)
			}
		}
	}
	if err == nil && j.Code == args.CodeDenied {
		err = g.holds(r, c)
	}
	if err == nil {
		j, err = g.censored(r.Context(), c, j, map[string]bool{})
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, j)
}

// await waits until a job has ended, or some time has passed.
func (g *gateway) await(ctx context.Context, c *caller, id string, d time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	doc, _ := json.Marshal(bus.JobWait{IDs: []string{id}})
	_, err := g.link.output(waiting, c.lister(), "fbus.wait", args.JSON(doc))
	if waiting.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}

// jobOutput serves GET /jobs/ID/output and /jobs/ID/stderr.
func (g *gateway) jobOutput(w http.ResponseWriter, r *http.Request, c *caller) {
	j, err := g.ownJob(r, c)
	q := r.URL.Query()
	if err == nil {
		err = known(q, "wait", "status")
	}
	stderr := strings.HasSuffix(r.URL.Path, "/stderr")
	if err == nil && stderr && !g.cfg.showsStderr(c) {
		err = args.Errorf(args.CodeDenied, "%s may not read stderr: stderr = true for it in gateway.toml lets it", c.shown())
	}
	options := `{"wait":false}`
	if v := q.Get("wait"); err == nil && v != "" {
		var d time.Duration
		d, err = parseDuration("?wait", v)
		options = fmt.Sprintf(`{"timeout":%g}`, max(min(d, maxWait).Seconds(), 0.001))
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	a := newAnswer(w, r, q)
	defer a.leave()
	req := &bus.Request{Function: "fbus.result", Caller: c.name, Args: args.List(j.ID, options)}
	a.call = func() string { return "" }
	if stderr {
		a.kind = "text/plain; charset=utf-8"
		req.Stderr = a
	} else {
		a.kind, a.status = g.outputType(j.Function), g.cfg.Functions[j.Function].Status
		req.Stdout = a
	}
	res, err := g.link.call(r.Context(), req)
	if e, ok := errors.AsType[*args.Error](err); ok && e.Code == args.CodeDenied && !a.hasBegun() {
		err = cmp.Or(g.holds(r, c), err)
	}
	res.Call, res.Worker = j.Call, j.Worker
	if end := endOf(res, err); stderr && (end.Source != args.FromBus || j.State.Finished()) {
		res, err = bus.Result{Worker: j.Worker}, nil // it was asked what the job has said, not how it has ended
	}
	broken := a.broken(err)
	switch {
	case !a.begun && err != nil && (c.ended() != nil || c.name != "" && isRefusal(err)): // the node may say it first
		g.refuse(w, r, err)
		return
	case r.Context().Err() != nil || broken:
		panic(http.ErrAbortHandler)
	}
	a.end(res, err)
}

// cancelJob serves DELETE /jobs/ID.
func (g *gateway) cancelJob(w http.ResponseWriter, r *http.Request, c *caller) {
	j, err := g.ownJob(r, c)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	text, err := g.link.output(r.Context(), c.name, "fbus.cancel", args.List(j.ID))
	if err != nil {
		g.refuse(w, r, conflict(err))
		return
	}
	writeJSON(w, http.StatusOK, json.RawMessage(bytes.TrimSpace(text)))
}

// retryJob serves POST /jobs/ID/retry.
func (g *gateway) retryJob(w http.ResponseWriter, r *http.Request, c *caller) {
	j, err := g.ownJob(r, c)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	doc, _ := json.Marshal(bus.JobQuery{IDs: []string{j.ID}})
	if _, err := g.link.output(r.Context(), c.name, "fbus.retry", args.JSON(doc)); err != nil {
		g.refuse(w, r, conflict(err))
		return
	}
	w.Header().Set("Location", "/jobs/"+j.ID)
	writeJSON(w, http.StatusAccepted, map[string]string{"id": j.ID, "function": j.Function, "location": "/jobs/" + j.ID})
}

// conflict returns the error of the node for something that is not in a state for what is asked, as 409.
func conflict(err error) error {
	if e, ok := errors.AsType[*args.Error](err); ok && e.Code == args.CodeBadInput {
		return &httpError{e, http.StatusConflict, 0}
	}
	return err
}

// listCalls serves GET /calls.
func (g *gateway) listCalls(w http.ResponseWriter, r *http.Request, c *caller) {
	text, err := g.link.output(r.Context(), c.lister(), "fbus.calls", bus.Args{})
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	list := []json.RawMessage{}
	for line := range bytes.Lines(text) {
		var info bus.CallInfo
		if json.Unmarshal(line, &info) == nil && !strings.HasPrefix(info.Function, "fbus.") && g.mayCall(c, info.Function) {
			list = append(list, bytes.TrimSpace(line))
		}
	}
	writeJSON(w, http.StatusOK, list)
}

// cancelCall serves DELETE /calls/ID.
func (g *gateway) cancelCall(w http.ResponseWriter, r *http.Request, c *caller) {
	id := r.PathValue("id")
	text, err := g.link.output(r.Context(), c.name, "fbus.cancel", args.List(id))
	if err != nil {
		g.refuse(w, r, absent(err, "call "+args.Shown(id)))
		return
	}
	writeJSON(w, http.StatusOK, json.RawMessage(bytes.TrimSpace(text)))
}
