package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/cmd/fbus-gateway/hooks"
	"fbus/cmd/fbus-gateway/metrics"
	"fbus/cmd/fbus-gateway/openapi"
)

// mount adds the metrics, the description of what the gateway serves, and the webhooks that come in.
func (g *gateway) mount() {
	g.metrics = &metrics.Metrics{Call: g.link.call, Globs: g.cfg.MetricsFunctions, Tokens: g.link.expiries.byName, Note: g.note}
	g.handle("GET /metrics", g.bare(func(w http.ResponseWriter, r *http.Request, c *caller) {
		may := func(name string) bool { return g.mayCall(c, name) }
		if c.monitors() && (c.rights == nil || len(c.rights.Call) == 0) {
			may = nil // Prometheus need not be able to call anything to see all
		}
		g.metrics.Serve(w, r, may, c.monitors())
	}))
	g.handle("GET /openapi.json", g.bare(g.openapi))
	var faults []hooks.Fault
	if g.hooks, faults = hooks.New(g.cfg.Hooks); faults != nil { // a secret file has changed since the check
		g.note("%v: no webhooks are taken", faults[0])
		g.hooks, _ = hooks.New(nil)
	}
	g.hooks.Call, g.hooks.Note = g.link.call, g.note
	g.hooks.Status = func(function string, end bus.End) int { return statusWith(end, g.cfg.Functions[function].Status) }
}

// isHook reports whether a path is that of a webhook. Webhooks are signed, and need no token.
func isHook(path string) bool { return strings.HasPrefix(path, "/hook/") }

// route returns under which name the metrics count a request: one of a fixed number.
func route(r *http.Request) string {
	switch {
	case r.Pattern != "":
		return r.Pattern
	case isHook(r.URL.Path):
		return "POST /hook/{name}"
	}
	return "other"
}

// openapi serves GET /openapi.json.
func (g *gateway) openapi(w http.ResponseWriter, r *http.Request, c *caller) {
	list, err := openapi.Ask(r.Context(), g.link.call, func(name string) bool { return g.mayCall(c, name) })
	var doc []byte
	if err == nil {
		doc, err = openapi.Document(list)
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(args.SafeJSON(doc), '\n'))
}

// send offers the functions that send webhooks, until ctx ends, and lets finish what is under way.
func (g *gateway) send(ctx context.Context) error {
	if len(g.cfg.Send) == 0 {
		return nil
	}
	w, faults := hooks.NewWorker(g.cfg.Send, bus.Options{Node: g.cfg.Node, Name: "gateway"})
	if faults != nil {
		return args.Errorf(args.CodeUsage, "%v", faults[0])
	}
	defer w.Close()
	if err := w.Run(ctx); err != nil {
		return err
	}
	drain, cancel := context.WithTimeout(context.Background(), g.cfg.Drain)
	defer cancel()
	w.Drain(drain)
	return nil
}

// expiries are when the valid tokens of the network expire, as far as the node says.
type expiries struct {
	mu     sync.Mutex                // protects what follows
	tokens map[string]bus.TicketInfo // by serial
}

// forget drops all: the node is about to say them again.
func (e *expiries) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tokens = map[string]bus.TicketInfo{}
}

// changed takes a line of fbus.watch.
func (e *expiries) changed(line []byte, gone bool) {
	var t bus.TicketInfo
	if json.Unmarshal(line, &t) != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if gone {
		delete(e.tokens, t.Serial)
	} else {
		e.tokens[t.Serial] = t
	}
}

func (e *expiries) byName() map[string]time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := map[string]time.Time{}
	for _, t := range e.tokens {
		list[t.Name] = t.Expires
	}
	return list
}
