package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
)

// Send is a table [send.NAME] of gateway.toml: a function NAME that sends its input as a webhook.
type Send struct {
	URL        string   `toml:"url"`         // where to, unless the call names another
	Allow      []string `toml:"allow"`       // hosts and addresses that calls may name
	SecretFile string   `toml:"secret-file"` // of Standard Webhooks, one a line: each signs
}

const (
	sendSlots  = 16
	sendTime   = 30 * time.Second // for a whole request
	maxSent    = 4 << 20          // bytes of a webhook's body
	maxReceipt = 64 << 10         // bytes of the answer that become the output
)

// Check returns all faults of a table.
func (c *Send) Check(name string) []Fault {
	_, faults := c.compile(name)
	return faults
}

// sender is a table that was checked.
type sender struct {
	url    *url.URL // nil: the call has to name one
	allow  allowList
	scheme *scheme // nil: webhooks are not signed
	client *http.Client
}

func (c *Send) compile(name string) (*sender, []Fault) {
	var faults []Fault
	fault := func(key string, err *args.Error) {
		faults = append(faults, Fault{key, err.Message, err.Hint})
	}
	s := &sender{}
	if !args.ValidName(name) || strings.HasPrefix(name, "fbus.") {
		fault("", args.Errorf(args.CodeUsage, "invalid function name %q", args.Shown(name)))
	}
	for _, text := range c.Allow {
		e, err := parseAllowed(text)
		if err != nil {
			fault("allow", err)
		}
		s.allow = append(s.allow, e)
	}
	if c.URL != "" {
		to, err := parseURL(c.URL)
		if err != nil {
			fault("url", err)
		} else if e, err := parseAllowed(to.Host); err != nil {
			fault("url", err)
		} else {
			s.url, s.allow = to, append(s.allow, e)
		}
	} else if len(c.Allow) == 0 {
		fault("", args.Errorf(args.CodeUsage, "url or allow is needed: where webhooks may go"))
	}
	if c.SecretFile != "" {
		s.scheme = &scheme{kind: "standard", file: c.SecretFile}
		if _, err := s.scheme.secrets(); err != nil {
			fault("secret-file", err)
		}
	}
	s.client = &http.Client{
		Transport: &http.Transport{ // no proxy: it would dial addresses that nobody checks
			DialContext:       s.dial,
			ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, faults
}

// NewWorker makes a worker that offers the functions of the tables [send.NAME]. It has no other right.
// If a table has a fault there is none.
func NewWorker(tables map[string]Send, o bus.Options) (*bus.Worker, []Fault) {
	o.Rights = []string{}
	w := &bus.Worker{Options: &o}
	var all []Fault
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		c := tables[name]
		s, faults := c.compile(name)
		for _, f := range faults {
			f.Message = "[send." + name + "] " + f.Message
			all = append(all, f)
		}
		about := "sends its input as a webhook"
		if s.url != nil {
			about += " to " + s.url.Host
		}
		o.Rights = append(o.Rights, "offer:"+name)
		w.Add(bus.Offer{Name: name, Slots: sendSlots, Description: about, Arguments: "a URL, or fields url and body; or none"}, s.handle)
	}
	if all != nil {
		return nil, all
	}
	return w, nil
}

// handle sends one webhook. Its status makes a job try again, or not: what may succeed later costs an
// attempt, what never will ends the job.
func (s *sender) handle(ctx context.Context, inv *bus.Invocation) bus.Result {
	to, body, err := s.read(inv)
	if err != nil {
		return bus.Fail(err)
	}
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	r, err := s.request(ctx, inv, to, body)
	if err != nil {
		return bus.Fail(err)
	}
	answer, err := s.client.Do(r)
	if err != nil {
		var refused *args.Error
		if errors.As(err, &refused) {
			return bus.Fail(refused)
		}
		// The error itself has the URL, which may have a secret in its query.
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return bus.Fail(args.Errorf(args.CodeInternal, "%s: %v", to.Host, err))
	}
	defer answer.Body.Close()
	receipt, _ := io.ReadAll(io.LimitReader(answer.Body, maxReceipt))
	var end bus.End
	switch status := answer.StatusCode; {
	case status/100 == 2:
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests, status/100 == 5:
		end = args.Errorf(args.CodeInternal, "%s answered %s", to.Host, answer.Status).End()
	default:
		end = args.BadInput("%s answered %s", to.Host, answer.Status).End()
	}
	return bus.Result{End: end, Output: receipt}
}

// read returns where a webhook goes, and its body.
func (s *sender) read(inv *bus.Invocation) (*url.URL, []byte, error) {
	var given struct {
		URL  string          `json:"url"`
		Body json.RawMessage `json:"body"`
	}
	if inv.Kind != args.KindRaw {
		v, err := args.Decode(inv.Kind, inv.Args)
		if err != nil {
			return nil, nil, err
		}
		doc, err := v.Encode(args.EncodeJSON)
		if err != nil {
			return nil, nil, err
		}
		var words []string
		if json.Unmarshal(doc, &words) == nil && len(words) == 1 {
			given.URL = words[0]
		} else if err := args.DecodeStrict(doc, &given); err != nil {
			return nil, nil, args.BadInput("the arguments must be one URL, or fields url and body")
		}
	}
	to := s.url
	if given.URL != "" {
		var e *args.Error
		if to, e = parseURL(given.URL); e != nil {
			e.Code = args.CodeBadInput
			return nil, nil, e
		}
	}
	if to == nil {
		return nil, nil, args.BadInput("no URL: neither the call nor the gateway's configuration has one")
	}
	if !s.allow.host(to) {
		return nil, nil, args.BadInput("webhooks to %s are not allowed", args.Shown(to.Host)).WithHint("allow in gateway.toml lists the hosts")
	}
	if given.Body != nil {
		if text := ""; json.Unmarshal(given.Body, &text) == nil {
			return to, []byte(text), nil
		}
		return to, given.Body, nil
	}
	body, err := io.ReadAll(io.LimitReader(inv.Input, maxSent+1))
	if err == nil && len(body) > maxSent {
		err = args.BadInput("the input exceeds the limit of %d bytes of a webhook", maxSent)
	}
	return to, body, err
}

// request makes the request, as Standard Webhooks has it.
func (s *sender) request(ctx context.Context, inv *bus.Invocation, to *url.URL, body []byte) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(body))
	if err != nil {
		return nil, args.BadInput("the URL cannot be used")
	}
	h := r.Header
	switch {
	case args.CheckJSON(body) == nil:
		h.Set("Content-Type", "application/json")
	case utf8.Valid(body):
		h.Set("Content-Type", "text/plain; charset=utf-8")
	default:
		h.Set("Content-Type", "application/octet-stream")
	}
	h.Set("User-Agent", "fbus-gateway")
	id, now := inv.Job, time.Now()
	if id == "" {
		id = inv.Call
	}
	h.Set("Webhook-Id", id)
	h.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
	if s.scheme != nil {
		secrets, err := s.scheme.secrets()
		if err != nil {
			return nil, args.Errorf(args.CodeInternal, "%v", err)
		}
		var signatures []string
		for _, secret := range secrets {
			signature, err := secret.standard.Sign(id, now, body)
			if err != nil {
				return nil, err
			}
			signatures = append(signatures, signature)
		}
		h.Set("Webhook-Signature", strings.Join(signatures, " "))
	}
	var origin struct {
		ID       string `json:"id"`
		Function string `json:"function"`
		Status   int    `json:"status"`
		Attempts int    `json:"attempts"`
	}
	if inv.Origin != "" && json.Unmarshal([]byte(inv.Origin), &origin) == nil {
		h.Set("Fbus-Job", origin.ID)
		h.Set("Fbus-Function", origin.Function)
		h.Set("Fbus-Status", strconv.Itoa(origin.Status))
		h.Set("Fbus-Attempts", strconv.Itoa(origin.Attempts))
	}
	if parent, state := args.SplitTrace(inv.Trace); parent != "" {
		h.Set("Traceparent", parent)
		if state != "" {
			h.Set("Tracestate", state)
		}
	}
	return r, nil
}

// dial connects to a host that is allowed. The address is checked when its name was resolved: what the
// name resolves to at another time makes no difference.
func (s *sender) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: 10 * time.Second, ControlContext: func(_ context.Context, _, resolved string, _ syscall.RawConn) error {
		return s.allow.address(host, resolved)
	}}
	return d.DialContext(ctx, network, address)
}
