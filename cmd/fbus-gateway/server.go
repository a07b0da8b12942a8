package main

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/cmd/fbus-gateway/hooks"
	"fbus/cmd/fbus-gateway/metrics"
	"fbus/cmd/mcp"
)

// leftoverTime is how long a client may take to send a body that nobody wants.
const leftoverTime = 5 * time.Second

// answerTime is how long a client without a credential may take to read its answer.
const answerTime = 10 * time.Second

// gateway serves functions over HTTP.
type gateway struct {
	cfg    *config
	link   link
	tls    *keyPair      // nil: no TLS
	certs  *certificates // of clients
	mux    *http.ServeMux
	limits limits
	log    *accessLog // nil: there is none
	tools  *mcp.Catalog
	agents *mcp.Handler

	metrics *metrics.Metrics
	hooks   *hooks.Handler
	note    func(format string, a ...any)
}

// newGateway returns a gateway that is connected to nothing yet.
func newGateway(cfg *config, note func(format string, a ...any)) *gateway {
	g := &gateway{cfg: cfg, note: note, mux: http.NewServeMux(), limits: limits{cfg: cfg}}
	g.link = link{
		opts: bus.Options{Node: cfg.Node, Name: "gateway", Relay: true, Rights: rights, Wait: bus.NoWait},
		note: note, tokens: new(tokens),
	}
	g.certs = &certificates{link: &g.link}
	for pattern, h := range map[string]func(w http.ResponseWriter, r *http.Request, c *caller){
		"POST /call/{name}":     g.call,
		"GET /call/{name}":      g.call,
		"POST /jobs/{name}":     g.post,
		"GET /jobs":             g.listJobs,
		"GET /jobs/{id}":        g.showJob,
		"GET /jobs/{id}/output": g.jobOutput,
		"GET /jobs/{id}/stderr": g.jobOutput,
		"DELETE /jobs/{id}":     g.bare(g.cancelJob),
		"POST /jobs/{id}/retry": g.bare(g.retryJob),
		"GET /functions":        g.bare(g.functions),
		"GET /functions/{name}": g.bare(g.functions),
		"GET /calls":            g.bare(g.listCalls),
		"DELETE /calls/{id}":    g.bare(g.cancelCall),
	} {
		g.handle(pattern, h)
	}
	g.serveMCP()
	g.mount()
	return g
}

// handle serves a path for callers that were admitted.
func (g *gateway) handle(pattern string, h func(w http.ResponseWriter, r *http.Request, c *caller)) {
	g.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { h(w, r, callerOf(r)) })
}

// bare serves a path that has no parameters.
func (g *gateway) bare(h func(w http.ResponseWriter, r *http.Request, c *caller)) func(w http.ResponseWriter, r *http.Request, c *caller) {
	return func(w http.ResponseWriter, r *http.Request, c *caller) {
		if err := known(r.URL.Query()); err != nil {
			g.refuse(w, r, err)
			return
		}
		h(w, r, c)
	}
}

// request is what is remembered of a request while it is served.
type request struct {
	caller *caller // nil: not admitted
	call   string  // the id of its call
	began  time.Time
	took   time.Duration
}

type requestKey struct{}

func noted(r *http.Request) *request { return r.Context().Value(requestKey{}).(*request) }

func callerOf(r *http.Request) *caller { return noted(r).caller }

// ServeHTTP admits a request, serves it and logs it.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what := &request{began: time.Now()}
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, what))
	lw, count := &loggedWriter{ResponseWriter: w, what: what}, g.metrics.Begin()
	w = lw
	defer func() {
		problem := recover()
		status := lw.status
		if problem != nil {
			status = 0 // the answer is not complete
		}
		count(route(r), status)
		if g.log != nil {
			g.log.add(r, what, lw, problem != nil)
		}
		if problem != nil {
			panic(problem)
		}
	}()
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("Cache-Control", "no-store")
	if r.ProtoMajor == 1 && (len(r.TransferEncoding) > 0 || r.ProtoMinor == 0) {
		// With a length beside it, or in HTTP/1.0, proxies may disagree about where the next request begins. The
		// server of net/http has dropped that (RFC 9112, section 6.1).
		h.Set("Connection", "close")
	}
	defer bound(w, r)()
	p := r.URL.Path
	switch _, wrong := url.ParseQuery(r.URL.RawQuery); {
	case !strings.HasPrefix(p, "/") || p != "/" && path.Clean(p) != p:
		g.refuse(w, r, args.Errorf(args.CodeUsage, "invalid path"))
		return
	case wrong != nil: // URL.Query drops what it cannot read
		g.refuse(w, r, args.Errorf(args.CodeUsage, "invalid query: %v", wrong))
		return
	case p == "/healthz" || p == "/readyz":
		g.health(w, r)
		return
	}
	if err := g.checkPlace(r); err != nil {
		g.refuse(w, r, err)
		return
	}
	if g.allowOrigin(w, r) {
		return
	}
	if isHook(p) {
		g.hooks.ServeHTTP(w, r)
		return
	}
	c, err := g.authenticate(r)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	if what.caller = c; c.valid != nil {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(c.valid, cancel)()
		if !c.expires.IsZero() {
			defer time.AfterFunc(time.Until(c.expires), cancel).Stop()
		}
		r = r.WithContext(ctx)
	}
	if h, pattern := g.mux.Handler(r); pattern == "" {
		g.unknown(h, w, r)
		return
	}
	g.mux.ServeHTTP(w, r)
}

// bound bounds how long a client can hold a connection by a body that it does not send and no handler reads.
// A handler that does sets another deadline. The function that it returns has to be called before the handler
// returns.
func bound(w http.ResponseWriter, r *http.Request) (leave func()) {
	control := http.NewResponseController(w)
	control.SetWriteDeadline(time.Time{}) // an earlier request may have had one
	if r.ContentLength != 0 {
		control.SetReadDeadline(time.Now().Add(leftoverTime))
		b := &boundBody{ReadCloser: r.Body, control: control}
		r.Body = b
		return b.leave
	}
	return func() {}
}

// boundBody is a body with a deadline, which ends with the body: later it would be taken for the client's end.
type boundBody struct {
	io.ReadCloser

	mu      sync.Mutex               // protects what follows
	control *http.ResponseController // nil: the handler has returned
}

// leave lets a Read that a call has left under way touch the writer no more.
func (b *boundBody) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.control = nil
}

func (b *boundBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.control != nil {
			b.control.SetReadDeadline(time.Time{})
		}
	}
	return n, err
}

// unknown answers a request for a path or a method that is not served.
func (g *gateway) unknown(h http.Handler, w http.ResponseWriter, r *http.Request) {
	said := &statusOf{header: http.Header{}}
	h.ServeHTTP(said, r)
	message := "there is no such path"
	if said.status == http.StatusMethodNotAllowed {
		allow := said.header.Get("Allow")
		if name, ok := strings.CutPrefix(r.URL.Path, "/call/"); ok && !(g.mayCall(callerOf(r), name) && g.readOnly(name)) {
			allow = http.MethodPost
		}
		message = args.Shown(r.Method) + " is not served here, but " + allow
		w.Header().Set("Allow", allow)
	}
	fail(w, r, said.status, args.Errorf(args.CodeUsage, "%s", message).End(), "", "")
}

// statusOf takes the status and the header of a response.
type statusOf struct {
	header http.Header
	status int
}

func (s *statusOf) Header() http.Header         { return s.header }
func (s *statusOf) WriteHeader(status int)      { s.status = status }
func (s *statusOf) Write(p []byte) (int, error) { return len(p), nil }

// health serves /healthz, whether the gateway runs, and /readyz, whether its node takes calls.
func (g *gateway) health(w http.ResponseWriter, r *http.Request) {
	status, text := http.StatusOK, "ok"
	if r.URL.Path == "/readyz" {
		ctx, cancel := context.WithTimeout(r.Context(), readyTime)
		defer cancel()
		var info *bus.NodeInfo
		c, err := g.link.connected()
		if err == nil {
			info, err = g.link.ask(ctx, c)
		}
		switch {
		case err != nil:
			status, text = http.StatusServiceUnavailable, "no node"
		case info.Draining:
			status, text = http.StatusServiceUnavailable, "the node is shutting down"
		}
	}
	writeJSON(w, status, map[string]string{"status": text})
}

// readyTime is how long the node may take to show that it runs.
const readyTime = time.Second

// serve serves on the listeners until ctx ends, and then for as long as requests need to finish.
func (g *gateway) serve(ctx context.Context, listeners ...*listener) error {
	s := &http.Server{
		Handler: g, MaxHeaderBytes: int(g.cfg.Limits.Header), ReadHeaderTimeout: g.cfg.headerTime, IdleTimeout: g.cfg.Limits.Idle, ConnContext: withConn,
		ErrorLog:                     log.New(io.Discard, "", 0), // faults of clients
		DisableGeneralOptionsHandler: true,                       // it reads a body without a deadline
	}
	s.RegisterOnShutdown(g.agents.Drain)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, l := range listeners {
		go func() { // ends when the server is closed
			if err := s.Serve(g.secured(s, l)); err != http.ErrServerClosed {
				cancel(err)
			}
		}()
	}
	linked, unlink := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // ends with linked
		defer close(ended)
		if err := g.link.run(linked); err != nil {
			cancel(err)
		}
	}()
	go g.certs.follow(linked) // ends with it
	go g.tools.Run(linked)    // ends with it
	sent := make(chan struct{})
	go func() { // ends with ctx
		defer close(sent)
		if err := g.send(ctx); err != nil {
			cancel(err)
		}
	}()
	<-ctx.Done()
	drain, stop := context.WithTimeout(context.Background(), g.cfg.Drain)
	err := s.Shutdown(drain)
	g.agents.Close()
	if err != nil {
		s.Close()
	}
	stop()
	<-sent
	unlink()
	<-ended
	if err := context.Cause(ctx); err != context.Canceled {
		return err
	}
	return nil
}
