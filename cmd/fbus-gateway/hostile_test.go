package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/cmd/testbus"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestHostile: what is no proper request is refused, and what follows it is not taken for another one.
func TestHostile(t *testing.T) {
	x := newSite(t)
	calls := make(chan string, 100)
	x.offer(bus.Offer{Name: "f"}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		io.Copy(io.Discard, inv.Input)
		calls <- inv.Function
		return bus.Exit(0)
	})
	x.offer(bus.Offer{Name: "smuggled"}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		calls <- inv.Function
		return bus.Exit(0)
	})
	auth := "Host: localhost\r\nAuthorization: Bearer " + x.token("ci", "*") + "\r\n"
	hidden := "POST /call/smuggled HTTP/1.1\r\n" + auth + "Content-Length: 0\r\n\r\n"
	for name, c := range map[string]struct{ send, want string }{
		"length and chunks":      {"POST /call/f HTTP/1.1\r\n" + auth + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "close"},
		"chunks in HTTP/1.0":     {"POST /call/f HTTP/1.0\r\n" + auth + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + hidden, "close"},
		"two lengths":            {"POST /call/f HTTP/1.1\r\n" + auth + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + hidden, "400"},
		"a signed length":        {"POST /call/f HTTP/1.1\r\n" + auth + "Content-Length: +0\r\n\r\n" + hidden, "400"},
		"an unknown coding":      {"POST /call/f HTTP/1.1\r\n" + auth + "Transfer-Encoding: xchunked\r\n\r\n" + hidden, "501"},
		"a space after a name":   {"POST /call/f HTTP/1.1\r\n" + auth + "Content-Length : 0\r\n\r\n" + hidden, "400"},
		"a folded header":        {"POST /call/f HTTP/1.1\r\n" + auth + "Connection: close\r\nX: a\r\n Content-Length: 5\r\n\r\n", "200"},
		"a bare LF in a chunk":   {"POST /call/f HTTP/1.1\r\n" + auth + "Transfer-Encoding: chunked\r\n\r\n1\nx\n0\r\n\r\n" + hidden, "close"},
		"HTTP/0.9":               {"GET /call/f\r\n", "400"},
		"no host":                {"GET /call/f HTTP/1.1\r\n\r\n", "400"},
		"two hosts":              {"GET /call/f HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n", "400"},
		"dots":                   {"POST /call/../call/f HTTP/1.1\r\n" + auth + "Content-Length: 0\r\nConnection: close\r\n\r\n", "400"},
		"encoded dots":           {"POST /call/%2e%2e/call/f HTTP/1.1\r\n" + auth + "Content-Length: 0\r\nConnection: close\r\n\r\n", "400"},
		"an encoded slash":       {"POST /call/a%2Ff HTTP/1.1\r\n" + auth + "Content-Length: 0\r\nConnection: close\r\n\r\n", "400"},
		"two slashes":            {"POST //call/f HTTP/1.1\r\n" + auth + "Content-Length: 0\r\nConnection: close\r\n\r\n", "400"},
		"a NUL":                  {"POST /call/f%00 HTTP/1.1\r\n" + auth + "Content-Length: 0\r\nConnection: close\r\n\r\n", "400"},
		"CONNECT":                {"CONNECT localhost:1 HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n", "400"},
		"an unknown method":      {"BREW /call/f HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n", "405"},
		"TRACE":                  {"TRACE /call/f HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n", "405"},
		"a huge header":          {"GET /call/f HTTP/1.1\r\n" + auth + "X: " + strings.Repeat("x", 200<<10) + "\r\n\r\n", "431"},
		"TLS":                    {"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", "400"},
		"HTTP/2 without TLS":     {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "close"},
		"an invalid escape":      {"POST /call/%zz HTTP/1.1\r\n" + auth + "Content-Length: 0\r\n\r\n", "400"},
		"a semicolon in a query": {"POST /call/f?a=1;arg=2 HTTP/1.1\r\n" + auth + "Content-Length: 0\r\nConnection: close\r\n\r\n", "400"},
	} {
		nc, err := net.Dial("tcp", strings.TrimPrefix(x.far, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(nc, c.send)
		in := bufio.NewReader(nc)
		resp, err := http.ReadResponse(in, nil)
		switch {
		case c.want == "close":
			if err == nil {
				io.Copy(io.Discard, resp.Body)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case !strings.HasPrefix(resp.Status, c.want):
			t.Errorf("%s: %s", name, resp.Status)
		}
		if resp != nil {
			io.Copy(io.Discard, resp.Body)
		}
		if next, err := http.ReadResponse(in, nil); err == nil && next.StatusCode == 200 {
			t.Errorf("%s: what follows was served: %s", name, next.Status)
		}
		nc.Close()
	}
	for len(calls) > 0 {
		if name := <-calls; name == "smuggled" {
			t.Error("a hidden request was served")
		}
	}
}

// TestGoneBehindOthers: a call ends when its client goes, also if requests that nobody has read are behind it.
func TestGoneBehindOthers(t *testing.T) {
	x := newSite(t)
	began, ended := make(chan bool), make(chan bool)
	x.offer(bus.Offer{Name: "hang"}, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		close(began)
		<-ctx.Done()
		close(ended)
		return bus.Exit(0)
	})
	nc, err := net.Dial("unix", x.g.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(nc, "POST /call/hang HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"+strings.Repeat("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 500))
	<-began
	nc.Close()
	<-ended
}

// TestSlowHeader: a client that does not complete its header loses the connection; others are served meanwhile.
func TestSlowHeader(t *testing.T) {
	x := newSite(t, func(c *config) { c.headerTime = 300 * time.Millisecond })
	x.offer(bus.Offer{Name: "shout"}, upper)
	addr := strings.TrimPrefix(x.far, "http://")
	slow := make([]net.Conn, 100)
	for i := range slow {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		io.WriteString(nc, "POST /call/shout HTTP/1.1\r\nHost: localhost\r\nX: ")
		slow[i] = nc
	}
	if r := x.do("POST", x.far+"/call/shout", "x", "Authorization", "Bearer "+x.token("ci", "*")); r.body != "X" {
		t.Error(r.Status, r.body)
	}
	for _, nc := range slow {
		nc.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the connection stays open")
		}
	}
}

// TestRapidReset: requests that HTTP/2 resets as soon as they are made call no more than the function has
// slots, leave nothing behind, and hold up nobody.
func TestRapidReset(t *testing.T) {
	const slots, requests = 10, 1000
	dir := t.TempDir()
	pool := serverPair(t, dir)
	x := newSite(t, func(c *config) { c.TLSCert, c.TLSKey = filepath.Join(dir, "cert"), filepath.Join(dir, "key") })
	var running, most atomic.Int64
	x.offer(bus.Offer{Name: "hang", Slots: slots}, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		n := running.Add(1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		<-ctx.Done()
		running.Add(-1)
		return bus.Exit(0)
	})
	x.offer(bus.Offer{Name: "shout"}, upper)
	addr, auth := strings.TrimPrefix(x.far, "http://"), "Bearer "+x.token("ci", "*")
	goroutines := runtime.NumGoroutine()
	for range 3 {
		nc, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		drained := make(chan bool)
		go func() { // ends with the connection
			defer close(drained)
			io.Copy(io.Discard, nc)
		}()
		io.WriteString(nc, http2.ClientPreface)
		fr := http2.NewFramer(nc, nil)
		fr.WriteSettings()
		var head bytes.Buffer
		enc := hpack.NewEncoder(&head)
		for i := range requests {
			head.Reset()
			for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", "/call/hang"}, {":authority", addr}, {"authorization", auth}} {
				enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
			}
			id := uint32(2*i + 1)
			err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true})
			if err == nil {
				err = fr.WriteRSTStream(id, http2.ErrCodeCancel)
			}
			if err != nil {
				break // the server has had enough
			}
		}
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
		r, _ := http.NewRequestWithContext(t.Context(), "POST", "https://"+addr+"/call/shout", strings.NewReader("x"))
		r.Header.Set("Authorization", auth)
		resp, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if out, _ := io.ReadAll(resp.Body); string(out) != "X" {
			t.Error(resp.Status, string(out))
		}
		resp.Body.Close()
		tr.CloseIdleConnections()
		testbus.Until(x.t, "all calls are over while the connection is open", func() bool {
			text, err := x.g.link.output(t.Context(), "", "fbus.calls", bus.Args{})
			return err == nil && running.Load() == 0 && !bytes.Contains(text, []byte(`"hang"`))
		})
		nc.Close()
		<-drained
	}
	t.Logf("at most %d ran at a time", most.Load())
	if n := most.Load(); n > slots {
		t.Errorf("%d ran at a time, with %d slots", n, slots)
	}
	testbus.Until(x.t, "nothing is left", func() bool {
		x.g.limits.mu.Lock()
		defer x.g.limits.mu.Unlock()
		return runtime.NumGoroutine() <= goroutines+5 && x.g.limits.usage["token:ci"].calls == 0
	})
}

// ready waits until the gateway says with a status whether its node takes calls.
func (x *site) ready(status int) {
	testbus.Until(x.t, "the gateway knows", func() bool { return x.do("GET", x.local+"/readyz", nil).StatusCode == status })
}

// TestNodeLost: without a node requests fail with 502, and it works again when there is one.
func TestNodeLost(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "shout"}, upper)
	began := make(chan bool)
	x.offer(bus.Offer{Name: "hang"}, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		close(began)
		<-ctx.Done()
		return bus.Exit(0)
	})
	ended := make(chan *reply)
	go func() { ended <- x.do("POST", x.local+"/call/hang", "") }() // ends with the node
	<-began
	x.kill()
	if r := <-ended; r.StatusCode != 502 || r.Header.Get("Fbus-Code") != "node_lost" {
		t.Error(r.Status, r.Header, r.body)
	}
	x.ready(503)
	if r := x.do("POST", x.local+"/call/shout", ""); r.StatusCode != 502 {
		t.Error(r.Status, r.body)
	}
	x.startNode()
	x.offer(bus.Offer{Name: "shout"}, upper)
	x.ready(200)
	if r := x.do("POST", x.local+"/call/shout", "again"); r.body != "AGAIN" {
		t.Error(r.Status, r.body)
	}
}

// TestNodeDrains: while the node shuts down the gateway is not ready, and what runs may finish.
func TestNodeDrains(t *testing.T) {
	x := newSite(t)
	began, release := make(chan bool), make(chan bool)
	x.offer(bus.Offer{Name: "hang"}, func(context.Context, *bus.Invocation) bus.Result {
		close(began)
		<-release
		return bus.Exit(0)
	})
	ended := make(chan *reply)
	go func() { ended <- x.do("POST", x.local+"/call/hang", "") }() // ends with the call
	<-began
	x.ready(200)
	go x.node.Drain(context.Background()) // ends with the call
	x.ready(503)
	close(release)
	if r := <-ended; r.StatusCode != 200 {
		t.Error(r.Status, r.body)
	}
}

// TestManyStreams: a thousand open event streams hold up nobody.
func TestManyStreams(t *testing.T) {
	const n = 1000
	x := newSite(t)
	x.offer(bus.Offer{Name: "shout"}, upper)
	release := make(chan bool)
	x.offer(bus.Offer{Name: "hang", Slots: n}, func(context.Context, *bus.Invocation) bus.Result {
		<-release
		return bus.Exit(0)
	})
	token := x.token("ci", "*")
	begun, ended := make(chan error, n), make(chan error, n)
	for range n {
		go func() { // ends with release
			r, err := http.NewRequestWithContext(t.Context(), "POST", x.far+"/call/hang", nil)
			if err != nil {
				begun <- err
				return
			}
			r.Header.Set("Authorization", "Bearer "+token)
			r.Header.Set("Accept", "text/event-stream")
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err == nil && resp.StatusCode != 200 {
				err = fmt.Errorf("%s", resp.Status)
			}
			begun <- err
			if err != nil {
				return
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && !strings.Contains(string(text), `"status":0`) {
				err = fmt.Errorf("%q", text)
			}
			ended <- err
		}()
	}
	for range n {
		if err := <-begun; err != nil {
			t.Fatal(err)
		}
	}
	if r := x.do("POST", x.far+"/call/shout", "x", "Authorization", "Bearer "+token); r.body != "X" {
		t.Error(r.Status, r.body)
	}
	close(release)
	for range n {
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}
