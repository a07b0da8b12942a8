package main

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/cmd/testbus"
)

// TestSocketMode: the socket is for its user alone.
func TestSocketMode(t *testing.T) {
	x := newSite(t)
	st, err := os.Stat(filepath.Join(x.dir, "gateway"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st.Mode(), err)
	}
}

// TestToken: over TCP a token decides who calls what, until it is revoked.
func TestToken(t *testing.T) {
	x := newSite(t)
	who := func(_ context.Context, inv *bus.Invocation) bus.Result { return bus.Result{Output: []byte(inv.Caller)} }
	x.offer(bus.Offer{Name: "who"}, who)
	x.offer(bus.Offer{Name: "hidden"}, who)
	token := x.token("ci", "who", "missing")
	last := "x"
	if strings.HasSuffix(token, last) {
		last = "y"
	}
	for _, auth := range [][]string{nil, {"Authorization", "Basic eDp5"}, {"Authorization", "Bearer "}, {"Authorization", "Bearer x"}, {"Authorization", "Bearer " + token[:52] + last}} {
		for _, path := range []string{"/call/who", "/call/hidden", "/nothing", "/functions"} {
			r := x.do("POST", x.far+path, "", auth...)
			if r.StatusCode != 401 || r.Header.Get("WWW-Authenticate") != "Bearer" || strings.Contains(r.body, token[:20]) {
				t.Error(auth, path, r.Status, r.Header, r.body)
			}
		}
	}
	auth := []string{"Authorization", "Bearer " + token}
	if r := x.do("POST", x.far+"/call/who", "", auth...); r.StatusCode != 200 || !strings.HasSuffix(r.body, "/token:ci") {
		t.Error(r.Status, r.body)
	}
	hidden, absent := x.do("POST", x.far+"/call/hidden", "", auth...), x.do("POST", x.far+"/call/absent", "", auth...)
	if hidden.StatusCode != 403 || strings.ReplaceAll(hidden.body, "hidden", "absent") != absent.body || absent.StatusCode != 403 {
		t.Error(hidden.Status, hidden.body, absent.Status, absent.body)
	}
	if r := x.do("POST", x.far+"/call/missing", "", auth...); r.StatusCode != 404 {
		t.Error(r.Status, r.body)
	}
	if r := x.do("GET", x.far+"/functions", nil, auth...); r.StatusCode != 200 || !strings.Contains(r.body, `"who"`) || strings.Contains(r.body, "hidden") {
		t.Error(r.Status, r.body)
	}
	if r := x.do("POST", x.far+"/call/fbus.nodes", "", auth...); r.StatusCode != 403 {
		t.Error(r.Status, r.body)
	}
	if r := x.do("POST", x.local+"/call/fbus.nodes", ""); r.StatusCode != 403 {
		t.Error(r.Status, r.body)
	}
	if _, _, err := x.a.Revoke("ci"); err != nil {
		t.Fatal(err)
	}
	testbus.Until(x.t, "the token is refused", func() bool {
		r, err := http.NewRequestWithContext(t.Context(), "POST", x.far+"/call/who", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", auth[1])
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			return false // it was cut off by the end of the token
		}
		resp.Body.Close()
		return resp.StatusCode == 401
	})
}

// TestPlaces: pages of other sites, and requests for other hosts, are refused.
func TestPlaces(t *testing.T) {
	x := newSite(t, func(c *config) { c.Origins, c.Hosts = []string{"https://app.example"}, []string{"bus.example"} })
	x.offer(bus.Offer{Name: "shout"}, upper)
	token := x.token("ci", "*")
	for _, c := range []struct {
		headers []string
		status  int
	}{
		{nil, 200},
		{[]string{"Host", "bus.example"}, 200},
		{[]string{"Host", "localhost:1"}, 200},
		{[]string{"Host", "[::1]:1"}, 200},
		{[]string{"Host", "evil.example"}, 403},
		{[]string{"Host", "127.0.0.1.evil.example"}, 403},
		{[]string{"Origin", "https://app.example"}, 200},
		{[]string{"Origin", "https://evil.example"}, 403},
		{[]string{"Origin", "null"}, 403},
		{[]string{"Origin", x.far}, 200},
	} {
		r := x.do("POST", x.far+"/call/shout", "x", append(c.headers, "Authorization", "Bearer "+token)...)
		if r.StatusCode != c.status {
			t.Error(c.headers, r.Status, r.body)
		}
		if listed := len(c.headers) > 1 && c.headers[1] == "https://app.example"; (r.Header.Get("Access-Control-Allow-Origin") != "") != listed {
			t.Error(c.headers, r.Header)
		}
	}
	r := x.do("OPTIONS", x.far+"/call/shout", nil, "Origin", "https://app.example", "Access-Control-Request-Method", "POST")
	if r.StatusCode != 204 || !strings.Contains(r.Header.Get("Access-Control-Allow-Headers"), "Authorization") {
		t.Error(r.Status, r.Header)
	}
}

// TestNoAuth: what a proxy passes on is refused where no token is needed.
func TestNoAuth(t *testing.T) {
	x := newSite(t, func(c *config) { c.NoAuth = true })
	x.offer(bus.Offer{Name: "shout"}, upper)
	if r := x.do("POST", x.far+"/call/shout", "x"); r.body != "X" {
		t.Error(r.Status, r.body)
	}
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "Via"} {
		if r := x.do("POST", x.far+"/call/shout", "x", name, "a"); r.StatusCode != 403 {
			t.Error(name, r.Status, r.body)
		}
	}
}

// TestLimits: a caller has no more calls and event streams at a time, or a minute, than it may have.
func TestLimits(t *testing.T) {
	x := newSite(t, func(c *config) {
		c.Limits.Calls, c.Limits.Body = 1, 1000
		c.Tokens["token:few"] = tokenConfig{limitConfig: limitConfig{PerMinute: 1}}
	})
	x.offer(bus.Offer{Name: "shout", Slots: 2}, upper)
	began, release := make(chan bool), make(chan bool)
	x.offer(bus.Offer{Name: "hang", Slots: 2}, func(context.Context, *bus.Invocation) bus.Result {
		began <- true
		<-release
		return bus.Exit(0)
	})
	auth, few := []string{"Authorization", "Bearer " + x.token("ci", "*")}, []string{"Authorization", "Bearer " + x.token("few", "*")}
	ended := make(chan *reply)
	go func() { ended <- x.do("POST", x.far+"/call/hang", "", auth...) }() // ends with release
	<-began
	if r := x.do("POST", x.far+"/call/shout", "", auth...); r.StatusCode != 429 || r.Header.Get("Retry-After") != "1" {
		t.Error(r.Status, r.Header, r.body)
	}
	for _, want := range []int{200, 429} {
		if r := x.do("POST", x.far+"/call/shout", "", few...); r.StatusCode != want {
			t.Error(r.Status, r.body)
		}
	}
	close(release)
	<-ended
	if r := x.do("POST", x.far+"/call/shout", "", auth...); r.StatusCode != 200 {
		t.Error(r.Status, r.body)
	}
	long := strings.Repeat("x", 1001)
	for _, path := range []string{"/call/shout", "/jobs/shout"} {
		for range 3 { // a refused one does not count, though the rest of its body is still to come
			for _, body := range []any{long, io.MultiReader(strings.NewReader(long))} {
				if r := x.do("POST", x.far+path, body, auth...); r.StatusCode != 413 {
					t.Error(path, r.Status, r.body)
				}
			}
		}
	}
}

// TestRevokedMeanwhile: a revoked token ends what its holder does, and the answer says why. That holds for
// what began before the gateway watched the node, too.
func TestRevokedMeanwhile(t *testing.T) {
	t.Run("watched", func(t *testing.T) { revokedMeanwhile(t, func(*site) {}) })
	t.Run("earlier", func(t *testing.T) { revokedMeanwhile(t, func(x *site) { x.g.link.tokens.forget() }) })
}

func revokedMeanwhile(t *testing.T, before func(x *site)) {
	x := newSite(t)
	began, gone := make(chan bool), make(chan bool)
	x.offer(bus.Offer{Name: "hang", Slots: 2}, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		began <- true
		<-ctx.Done()
		gone <- true
		return bus.Exit(0)
	})
	token, ends := x.token("ci", "*"), make(chan *reply)
	before(x)
	for _, accept := range []string{"*/*", "text/event-stream"} {
		go func() {
			ends <- x.do("POST", x.far+"/call/hang", "", "Accept", accept, "Authorization", "Bearer "+token)
		}() // ends with the token
		<-began
	}
	if _, _, err := x.a.Revoke("ci"); err != nil {
		t.Fatal(err)
	}
	<-gone
	<-gone
	for range 2 {
		switch r := <-ends; {
		case r.StatusCode == 200 && r.Header.Get("Content-Type") == "text/event-stream" && strings.Contains(r.body, `"code":"revoked"`):
		case r.StatusCode != 401 || r.err != nil || r.Header.Get("Fbus-Code") != "revoked":
			t.Error(r.Status, r.Header, r.body, r.err)
		}
	}
}

// TestRevokedWaiting: who waits for a job when the token is revoked gets 401, although the node ends the job as one that
// the token may not call.
func TestRevokedWaiting(t *testing.T) {
	x := newSite(t)
	began := make(chan bool)
	x.offer(bus.Offer{Name: "hang"}, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		began <- true
		<-ctx.Done()
		return bus.Exit(0)
	})
	for range 20 { // which comes first is a matter of luck
		auth := []string{"Authorization", "Bearer " + x.token("ci", "*")}
		id := x.do("POST", x.far+"/jobs/hang", "", auth...).id(t)
		<-began
		ends := make(chan *reply)
		for _, path := range []string{"/output?wait=1m", "?wait=1m"} {
			go func() { ends <- x.do("GET", x.far+"/jobs/"+id+path, nil, auth...) }() // ends with the job
		}
		if _, _, err := x.a.Revoke("ci"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if r := <-ends; r.StatusCode != 401 {
				t.Error(r.Request.URL, r.Status, r.body)
			}
		}
	}
}

// TestAccessLog: a line says who has asked for what, and has no secret.
func TestAccessLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	x := newSite(t, func(c *config) { c.AccessLog = path })
	x.offer(bus.Offer{Name: "shout"}, upper)
	token := x.token("ci", "*")
	x.do("POST", x.far+"/call/shout?arg=hidden", "x", "Authorization", "Bearer "+token)
	x.do("POST", x.far+"/call/"+token, "x", "Authorization", "Bearer "+token)
	x.do("POST", x.far+"/call/shout", "x", "Authorization", "Bearer fbus_wrong")
	x.stop()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"caller":"token:ci","method":"POST","path":"/call/shout","status":200,`, `"caller":"-"`, `"status":401`, `"call":"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	for _, secret := range []string{"hidden", token[5:20], "fbus_wrong"} {
		if strings.Contains(string(text), secret) {
			t.Errorf("%s in %s", secret, text)
		}
	}
}

// TestForwarded: only what trusted proxies say of the client is believed.
func TestForwarded(t *testing.T) {
	proxies, wrong := parsePrefixes([]string{"10.0.0.0/8", "::1"}, elements{})
	if len(wrong) > 0 {
		t.Fatal(wrong)
	}
	for header, want := range map[string]string{
		"":                                 "invalid IP",
		"unknown":                          "invalid IP",
		"192.0.2.1":                        "192.0.2.1",
		"6.6.6.6, 192.0.2.1":               "192.0.2.1",
		"6.6.6.6,192.0.2.1 , 10.1.2.3,::1": "192.0.2.1",
		"192.0.2.1, unknown, _x":           "192.0.2.1",
		"192.0.2.1:4711":                   "192.0.2.1",
		"[2001:db8::1]:4711":               "2001:db8::1",
		"[2001:db8::1]":                    "2001:db8::1",
		"::ffff:192.0.2.1":                 "192.0.2.1",
		"10.1.2.3":                         "invalid IP",
	} {
		if got := forwarded([]string{header}, proxies).String(); got != want {
			t.Errorf("%q: %s, not %s", header, got, want)
		}
	}
	if got := forwarded([]string{"192.0.2.1"}, nil); got.IsValid() {
		t.Error("without a proxy:", got)
	}
	if got := forwarded([]string{"6.6.6.6", "192.0.2.1"}, proxies).String(); got != "192.0.2.1" {
		t.Error("two lines:", got)
	}
	path := filepath.Join(t.TempDir(), "log")
	x := newSite(t, func(c *config) { c.AccessLog, c.Proxies = path, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	x.do("GET", x.far+"/functions", nil, "Authorization", "Bearer "+x.token("ci", "*"), "X-Forwarded-For", "6.6.6.6, 192.0.2.1")
	x.do("GET", x.far+"/functions", nil, "X-Forwarded-For", "6.6.6.6, 192.0.2.1") // whom to lock out
	x.stop()
	if text, err := os.ReadFile(path); err != nil || strings.Count(string(text), `"from":"192.0.2.1","peer":"127.0.0.1:`) != 2 {
		t.Errorf("%s %v", text, err)
	}
}
