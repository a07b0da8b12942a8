package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
)

// caller is who makes a request, and what they may do.
type caller struct {
	name   string          // what the node is told: "token:ci"; empty: the gateway's own user
	rights *trust.Rights   // nil: everything that the gateway may do
	valid  context.Context // ends when the credential is revoked; nil: it does not

	expires time.Time // of the credential; zero: never
}

// shown is the caller for people.
func (c *caller) shown() string {
	switch {
	case c == nil:
		return "-"
	case c.name == "":
		return "local"
	}
	return c.name
}

// ended returns an error if the caller's credential has ended since the request was admitted.
func (c *caller) ended() error {
	if c == nil || (c.valid == nil || c.valid.Err() == nil) && (c.expires.IsZero() || time.Now().Before(c.expires)) {
		return nil
	}
	return args.Errorf(args.CodeRevoked, "%s was revoked or has expired", c.shown())
}

// mayCall reports whether a caller may call a function. The node's own functions are not for callers.
func (g *gateway) mayCall(c *caller, name string) bool {
	published := len(g.cfg.Publish) == 0 || trust.Rights{Call: g.cfg.Publish}.MayCall(name)
	return published && !strings.HasPrefix(name, "fbus.") && (c.rights == nil || c.rights.MayCall(name)) && g.link.mayCall(name)
}

// mayCallAll reports whether a caller may call every function, so that nothing need be hidden.
func (g *gateway) mayCallAll(c *caller) bool {
	all := func(r *trust.Rights) bool { return r == nil || slices.Contains(r.Call, "*") }
	return len(g.cfg.Publish) == 0 && all(c.rights) && all(g.link.rights())
}

// mayList returns mayCall as lists of globs, each of which must have one that matches.
func (g *gateway) mayList(c *caller) (lists [][]string) {
	if len(g.cfg.Publish) > 0 {
		lists = append(lists, g.cfg.Publish)
	}
	for _, r := range []*trust.Rights{c.rights, g.link.rights()} {
		if r != nil {
			lists = append(lists, append([]string{}, r.Call...))
		}
	}
	return append(lists, []string{"*"}) // and nothing of the node's own
}

// monitors reports whether a caller may see what others do.
func (c *caller) monitors() bool { return c.rights == nil || c.rights.Monitor }

// tokens are the tokens that the node has admitted, and that have not ended since.
type tokens struct {
	mu       sync.Mutex // protects what follows
	admitted map[[sha256.Size]byte]*admitted
	alive    bool   // the node says when one ends
	watches  uint64 // how often it began to say so
	ends     uint64 // how often a token has ended
}

// admitted is a token.
type admitted struct {
	bus.TokenInfo
	valid context.Context
	end   context.CancelFunc
	watch uint64 // since when the node would have said that it has ended; 0: the node was not watched
}

// forget has the node asked about each token again, as nobody says when one ends. A request that is served
// ends with its token all the same: the next watch begins with all tokens that have ended.
func (t *tokens) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.alive = false
}

// watched begins to remember what the node admits.
func (t *tokens) watched() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.alive = true
	t.watches++
}

// ended drops the tokens for which gone holds, and ends what their holders do.
func (t *tokens) ended(gone func(a *admitted) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ends++
	for sum, a := range t.admitted {
		if gone(a) {
			delete(t.admitted, sum)
			a.end()
		}
	}
}

// refused drops a token that the node does not admit any more.
func (t *tokens) refused(sum [sha256.Size]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.admitted[sum]; a != nil {
		delete(t.admitted, sum)
		a.end()
	}
}

// doubt has the node asked about a caller's token again.
func (t *tokens) doubt(c *caller) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range t.admitted {
		if a.valid == c.valid {
			a.watch = 0
		}
	}
}

// get returns a token about which the node need not be asked, and how many have ended so far.
func (t *tokens) get(sum [sha256.Size]byte) (*admitted, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.admitted[sum]
	if a != nil && !a.Expires.After(trust.Now()) {
		delete(t.admitted, sum)
		a.end()
		a = nil
	}
	if a != nil && (!t.alive || a.watch != t.watches) {
		a = nil
	}
	return a, t.ends
}

// keep keeps what the node has admitted. It returns nil if a token has ended since get: it may have been
// this one.
func (t *tokens) keep(sum [sha256.Size]byte, info *bus.TokenInfo, ends uint64) *admitted {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ends != ends {
		return nil
	}
	a := t.admitted[sum]
	if a == nil {
		a = &admitted{TokenInfo: *info}
		a.valid, a.end = context.WithCancel(context.Background())
		if t.admitted == nil {
			t.admitted = map[[sha256.Size]byte]*admitted{}
		}
		t.admitted[sum] = a
	}
	if a.watch = 0; t.alive {
		a.watch = t.watches
	}
	return a
}

// admit returns whose token it is, and what it allows.
func (g *gateway) admit(ctx context.Context, token string) (*caller, error) {
	if !args.HasToken(token) || len(token) > 100 { // a mistyped one need not bother the node
		return nil, args.Errorf(args.CodeUnlisted, "this is not a token of the network")
	}
	sum := sha256.Sum256([]byte(token))
	a, ends := g.link.tokens.get(sum)
	for a == nil {
		text, err := g.link.output(ctx, "", "fbus.admit", args.List(token))
		if err != nil {
			if isRefusal(err) {
				g.link.tokens.refused(sum)
			}
			return nil, err
		}
		var info bus.TokenInfo
		if err := json.Unmarshal(text, &info); err != nil || !strings.HasPrefix(info.Caller, "token:") {
			return nil, args.Errorf(args.CodeInternal, "the node's answer about a token cannot be read")
		}
		if a = g.link.tokens.keep(sum, &info, ends); a == nil {
			a, ends = g.link.tokens.get(sum)
		}
	}
	return &caller{name: a.Caller, rights: &a.Rights, valid: a.valid, expires: a.Expires}, nil
}

// holds asks the node whether the token of a request still holds. The node ends the jobs of a revoked token, perhaps
// before it says that the token has ended.
func (g *gateway) holds(r *http.Request, c *caller) error {
	if c.valid == nil {
		return nil
	}
	g.link.tokens.doubt(c)
	_, err := g.authenticate(r)
	return err
}

// errNoCredential is that a request shows neither a token nor a certificate.
var errNoCredential = args.Errorf(args.CodeNoCertificate, "a token is needed: Authorization: Bearer TOKEN")

// authenticate returns who makes a request. The error is for refuse.
func (g *gateway) authenticate(r *http.Request) (*caller, error) {
	l := listenerOf(r)
	switch {
	case l.local:
		return &caller{}, nil
	case l.open:
		for name := range r.Header {
			if name == "Forwarded" || name == "Via" || strings.HasPrefix(name, "X-Forwarded-") {
				return nil, args.Errorf(args.CodeDenied, "requests that a proxy passes on need a token: this listener has --no-auth")
			}
		}
		if r.Header.Get("Sec-Fetch-Site") == "cross-site" && !slices.Contains(g.cfg.Origins, r.Header.Get("Origin")) {
			return nil, args.Errorf(args.CodeDenied, "pages of other sites may not use this gateway: origins in gateway.toml lists those that may")
		}
		return &caller{name: "anonymous", rights: &trust.Rights{Call: []string{"*"}}}, nil
	}
	if len(r.Header["Authorization"]) > 1 {
		return nil, args.Errorf(args.CodeUsage, "the header Authorization may be there once")
	}
	kind, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if ok && strings.EqualFold(kind, "Bearer") {
		return g.admit(r.Context(), strings.TrimSpace(token))
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return g.certs.admit(r.TLS)
	}
	return nil, errNoCredential
}

// isRefusal reports whether an error says that a credential is missing or not valid.
func isRefusal(err error) bool {
	e, ok := errors.AsType[*args.Error](err)
	if !ok {
		return false
	}
	switch e.Code {
	case args.CodeNoCertificate, args.CodeUnlisted, args.CodeRevoked, args.CodeExpired, args.CodeNotYetValid, args.CodeWrongUse, args.CodeBadCertificate, args.CodeOtherNetwork:
		return true
	}
	return false
}

// checkPlace refuses a request that comes from a place, or is for one, that is not this gateway's: one that
// a browser makes for another site, above all.
func (g *gateway) checkPlace(r *http.Request) error {
	l := listenerOf(r)
	if l.local {
		return g.checkOrigin(r)
	}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); len(l.proxies) > 0 && (err != nil || !within(from.Addr(), l.proxies)) {
		return args.Errorf(args.CodeDenied, "this address is not that of a trusted proxy")
	}
	host := strings.ToLower(hostOf(r.Host))
	switch {
	case slices.Contains(g.cfg.Hosts, host):
	case len(g.cfg.Hosts) == 0 && len(l.proxies) > 0:
	case l.loopback && isLoopback(host):
	case host == hostOf(localAddr(r)):
	case r.TLS != nil && g.tls.names(host):
	default:
		return args.Errorf(args.CodeDenied, "the host %q is not this gateway: hosts in gateway.toml lists its names", args.Shown(host))
	}
	return g.checkOrigin(r)
}

// checkOrigin refuses a request that a page of another site makes.
func (g *gateway) checkOrigin(r *http.Request) error {
	origin := r.Header.Get("Origin")
	if origin == "" || slices.Contains(g.cfg.Origins, origin) {
		return nil
	}
	if u, err := url.Parse(origin); err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) && (u.Scheme == "https" || r.TLS == nil && u.Scheme == "http") {
		return nil
	}
	return args.Errorf(args.CodeDenied, "pages of %q may not use this gateway: origins in gateway.toml lists those that may", args.Shown(origin))
}

// hostOf returns a host without its port and brackets.
func hostOf(hostPort string) string {
	if host, _, err := net.SplitHostPort(hostPort); err == nil {
		return host
	}
	return strings.Trim(hostPort, "[]")
}

func localAddr(r *http.Request) string {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return a.String()
	}
	return ""
}

// isLoopback reports whether a host is this machine, and cannot be another.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

func within(ip netip.Addr, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
}

// allowOrigin lets pages of the origins that are listed read the answer. It reports whether the request
// only asks whether another one may be made.
func (g *gateway) allowOrigin(w http.ResponseWriter, r *http.Request) (preflight bool) {
	h := w.Header()
	if len(g.cfg.Origins) == 0 {
		return false
	}
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if !slices.Contains(g.cfg.Origins, origin) {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "Fbus-Call, Fbus-Code, Fbus-Status, Fbus-Total, Fbus-Worker, Location, Preference-Applied, Retry-After")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, DELETE")
	h.Set("Access-Control-Allow-Headers", "Accept, Authorization, Content-Type, Fbus-Timeout, Fbus-Wait, Idempotency-Key, Prefer, Traceparent, Tracestate")
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}
