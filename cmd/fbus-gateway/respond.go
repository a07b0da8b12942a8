package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
)

const (
	maxHeld  = 64 << 10    // output before the header is sent
	maxWhole = 16 << 20    // output that is held with ?status=header
	holdTime = time.Second // how long output is held before the header is sent
)

// statuses maps the statuses of fbus to those of HTTP; others are 500.
var statuses = map[int]int{
	64: http.StatusBadRequest, 65: http.StatusUnprocessableEntity, 69: http.StatusNotFound, 74: http.StatusBadGateway,
	75: http.StatusServiceUnavailable, 77: http.StatusForbidden, 124: http.StatusGatewayTimeout, 255: http.StatusBadGateway,
}

// httpStatus returns the status of HTTP for the end of a call.
func httpStatus(end bus.End) int {
	switch {
	case end.OK():
		return http.StatusOK
	case end.Source == args.FromBus:
		if status := statuses[end.Status]; status != 0 {
			return status
		}
	case end.Source == args.FromProgram && (end.Status == 64 || end.Status == 65 || end.Status == 75):
		return statuses[end.Status] // what a program says with them on the bus
	}
	return http.StatusInternalServerError
}

// statusWith returns the status of HTTP for the end of a call of a function that has its own for some exit statuses.
func statusWith(end bus.End, own map[int]int) int {
	if s := own[end.Status]; s != 0 && end.Source == args.FromProgram {
		return s
	}
	return httpStatus(end)
}

// endOf returns how a call ended, of what Call has returned.
func endOf(res bus.Result, err error) bus.End {
	if exit := (*args.ExitError)(nil); err == nil || errors.As(err, &exit) {
		return res.End
	}
	return args.AsError(err, args.CodeInternal).End()
}

// answer is the output of a call as the body of a response. Its header is held back until the call has
// ended, 64 KiB of output came, or a second has passed since some came: so short calls get an exact
// status.
type answer struct {
	w        http.ResponseWriter
	r        *http.Request
	kind     string        // Content-Type; empty: by the first output
	status   map[int]int   // statuses of HTTP for those of the program
	most     int           // bytes that are held
	call     func() string // the call's id; "" if it is not known
	whole    bool          // all of the output is held: ?status=header
	trailers bool          // the client takes trailers

	stderr tail // for the error

	mu    sync.Mutex // protects what follows, and the writing
	held  []byte
	timer *time.Timer
	begun bool  // the header was sent
	ended bool  // no more output is taken
	err   error // of writing
}

// newAnswer returns the answer to a request with the query q.
func newAnswer(w http.ResponseWriter, r *http.Request, q url.Values) *answer {
	a := &answer{w: w, r: r, most: maxHeld - 1}
	a.whole = q.Get("status") == "header" || !r.ProtoAtLeast(1, 1)
	if a.whole { // HTTP/1.0 cannot say that a body is not complete
		a.most = maxWhole
	}
	for _, v := range r.Header["Te"] {
		for word := range strings.SplitSeq(v, ",") {
			coding, weight, _ := strings.Cut(word, ";")
			_, q, _ := strings.Cut(weight, "=")
			rank, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
			a.trailers = a.trailers || strings.EqualFold(strings.TrimSpace(coding), "trailers") && (err != nil || rank > 0)
		}
	}
	return a
}

// errTooLong is that output does not fit what was asked for with ?status=header.
var errTooLong = args.Errorf(args.CodeOutputLimit, "the output exceeds %d bytes: ask without status=header, and over HTTP/1.1", maxWhole)

// Write takes output.
func (a *answer) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.ended: // a call that was given up may still have stderr
		return 0, errLeft
	case a.begun:
		return a.pass(p)
	case len(a.held)+len(p) <= a.most:
		if len(a.held) == 0 && !a.whole && len(p) > 0 {
			a.timer = time.AfterFunc(holdTime, a.release)
		}
		a.held = append(a.held, p...)
		return len(p), nil
	case a.whole:
		return 0, errTooLong
	}
	n := min(maxHeld-len(a.held), len(p)) // the type is that of the first 64 KiB, however they come
	a.held = append(a.held, p[:n]...)
	a.begin()
	if n < len(p) {
		a.pass(p[n:])
	}
	if a.err != nil {
		return 0, a.err
	}
	return len(p), nil
}

// errLeft is that a handler has returned, or is about to.
var errLeft = errors.New("the request has been served")

// leave lets nothing be written any more. A handler has to call it before it returns: then the server reuses
// the writer, and the timer would make it panic.
func (a *answer) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopTimer()
	a.ended = true
}

// hasBegun reports whether the header was sent.
func (a *answer) hasBegun() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.begun
}

// release sends what is held.
func (a *answer) release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.begun && !a.ended {
		a.begin()
	}
}

// begin sends the header, before the end of the call is known. a.mu is held.
func (a *answer) begin() {
	a.stopTimer()
	a.begun = true
	a.describe(a.held)
	h := a.w.Header()
	if id := a.call(); id != "" {
		h.Set("Fbus-Call", id)
	}
	if a.trailers {
		h.Set("Trailer", strings.Join(trailers, ", "))
	}
	a.w.WriteHeader(http.StatusOK)
	a.pass(a.held)
	a.held = nil
}

// pass writes and flushes. a.mu is held.
func (a *answer) pass(p []byte) (int, error) {
	if a.err != nil {
		return 0, a.err
	}
	n, err := a.w.Write(p)
	if err == nil {
		err = http.NewResponseController(a.w).Flush()
	}
	a.err = err
	return n, err
}

func (a *answer) stopTimer() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// describe sets the headers that say what the body is. It is never guessed to be something that a browser
// would run.
func (a *answer) describe(body []byte) {
	kind, text := a.kind, false
	if kind == "" {
		kind = "application/octet-stream"
		if text = isText(body[:min(len(body), maxHeld)]); text {
			kind = "text/plain; charset=utf-8"
		}
	}
	h := a.w.Header()
	h.Set("Content-Type", kind)
	if !text && !inline(kind) {
		h.Set("Content-Disposition", "attachment")
	}
}

// isText reports whether a body, or its beginning, is plain text.
func isText(p []byte) bool {
	for len(p) > 0 {
		r, n := utf8.DecodeRune(p)
		switch {
		case r == utf8.RuneError && n == 1:
			return len(p) < utf8.UTFMax && !utf8.FullRune(p) // cut off
		case r < ' ' && r != '\n' && r != '\r' && r != '\t' && r != '\f' && r != '\b' && r != 0x1b, r == 0x7f:
			return false
		}
		p = p[n:]
	}
	return true
}

// inline reports whether a browser may show a type in place: text, images and audio, but nothing that has
// scripts.
func inline(kind string) bool {
	kind, _, err := mime.ParseMediaType(kind)
	if err != nil {
		return false
	}
	switch kind {
	case "text/html", "text/xml", "text/javascript", "text/ecmascript", "text/css", "text/xsl":
		return false
	}
	top, sub, _ := strings.Cut(kind, "/")
	return (top == "text" || top == "image" || top == "audio") && !strings.HasSuffix(sub, "xml")
}

// broken reports whether an answer that has begun cannot be completed: it could not be written, or
// the call has failed and the client takes no trailers.
func (a *answer) broken(err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopTimer()
	a.ended = true
	return a.begun && (a.err != nil || err != nil && !a.trailers)
}

// hangUp ends a response of HTTP/1, or breaks it off, while a part of the request is still to come: what
// follows on the connection is not another request.
func (a *answer) hangUp(complete bool) {
	ctl := http.NewResponseController(a.w)
	ctl.Flush()
	nc, _, err := ctl.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer nc.Close()
	if complete && a.begun {
		end := []byte("0\r\n")
		if a.trailers {
			for _, name := range trailers {
				if v := a.w.Header().Get(name); v != "" {
					end = fmt.Appendf(end, "%s: %s\r\n", name, v)
				}
			}
		}
		nc.Write(append(end, "\r\n"...))
	}
	// Closed with input unread, the connection would be reset, and the response lost.
	if half, ok := nc.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	nc.SetReadDeadline(time.Now().Add(5 * time.Second))
	io.CopyN(io.Discard, nc, 64<<20)
}

// trailers are the headers that follow the body.
var trailers = []string{"Fbus-Status", "Fbus-Code", "Fbus-Worker"}

// end sends how the call ended, and what is still held.
func (a *answer) end(res bus.Result, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	end := endOf(res, err)
	h := a.w.Header()
	if a.begun {
		if a.trailers {
			setEnd(h, res, end)
		}
		return
	}
	setEnd(h, res, end)
	status := statusWith(end, a.status)
	if other := (*httpError)(nil); errors.As(err, &other) {
		status = other.status
	}
	if !end.OK() && (end.Source == args.FromBus || wantsProblem(a.r)) {
		fail(a.w, a.r, status, end, res.Call, a.stderr.text())
		return
	}
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	a.describe(a.held)
	h.Set("Content-Length", strconv.Itoa(len(a.held)))
	a.w.WriteHeader(status)
	a.w.Write(a.held)
}

// setEnd sets the headers, or the trailers, about the end of a call.
func setEnd(h http.Header, res bus.Result, end bus.End) {
	h.Set("Fbus-Status", strconv.Itoa(end.Status))
	code := end.Code
	if code == "" {
		code = "exit"
	}
	h.Set("Fbus-Code", args.OneLine(code))
	if res.Call != "" {
		h.Set("Fbus-Call", res.Call)
	}
	if res.Worker != "" {
		h.Set("Fbus-Worker", args.OneLine(res.Worker))
	}
}

// problem is an error as RFC 9457 has it.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Exit   int    `json:"exit_status"`
	Code   string `json:"code"`
	Call   string `json:"call,omitempty"`
	Stderr string `json:"stderr,omitempty"`
}

func wantsProblem(r *http.Request) bool { return accepts(r, "application/problem+json") }

// accepts reports whether a request names a media type that it accepts.
func accepts(r *http.Request, kind string) bool {
	for _, v := range r.Header["Accept"] {
		for word := range strings.SplitSeq(v, ",") {
			t, params, err := mime.ParseMediaType(word)
			if q, qerr := strconv.ParseFloat(params["q"], 64); err == nil && t == kind && (qerr != nil || q > 0) {
				return true
			}
		}
	}
	return false
}

// fail answers with an error, as text or as problem+json.
func fail(w http.ResponseWriter, r *http.Request, status int, end bus.End, call, stderr string) {
	h := w.Header()
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		if h.Get("Retry-After") == "" {
			h.Set("Retry-After", "1")
		}
	}
	message := end.Message
	if exit := (&args.ExitError{End: end}); end.Source != args.FromBus {
		message = exit.Error()
	}
	message = args.OneLine(message)
	var body []byte
	if wantsProblem(r) {
		h.Set("Content-Type", "application/problem+json")
		code := end.Code
		if code == "" {
			code = "exit"
		}
		body, _ = json.Marshal(problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: message, Exit: end.Status, Code: code, Call: call, Stderr: stderr})
		body = append(body, '\n')
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = fmt.Appendln(nil, message)
	}
	h.Del("Content-Disposition")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

// tail is the end of what a program has written to stderr.
type tail struct {
	mu   sync.Mutex
	last []byte
}

// maxTail bounds a tail.
const maxTail = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last = append(t.last, p...); len(t.last) > maxTail {
		t.last = t.last[len(t.last)-maxTail:]
	}
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(string(t.last), "\uFFFD")
}

// httpError is an error with another status of HTTP than that of its code.
type httpError struct {
	err    *args.Error
	status int
	after  time.Duration // when it may be tried again; 0: not said
}

func (e *httpError) Error() string { return e.err.Error() }
func (e *httpError) Unwrap() error { return e.err }
func (e *httpError) seconds() int  { return int(math.Ceil(e.after.Seconds())) }

// refuse answers with an error of fbus.
func (g *gateway) refuse(w http.ResponseWriter, r *http.Request, err error) {
	stalled := isStalled(err) // the server takes that for the end of the client
	left := r.Context().Err() != nil && !stalled
	if e := callerOf(r).ended(); e != nil { // err follows from it
		err = e
	} else if left { // nobody reads an answer
		panic(http.ErrAbortHandler)
	}
	end := args.AsError(err, args.CodeInternal).End()
	status := httpStatus(end)
	other := (*httpError)(nil)
	switch {
	case errors.As(err, &other):
		status = other.status
		if other.after > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(other.seconds()))
		}
	case errors.As(err, new(*http.MaxBytesError)):
		status = http.StatusRequestEntityTooLarge
	case isRefusal(err):
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", "Bearer")
		if c := callerOf(r); c != nil { // what the gateway remembers of the token is wrong
			g.link.tokens.ended(func(a *admitted) bool { return a.valid == c.valid })
		}
	}
	if r.ContentLength != 0 {
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(leftoverTime)) // the rest of the body
	}
	if stalled && r.ProtoMajor == 1 { // the answer does not wait for it
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Connection", "close")
	}
	w.Header().Set("Fbus-Status", strconv.Itoa(end.Status))
	w.Header().Set("Fbus-Code", args.OneLine(end.Code))
	fail(w, r, status, end, "", "")
}

// writeJSON answers with a document.
func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{}`)
	}
	body = append(args.SafeJSON(body), '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}
