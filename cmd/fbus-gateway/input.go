package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

const (
	maxInlineBody = 32 << 10        // a body that is read before the call is made
	maxArgs       = 1_011_712       // arguments of a call
	maxKeptFile   = 1 << 20         // a file of a form that other fields may follow
	wholeTime     = 1 * time.Minute // for a body that is read before the call is made
	defaultWait   = 30 * time.Second
)

// request makes the call, or the job, of a request. The body is nil if all of the input was read.
func (g *gateway) request(w http.ResponseWriter, r *http.Request, c *caller, name string, q url.Values, job bool) (*bus.Request, *body, error) {
	req := &bus.Request{Function: name, Caller: c.name, WaitSlot: bus.WaitFor(defaultWait), Trace: args.Trace(r.Header.Get("Traceparent"), r.Header.Get("Tracestate"))}
	var err error
	for _, name := range []string{"Fbus-Wait", "Fbus-Timeout", "Content-Type"} {
		if len(r.Header[name]) > 1 {
			return nil, nil, args.Errorf(args.CodeUsage, "the header %s may be there once", name)
		}
	}
	if v := r.Header.Get("Fbus-Wait"); v != "" {
		if req.WaitSlot, err = parseWait("Fbus-Wait", v); err != nil {
			return nil, nil, err
		}
	}
	if v := r.Header.Get("Fbus-Timeout"); v != "" {
		if req.Timeout, err = parseDuration("Fbus-Timeout", v); err != nil {
			return nil, nil, err
		}
		if req.Timeout <= 0 {
			return nil, nil, args.Errorf(args.CodeUsage, "Fbus-Timeout must be positive")
		}
	}
	by := time.Now().Add(wholeTime)
	if req.Timeout == 0 || job { // that of a job is for each attempt
		b, err := g.fill(r.Context(), w, r, req, q, by)
		return req, b, err
	}
	end := noted(r).began.Add(req.Timeout)
	if end.Before(by) {
		by = end
	}
	ctx, cancel := context.WithDeadlineCause(r.Context(), end, errDeadline)
	defer cancel()
	b, err := g.fill(ctx, w, r, req, q, by)
	if req.Timeout = time.Until(end); isStalled(err) && by == end || err == nil && req.Timeout <= 0 {
		err = &args.Error{Code: args.CodeDeadline, Message: args.DeadlineMessage, Err: err}
	}
	return req, b, err
}

// isStalled reports whether a body did not come in time.
func isStalled(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// fill adds the arguments and the input of a request to its call. A body that is read before the call is made has to
// come by then.
func (g *gateway) fill(ctx context.Context, w http.ResponseWriter, r *http.Request, req *bus.Request, q url.Values, by time.Time) (*body, error) {
	as := q.Get("as")
	if as != "" && as != "input" {
		return nil, args.Errorf(args.CodeUsage, "?as must be input")
	}
	words, hasWords := q["arg"]
	if hasWords {
		req.Args = args.List(words...)
	}
	if r.ContentLength != 0 && r.Method != http.MethodPost {
		return nil, args.Errorf(args.CodeUsage, "a call by %s has no body", r.Method)
	}
	if r.ContentLength == 0 {
		return nil, g.check(ctx, req)
	}
	if r.ContentLength > g.cfg.Limits.Body {
		return nil, unread(&http.MaxBytesError{Limit: g.cfg.Limits.Body})
	}
	r.Body = http.MaxBytesReader(w, r.Body, g.cfg.Limits.Body)
	kind, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if as == "input" {
		kind = ""
	}
	if charset := params["charset"]; kind == "application/json" && charset != "" && !strings.EqualFold(charset, "utf-8") {
		return nil, &httpError{args.Errorf(args.CodeUsage, "JSON is in UTF-8, not in %s", args.Shown(charset)), http.StatusUnsupportedMediaType, 0}
	}
	if hasWords && (kind == "application/json" || kind == "multipart/form-data") {
		return nil, args.Errorf(args.CodeUsage, "?arg and a body of %s are both arguments: ?as=input sends the body as input", kind)
	}
	whole := kind == "application/json" || kind != "multipart/form-data" && r.ContentLength > 0 && r.ContentLength <= maxInlineBody
	if whole {
		http.NewResponseController(w).SetReadDeadline(by)
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxArgs))
		if err != nil {
			return nil, unread(err)
		}
		if kind != "application/json" {
			req.Input = bytes.NewReader(text)
			return nil, g.check(ctx, req)
		}
		if text = args.WithoutBOM(text); len(text) > 0 {
			if err := args.CheckJSON(text); err != nil {
				return nil, args.Errorf(args.CodeUsage, "the body is not JSON: %v", err)
			}
			req.Args = args.JSON(text)
		}
		return nil, g.check(ctx, req)
	}
	b := &body{r: r.Body, poll: r.ProtoMajor == 1}
	if kind != "multipart/form-data" {
		http.NewResponseController(w).SetReadDeadline(time.Time{})
		req.Input = b
		return b, g.check(ctx, req)
	}
	if params["boundary"] == "" {
		return nil, args.Errorf(args.CodeUsage, "the form has no boundary")
	}
	http.NewResponseController(w).SetReadDeadline(by)
	err := form(req, b, multipart.NewReader(b, params["boundary"]))
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	if wrong := b.failure(); wrong != nil {
		err = wrong
	}
	if err != nil {
		return nil, err
	}
	if b.eof.Load() {
		b = nil
	}
	return b, g.check(ctx, req)
}

// form takes the fields of a form as arguments, and its file as input. A large file is read while the call
// runs, so no field may follow it.
func form(req *bus.Request, b *body, m *multipart.Reader) error {
	var fields []args.Field
	seen, size := map[string]bool{}, 0
	for {
		part, err := m.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return unread(err)
		}
		name := part.FormName()
		if part.FileName() == "" && part.Header.Get("Content-Type") != "application/octet-stream" {
			text, err := io.ReadAll(io.LimitReader(part, maxArgs+1))
			size += len(name) + len(text)
			switch {
			case err != nil:
				return unread(err)
			case size > maxArgs || len(seen) >= 1000:
				return args.Errorf(args.CodeBadInput, "the fields of the form exceed %d bytes, or there are more than 1000", maxArgs)
			case name == "" || seen[name]:
				return args.Errorf(args.CodeUsage, "the form has no name for a field, or %q twice", args.Shown(name))
			}
			seen[name] = true
			fields = append(fields, args.Field{Name: name, Value: string(text)})
			continue
		}
		if req.Input != nil {
			return args.Errorf(args.CodeUsage, "the form has more than one file: a call has one input")
		}
		kept, err := io.ReadAll(io.LimitReader(part, maxKeptFile))
		if err != nil {
			return unread(err)
		}
		if len(kept) == maxKeptFile {
			req.Input = io.MultiReader(bytes.NewReader(kept), &lastPart{part, m, b})
			break
		}
		req.Input = bytes.NewReader(kept)
	}
	if len(fields) > 0 {
		req.Args = args.Fields(fields...)
	}
	if b.ended(req.Input) {
		io.Copy(io.Discard, io.LimitReader(b, 4096)) // what may follow the last boundary
	}
	return nil
}

// lastPart is the file of a form that is read while the call runs.
type lastPart struct {
	part *multipart.Part
	form *multipart.Reader
	body *body
}

func (l *lastPart) Read(p []byte) (int, error) {
	n, err := l.part.Read(p)
	if err == io.EOF {
		if _, more := l.form.NextRawPart(); more != io.EOF {
			wrong := args.Errorf(args.CodeUsage, "a form with a large file must end with it: put the fields first")
			l.body.err.CompareAndSwap(nil, wrong)
			return n, wrong
		}
		io.Copy(io.Discard, io.LimitReader(l.body, 4096))
	}
	return n, err
}

// unread returns the error of a body that could not be read.
func unread(err error) *args.Error {
	if e, ok := errors.AsType[*args.Error](err); ok {
		return e
	}
	if tooLong, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &args.Error{Code: args.CodeBadInput, Message: "the body exceeds " + strconv.FormatInt(tooLong.Limit, 10) + " bytes", Err: tooLong}
	}
	if isStalled(err) {
		return &args.Error{Code: args.CodeUsage, Message: "the body did not come in time", Err: err}
	}
	return args.Errorf(args.CodeUsage, "the body cannot be read: %v", err)
}

// body is the body of a request as the input of a call that runs meanwhile. A nil body has been read.
type body struct {
	r    io.Reader
	poll bool // HTTP/1: the connection is the request's
	eof  atomic.Bool
	err  atomic.Pointer[args.Error] // of reading, other than the end
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	switch {
	case err == io.EOF:
		b.eof.Store(true)
	case err != nil:
		wrong := unread(err)
		b.err.CompareAndSwap(nil, wrong)
		err = wrong
	}
	return n, err
}

// ended reports whether an input needs nothing more of the body.
func (b *body) ended(input io.Reader) bool {
	_, kept := input.(*bytes.Reader)
	return input == nil || kept
}

// failure returns why the body could not be read.
func (b *body) failure() error {
	if b != nil {
		if err := b.err.Load(); err != nil {
			return err
		}
	}
	return nil
}

// remains reports whether a part of the body is still to come over the connection. The call did not want it.
func (b *body) remains() bool { return b != nil && b.poll && !b.eof.Load() }

// watch lets the body be read while the response is written, and returns a context that ends when the client has
// closed its connection. The server of net/http notices that only once all of the body was read, and not if the
// client has sent further requests.
func (b *body) watch(w http.ResponseWriter, r *http.Request) (context.Context, context.CancelFunc) {
	if r.ProtoMajor != 1 { // a stream says when it ends
		return r.Context(), func() {}
	}
	if b != nil && b.poll {
		http.NewResponseController(w).EnableFullDuplex()
	}
	ctx, cancel := context.WithCancel(r.Context())
	c := connOf(r)
	var timer *time.Timer
	timer = time.AfterFunc(time.Hour, func() {
		switch {
		case ctx.Err() != nil:
		case c.gone():
			cancel()
		default:
			timer.Reset(time.Second)
		}
	})
	timer.Reset(time.Second)
	return ctx, func() {
		timer.Stop()
		cancel()
	}
}

// parseDuration parses a duration as fbus has it: 300ms, 90s, 5m, 7d.
func parseDuration(what, text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		if what != "" {
			what += ": "
		}
		return 0, args.Errorf(args.CodeUsage, "%sinvalid duration %q: it must be as 300ms, 90s, 5m or 7d", what, args.Shown(text))
	}
	return d, nil
}

// parseWait parses how long to wait: a duration, or forever.
func parseWait(what, text string) (bus.Wait, error) {
	if text == "forever" {
		return bus.Forever, nil
	}
	d, err := parseDuration(what, text)
	return bus.WaitFor(d), err
}
