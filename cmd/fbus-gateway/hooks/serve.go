package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
)

const (
	// maxBody is as large as GitHub's largest delivery.
	maxBody = 25 << 20
	// maxBodies bounds the bodies that are read at once: their senders are not verified yet.
	maxBodies = 64 << 20
	// bodyTime bounds the time that a body may take.
	bodyTime = 30 * time.Second
	// slotTime is how long a call waits for a slot, as other calls over HTTP do.
	slotTime = 30 * time.Second
	// maxAnswer bounds the output of a call.
	maxAnswer = 1 << 20
	// keyTime is how long a delivery is not run again.
	keyTime = 24 * time.Hour
	// maxID bounds a delivery's id, in bytes.
	maxID = 128
)

// Handler serves /hook/NAME.
type Handler struct {
	// Call makes calls, as [bus.Client.Call] does. The caller of each is "hook:NAME".
	Call func(ctx context.Context, req *bus.Request) (bus.Result, error)
	// Status returns the HTTP status for the end of a call of a function.
	Status func(function string, end bus.End) int
	// Note takes messages about faults.
	Note func(format string, a ...any)

	hooks  map[string]*hook
	bodies atomic.Int64 // bytes in memory
	room   int64        // that they may take
	seen   seen
}

// New makes a handler of the tables [hooks.NAME]. If one has a fault there is none.
func New(tables map[string]Config) (*Handler, []Fault) {
	h := &Handler{hooks: map[string]*hook{}, room: maxBodies}
	var all []Fault
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		c := tables[name]
		one, faults := c.compile(name)
		h.hooks[name] = one
		for _, f := range faults {
			f.Message = "[hooks." + name + "] " + f.Message
			all = append(all, f)
		}
	}
	if all != nil {
		return nil, all
	}
	return h, nil
}

// ServeHTTP takes a delivery. The name of the hook is the last element of the path.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/hook/")
	hook := h.hooks[name]
	switch {
	case hook == nil:
		fail(w, http.StatusNotFound, "no such hook")
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		fail(w, http.StatusMethodNotAllowed, "a hook takes POST only")
		return
	}
	raw, status, err := h.read(w, r)
	defer h.bodies.Add(-int64(len(raw)))
	if err != nil {
		fail(w, status, err.Error())
		return
	}
	d := &delivery{header: r.Header, query: r.URL.Query(), raw: raw}
	secrets, e := hook.scheme.secrets()
	if e != nil {
		h.Note("hook %s: %v", name, e)
		fail(w, http.StatusServiceUnavailable, "the hook's secret cannot be read")
		return
	}
	digest, err := hook.scheme.verify(d, secrets)
	if err != nil {
		fail(w, http.StatusUnauthorized, err.Error())
		return
	}
	if hook.scheme.kind == "github" && d.header.Get("X-GitHub-Event") == "ping" {
		answer(w, http.StatusOK, map[string]string{"status": "pong"})
		return
	}
	if err := d.parse(hook.scheme.kind == "github"); err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	key, status, err := hook.key(d, digest)
	if err != nil {
		fail(w, status, err.Error())
		return
	}
	for _, c := range hook.when {
		if !c.holds(d) {
			answer(w, http.StatusOK, map[string]string{"status": "ignored"})
			return
		}
	}
	arguments, err := hook.arguments(d)
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	// The arguments may have little of the content, so that the node cannot tell.
	if hook.scheme.id != nil && !h.seen.add(name+" id "+key, digestOf(raw)) {
		fail(w, http.StatusConflict, "this delivery's id came before, with other content")
		return
	}
	// The id of many a sender is not signed: with another one the same delivery could be sent again.
	if digest != "" && hook.scheme.kind != "standard" && !h.seen.add(name+" "+digest, key) {
		fail(w, http.StatusConflict, "this delivery came before, with another id")
		return
	}
	if hook.call {
		h.call(w, r, hook, key, arguments)
	} else {
		h.post(w, r, hook, key, arguments)
	}
}

// read reads the body. It is in memory until it is verified, so all bodies together are bounded.
func (h *Handler) read(w http.ResponseWriter, r *http.Request) (body []byte, status int, err error) {
	if r.ContentLength > maxBody {
		return nil, http.StatusRequestEntityTooLarge, args.Errorf(args.CodeBadInput, "body of %d bytes exceeds the limit of %d", r.ContentLength, maxBody)
	}
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(bodyTime)) // not every server has it
	var buf bytes.Buffer
	chunk := make([]byte, 32<<10)
	in := http.MaxBytesReader(w, r.Body, maxBody)
	for {
		n, err := in.Read(chunk)
		buf.Write(chunk[:n])
		if h.bodies.Add(int64(n)) > h.room {
			w.Header().Set("Retry-After", "5")
			return buf.Bytes(), http.StatusServiceUnavailable, errors.New("too many large deliveries at once")
		}
		var large *http.MaxBytesError
		switch {
		case err == io.EOF:
			control.SetReadDeadline(time.Time{}) // it is for what is left of the body, too
			return buf.Bytes(), 0, nil
		case errors.As(err, &large):
			return buf.Bytes(), http.StatusRequestEntityTooLarge, args.Errorf(args.CodeBadInput, "body exceeds the limit of %d bytes", maxBody)
		case err != nil:
			return buf.Bytes(), http.StatusBadRequest, errors.New("the body did not come whole")
		}
	}
}

// key returns what identifies a delivery for a day; empty: nothing does. The status is that of an error.
func (hk *hook) key(d *delivery, digest string) (key string, status int, err error) {
	if hk.scheme.id == nil {
		return digest, 0, nil
	}
	id, err := hk.scheme.id.fill(d)
	switch {
	case err != nil:
		return "", http.StatusUnprocessableEntity, err
	case id == "" || len(id) > maxID || strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c > '~' }):
		return "", http.StatusBadRequest, args.Errorf(args.CodeBadInput, "a delivery's id has 1 to %d printable ASCII characters without spaces", maxID)
	}
	return id, 0, nil
}

// arguments returns what the function gets.
func (hk *hook) arguments(d *delivery) (bus.Args, error) {
	if hk.args == nil {
		return d.envelope(&hk.scheme)
	}
	words := make([]string, len(hk.args))
	for i, t := range hk.args {
		var err error
		if words[i], err = t.fill(d); err != nil {
			return bus.Args{}, err
		}
	}
	if len(words) == 0 {
		return bus.Args{}, nil
	}
	return bus.List(words...), nil
}

// post makes the delivery a job, once.
func (h *Handler) post(w http.ResponseWriter, r *http.Request, hook *hook, key string, a bus.Args) {
	options := map[string]any{}
	words := []string{hook.function, ""}
	switch a.Kind() {
	case args.KindList:
		options["kind"], words = "list", append(words, string(a.Data()))
	case args.KindJSON:
		options["kind"], words = "json", append(words, string(a.Data()))
	}
	if key != "" {
		options["unique"], options["unique_for"] = key, keyTime.Seconds()
	}
	text, _ := json.Marshal(options)
	words[1] = string(text)
	var id bytes.Buffer
	_, err := h.Call(r.Context(), &bus.Request{Function: "fbus.post", Args: bus.List(words...), Stdout: &id, Caller: "hook:" + hook.name, Trace: trace(r)})
	if e := new(bus.Error); errors.As(err, &e) && strings.HasPrefix(e.Message, "unique: ") {
		fail(w, http.StatusConflict, "this delivery's id came before, with other content")
		return
	}
	if err != nil {
		h.failed(w, hook, err)
		return
	}
	answer(w, http.StatusAccepted, map[string]string{"status": "accepted", "job": strings.TrimSpace(id.String())})
}

// call runs the delivery and answers with the function's output. While it runs, and once it has
// succeeded, it is not run again.
func (h *Handler) call(w http.ResponseWriter, r *http.Request, hook *hook, key string, a bus.Args) {
	claim := hook.name + " called " + key
	if key != "" && !h.seen.add(claim, "") {
		fail(w, http.StatusConflict, "this delivery came before")
		return
	}
	out := &limited{limit: maxAnswer}
	_, err := h.Call(r.Context(), &bus.Request{
		Function: hook.function, Args: a, Stdout: out, Caller: "hook:" + hook.name,
		WaitSlot: bus.WaitFor(slotTime), Trace: trace(r),
	})
	if err != nil && key != "" {
		h.seen.forget(claim) // the sender may try again
	}
	if err != nil {
		h.failed(w, hook, err)
		return
	}
	switch body := out.Bytes(); {
	case len(body) == 0:
		w.WriteHeader(http.StatusNoContent)
		return
	case args.CheckJSON(body) == nil:
		w.Header().Set("Content-Type", "application/json")
	case utf8.Valid(body):
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Write(out.Bytes())
}

// limited is output of a bounded length.
type limited struct {
	bytes.Buffer
	limit int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > l.limit {
		return 0, args.Errorf(args.CodeOutputLimit, "output exceeds the limit of %d bytes of an answer to a webhook", l.limit)
	}
	return l.Buffer.Write(p)
}

// failed answers with the end of a call that did not succeed. What a program has written to stderr, and why
// it failed, is not for the sender.
func (h *Handler) failed(w http.ResponseWriter, hook *hook, err error) {
	var end bus.End
	text := "the function has failed"
	if exit, ok := errors.AsType[*bus.ExitError](err); ok {
		end = exit.End
	} else {
		end = args.AsError(err, args.CodeInternal).End()
		text = end.Code
	}
	status := h.Status(hook.function, end)
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	h.Note("hook %s: %v", hook.name, err)
	fail(w, status, text)
}

func trace(r *http.Request) string {
	return args.Trace(r.Header.Get("Traceparent"), strings.Join(r.Header.Values("Tracestate"), ","))
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, status int, text string) {
	http.Error(w, "fbus: "+args.OneLine(text), status)
}
