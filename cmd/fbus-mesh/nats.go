package main

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"fbus/bus/args"

	"github.com/nats-io/nats.go"
)

// noteAgain is when a reason for which NATS cannot be reached is noted again.
const noteAgain = 10 * time.Minute

// pingEvery is when a NATS server is asked whether it is there, and lost if it did not answer the last
// time. One that does not answer requests is asked at once, see [mesh.probe].
const pingEvery = 2 * time.Second

// hub is what the mesh knows of its connection to NATS.
type hub struct {
	note   func(format string, a ...any)
	online chan struct{} // has room for one: NATS is connected
	shown  string        // with what credentials it connects, for people

	mu    sync.Mutex           // protects the fields below
	why   string               // it is not connected; empty: it is
	since time.Time            // when it was connected or lost last
	said  map[string]time.Time // reasons that were noted since it was lost
}

// connected is due when NATS is connected, for the first time or again.
func (h *hub) connected(nc *nats.Conn) {
	h.mu.Lock()
	h.why, h.since = "", time.Now()
	clear(h.said)
	h.mu.Unlock()
	h.note("NATS: connected to %s", nc.ConnectedUrlRedacted())
	select {
	case h.online <- struct{}{}:
	default:
	}
}

// lost is due when a connection has ended. One that was silent has been dead for a while: the other
// nodes were last heard before that.
func (h *hub) lost(nc *nats.Conn, err error) {
	at := time.Now()
	if slow := net.Error(nil); errors.Is(err, nats.ErrStaleConnection) || errors.As(err, &slow) && slow.Timeout() {
		at = at.Add(-2 * pingEvery)
	}
	h.mu.Lock()
	h.why = h.reason(nc, err)
	if at.After(h.since) {
		h.since = at
	}
	h.said[h.why] = time.Now()
	why := h.why
	h.mu.Unlock()
	h.note("NATS: %s: calls run on this node alone until it is back", why)
}

// refused is due when no connection can be made. The mesh tries for as long as it runs, so a reason
// is noted once, and again only after a while.
func (h *hub) refused(nc *nats.Conn, err error) {
	if nc.IsConnected() || err == nil { // the library passes a variable that it sets again at its next try
		return
	}
	why, now := h.reason(nc, err), time.Now()
	h.mu.Lock()
	h.why = why
	last, again := h.said[why]
	again = again && now.Sub(last) < noteAgain || len(h.said) > 50
	if !again {
		h.said[why] = now
	}
	h.mu.Unlock()
	if !again {
		h.note("NATS: not connected, trying again: %s", why)
	}
}

// offline returns why NATS is not connected, and since when that is so or is not.
func (h *hub) offline() (why string, since time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.why, h.since
}

// reason returns the text of an error without what differs between two tries. It names the server,
// or all that are tried if the error does not say which one it is of.
func (h *hub) reason(nc *nats.Conn, err error) string {
	why := strings.TrimPrefix(args.Plain(err), "nats: ")
	if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" && dial.Addr != nil {
		why = dial.Addr.String() + ": " + why
	} else if servers := nc.Servers(); len(servers) > 0 {
		why = strings.Join(servers, ", ") + ": " + why
	}
	if errors.Is(err, nats.ErrAuthorization) {
		why += ": the server does not admit this mesh" + h.shown
	}
	return why
}

// given says for people with what credentials the mesh connects to NATS.
func (o *options) given(urls string) string {
	switch {
	case o.creds != "":
		return " with --creds " + args.Shown(o.creds)
	case o.nkey != "":
		return " with --nkey " + args.Shown(o.nkey)
	case o.cert != "":
		return " with --tls-cert " + args.Shown(o.cert)
	case o.contextFile != "":
		return " with the context " + args.Shown(o.contextFile)
	case strings.Contains(urls, "@"):
		return " with the user or token in the URL"
	case o.cfg.shown != nil:
		return "; its ticket may be revoked, or lack the right relay"
	}
	return " without credentials: --creds, --nkey, --context or a user in the URL give some"
}

// checkURLs refuses what cannot be the URL of a NATS server.
func checkURLs(urls []string) error {
	for _, list := range urls {
		for u := range strings.SplitSeq(list, ",") {
			if !strings.Contains(u, "://") {
				return args.Errorf(args.CodeUsage, "%q is not the URL of a NATS server", u).WithHint("fbus mesh nats://%s", u)
			}
			parsed, err := url.Parse(u)
			if err != nil || parsed.Hostname() == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, parsed.Scheme) {
				return args.Errorf(args.CodeUsage, "%s is not the URL of a NATS server: it must be nats://HOST:PORT, or with tls, ws or wss for nats", args.Shown(u))
			}
		}
	}
	return nil
}

// credentials returns the options for what the flags say about who connects.
func (o *options) credentials() (opts []nats.Option, err error) {
	add := func(flag, value string, opt nats.Option) {
		if e := opt(&nats.Options{}); e != nil && err == nil {
			err = args.Errorf(args.CodeUsage, "--%s %s: %s", flag, args.Shown(value), strings.TrimPrefix(args.Plain(e), "nats: "))
		}
		opts = append(opts, opt)
	}
	if o.creds != "" {
		add("creds", o.creds, func(n *nats.Options) error {
			if err := nats.UserCredentials(o.creds)(n); err != nil {
				return err
			}
			return usable(n)
		})
	}
	if o.nkey != "" {
		opt, e := nats.NkeyOptionFromSeed(o.nkey)
		if e != nil {
			opt = func(*nats.Options) error { return e }
		}
		add("nkey", o.nkey, opt)
	}
	if (o.cert == "") != (o.key == "") {
		return nil, args.Errorf(args.CodeUsage, "--tls-cert and --tls-key go together")
	}
	if o.cert != "" {
		add("tls-cert", o.cert, nats.ClientCert(o.cert, o.key))
	}
	if o.ca != "" {
		add("tls-ca", o.ca, nats.RootCAs(o.ca))
	}
	return opts, err
}

// usable reports what is wrong with a file of credentials. The library looks at it only when it is
// connected.
func usable(n *nats.Options) error {
	if n.UserJWT == nil || n.SignatureCB == nil {
		return nil
	}
	_, err := n.UserJWT()
	if err == nil {
		_, err = n.SignatureCB([]byte("nonce"))
	}
	return err
}

// connect connects to NATS, now or later, and again for as long as the mesh runs.
func (o *options) connect(urls string) (*nats.Conn, error) {
	h := &hub{note: o.cfg.Note, online: make(chan struct{}, 1), since: time.Now(), why: "no answer yet", shown: o.given(urls), said: map[string]time.Time{}}
	o.cfg.hub = h
	opts := []nats.Option{
		nats.ConnectHandler(h.connected), nats.ReconnectHandler(h.connected),
		nats.Name("fbus mesh"), nats.NoEcho(), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1),
		nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(500 * time.Millisecond), nats.ReconnectJitter(500*time.Millisecond, 500*time.Millisecond),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if err != nil {
				h.lost(nc, err)
			}
		}),
		nats.ReconnectErrHandler(h.refused),
		nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, err error) {
			if nc.IsConnected() {
				o.cfg.Note("NATS: %v", err)
			} else {
				h.refused(nc, err)
			}
		}),
	}
	given, err := o.credentials()
	if err != nil {
		return nil, err
	}
	opts = append(opts, given...)
	if cr := o.cfg.shown; cr != nil {
		opts = append(opts, func(n *nats.Options) error { // if the URL or the server asks for TLS
			if n.TLSCertCB != nil || n.RootCAsCB != nil || n.UserJWT != nil || n.Nkey != "" || n.User != "" || n.Token != "" {
				return nil // the server is not one of the network
			}
			id, err := cr.identity()
			if err == nil {
				n.TLSConfig = id.Config("")
				n.TLSConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // it may be renewed
					id, err := cr.identity()
					if err != nil {
						return nil, err
					}
					return id.Config("").GetClientCertificate(nil)
				}
			}
			return err
		})
	}
	opts = append(opts, func(n *nats.Options) error { return usable(n) }) // those of a context
	if o.contextFile != "" {
		return connectContext(o.contextFile, urls, opts)
	}
	nc, err := nats.Connect(urls, opts...)
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "NATS: %v", err)
	}
	return nc, nil
}
