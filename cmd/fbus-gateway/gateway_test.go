package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/cmd/testbus"
)

func TestMain(m *testing.M) {
	testbus.Main(m, map[string]func(){"fbus-gateway": main, "fbus-bare": bare})
}

// TestScripts runs fbus gateway as its users do.
func TestScripts(t *testing.T) { testbus.Scripts(t, nil) }

// site is a node with a gateway.
type site struct {
	t     testing.TB
	dir   string
	a     *trust.Authority
	jobs  *jobs.Manager
	node  *node.Node
	kill  func()      // stops the node
	own   *bus.Client // the user's
	g     *gateway
	stop  func()          // stops the gateway
	local string          // URL
	far   string          // URL, where a token is needed
	http  *http.Transport // to the socket
}

// newSite starts a node and a gateway.
func newSite(t testing.TB, change ...func(cfg *config)) *site {
	t.Helper()
	dir := testbus.Dir(t)
	x := &site{t: t, dir: dir, jobs: testbus.Jobs(t)}
	var err error
	if x.a, err = trust.Open(trust.Options{Dir: filepath.Join(dir, "net"), Network: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.a.Close() })
	x.startNode()
	cfg := defaults()
	cfg.Node, cfg.Socket, cfg.Drain = filepath.Join(dir, "node"), filepath.Join(dir, "gateway"), 5*time.Second
	for _, f := range change {
		f(cfg)
	}
	x.startGateway(cfg)
	return x
}

func (x *site) startNode() {
	x.t.Helper()
	n := testbus.Start(x.t, node.Config{
		Network: "test", Name: "n", Address: filepath.Join(x.dir, "node"), Authority: x.a, Gate: x.a, Jobs: x.jobs, Warn: x.t.Logf,
	})
	x.node, x.kill, x.own = n.Node, n.Stop, n.Dial(&bus.Options{Name: "w"})
}

func (x *site) startGateway(cfg *config) {
	x.t.Helper()
	l, err := listenUnix(cfg.Socket)
	if err != nil {
		x.t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		x.t.Fatal(err)
	}
	x.g = newGateway(cfg, func(format string, a ...any) { x.t.Logf(format, a...) })
	if cfg.TLSCert != "" {
		x.g.tls = &keyPair{cert: cfg.TLSCert, key: cfg.TLSKey}
	}
	if cfg.AccessLog != "" {
		if x.g.log, err = openAccessLog(cfg.AccessLog, x.g.note); err != nil {
			x.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- x.g.serve(ctx, l, cfg.listener(tcp)) }() // ends with ctx
	x.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			x.t.Error(err)
		}
		x.g.log.close()
		x.stop = func() {}
	}
	x.http = &http.Transport{
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", cfg.Socket) },
		DisableCompression: true,
	}
	x.t.Cleanup(func() {
		x.http.CloseIdleConnections()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		x.stop()
	})
	x.local, x.far = "http://x", "http://"+tcp.Addr().String()
	testbus.Until(x.t, "the gateway is connected, and hears which tokens end", func() bool {
		x.g.link.tokens.mu.Lock()
		defer x.g.link.tokens.mu.Unlock()
		_, err := x.g.link.connected()
		return err == nil && x.g.link.tokens.alive
	})
}

// offer offers a function until the test ends, and waits until the gateway knows of it.
func (x *site) offer(o bus.Offer, h bus.Handler) {
	x.t.Helper()
	o.Slots = max(o.Slots, 1)
	if _, err := x.own.Offer(x.t.Context(), o, h); err != nil {
		x.t.Fatal(err)
	}
	testbus.Until(x.t, "the gateway knows "+o.Name, func() bool { return x.g.link.function(o.Name) != nil })
}

// token makes a token that may call what matches the globs.
func (x *site) token(name string, call ...string) string {
	x.t.Helper()
	text, _, err := x.a.IssueToken(trust.LocalUser, trust.Request{Name: name, Rights: trust.Rights{Call: call}})
	if err != nil {
		x.t.Fatal(err)
	}
	return text
}

// reply is a response that was read.
type reply struct {
	*http.Response
	body string
	err  error // of reading it
}

// do makes a request. Headers are in pairs.
func (x *site) do(method, url string, body any, headers ...string) *reply {
	x.t.Helper()
	var in io.Reader
	switch b := body.(type) {
	case string:
		in = strings.NewReader(b)
	case []byte:
		in = bytes.NewReader(b)
	case io.Reader:
		in = b
	}
	r, err := http.NewRequestWithContext(x.t.Context(), method, url, in)
	if err != nil {
		x.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
		r.Header.Add(headers[i], headers[i+1])
	}
	var transport http.RoundTripper = http.DefaultTransport
	if strings.HasPrefix(url, x.local+"/") {
		transport = x.http
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		x.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return &reply{Response: resp, body: string(text), err: err}
}

// upper answers with its input in upper case.
func upper(_ context.Context, inv *bus.Invocation) bus.Result {
	in, err := io.ReadAll(inv.Input)
	if err != nil {
		return bus.Fail(err)
	}
	return bus.Result{Output: bytes.ToUpper(in)}
}

// exits writes to stdout and stderr, and exits with the status that its input names.
func exits(_ context.Context, inv *bus.Invocation) bus.Result {
	in, _ := io.ReadAll(inv.Input)
	var status int
	json.Unmarshal(in, &status)
	io.WriteString(inv.Stdout, "some output")
	io.WriteString(inv.Stderr, "secret reason\n")
	return bus.Exit(status)
}

// echo answers with its arguments as JSON, or its input as it comes.
func echo(_ context.Context, inv *bus.Invocation) bus.Result {
	if inv.Kind != args.KindRaw {
		v, err := args.Decode(inv.Kind, inv.Args)
		if err != nil {
			return bus.Fail(err)
		}
		text, err := v.Encode(args.EncodeJSON)
		if err != nil {
			return bus.Fail(err)
		}
		inv.Stdout.Write(text)
	}
	if _, err := io.Copy(inv.Stdout, inv.Input); err != nil {
		return bus.Fail(err)
	}
	return bus.Exit(0)
}
