package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/cmd/testbus"
)

// TestUnsentBody: a body that does not come holds no connection that it is not needed for.
func TestUnsentBody(t *testing.T) {
	t.Parallel()
	x := newSite(t)
	x.offer(bus.Offer{Name: "ro", Attributes: map[string]string{"read-only": ""}}, upper)
	auth := "Authorization: Bearer " + x.token("ci", "*") + "\r\n"
	wait := map[string]chan string{}
	for _, first := range []string{
		"GET /healthz", "GET /readyz", "OPTIONS *", "POST /call/ro", "POST /hook/none", "GET /../x", "GET /x?a=%zz",
		"GET /functions/ro\n", "GET /call/ro\n", "GET /nothing\n", "BREW /nothing\n", "POST /jobs/x/retry\n", "DELETE /calls/x\n", "POST /call/ro?as=x\n",
	} {
		done := make(chan string, 1)
		wait[first] = done
		go func() { // ends with the connection
			line, known := strings.CutSuffix(first, "\n")
			header := line + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n"
			if known {
				header += auth
			}
			nc, err := net.Dial("tcp", strings.TrimPrefix(x.far, "http://"))
			if err != nil {
				done <- err.Error()
				return
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(9 * time.Second))
			io.WriteString(nc, header+"\r\n")
			in := bufio.NewReader(nc)
			resp, err := http.ReadResponse(in, nil)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
			}
			if err == nil {
				_, err = in.ReadByte()
			}
			if err != io.EOF {
				done <- "not closed: " + err.Error()
				return
			}
			done <- ""
		}()
	}
	for first, done := range wait {
		if wrong := <-done; wrong != "" {
			t.Errorf("%q: %s", first, wrong)
		}
	}
}

// TestStalledBody: Fbus-Timeout ends a call also while its body stalls. It does not hold for the body of a job.
func TestStalledBody(t *testing.T) {
	t.Parallel()
	x := newSite(t)
	x.offer(bus.Offer{Name: "echo"}, echo)
	// begin sends a request whose body stalls.
	begin := func(path, header, body string) (net.Conn, *bufio.Reader) {
		nc, err := net.Dial("unix", x.g.cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		io.WriteString(nc, "POST "+path+" HTTP/1.1\r\nHost: x\r\nFbus-Timeout: 200ms\r\n"+header+"\r\n\r\n"+body)
		return nc, bufio.NewReader(nc)
	}
	const length, js = "Content-Length: 9\r\n", "Content-Type: application/json"
	job, answer := begin("/jobs/echo", length+js, `{"a"`)
	for name, c := range map[string]struct{ header, body string }{
		"small":   {length + "Content-Type: text/plain", "abc"},
		"JSON":    {length + js, `{"a"`},
		"chunked": {"Transfer-Encoding: chunked\r\n" + js, "4\r\n{\"a\""},
		"a form":  {"Content-Length: 999\r\nContent-Type: multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=a\r\n\r\n1"},
	} {
		nc, in := begin("/call/echo", c.header, c.body)
		nc.SetDeadline(time.Now().Add(leftoverTime - time.Second)) // it does not wait for the rest
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != 504 || resp.Header.Get("Fbus-Code") != "deadline" || !resp.Close {
			t.Errorf("%s: %s %v", name, resp.Status, resp.Header)
		}
	}
	io.WriteString(job, `:"b"}`)
	if resp, err := http.ReadResponse(answer, nil); err != nil || resp.StatusCode != 202 {
		t.Error(resp, err)
	}
}

// TestRefusals: what is not understood is refused, never ignored.
func TestRefusals(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "echo", Attributes: map[string]string{"read-only": ""}}, echo)
	x.offer(bus.Offer{Name: "other"}, upper)
	const key, accept, js = "Idempotency-Key", "Accept", "application/problem+json"
	for name, c := range map[string]struct {
		method, path string
		headers      []string
		status       int
		kind         string
	}{
		"a bad escape in an argument": {"POST", "/call/echo?arg=%zz", nil, 400, ""},
		"one in a job's":              {"POST", "/jobs/echo?arg=%", nil, 400, ""},
		"one in a list's":             {"GET", "/jobs?limit=1&x=%zz", nil, 400, ""},
		"one in a hook's":             {"POST", "/hook/x?%zz", nil, 400, ""},
		"another status":              {"POST", "/call/echo?status=bogus", nil, 400, ""},
		"an empty status":             {"POST", "/call/echo?status=", nil, 400, ""},
		"an empty as":                 {"POST", "/call/echo?as=", nil, 400, ""},
		"an empty batch":              {"GET", "/jobs?batch=", nil, 400, ""},
		"an empty limit":              {"GET", "/jobs?limit", nil, 400, ""},
		"an empty argument":           {"POST", "/call/echo?arg=", nil, 200, ""},
		"a job needs no status":       {"POST", "/call/echo?status=header", []string{"Prefer", "respond-async"}, 202, ""},
		"two keys":                    {"POST", "/jobs/echo", []string{key, "a", key, "b"}, 400, ""},
		"an empty key":                {"POST", "/jobs/echo", []string{key, ""}, 400, ""},
		"an empty string as key":      {"POST", "/jobs/echo", []string{key, `""`}, 400, ""},
		"no such path":                {"GET", "/nothing", []string{accept, js}, 404, js},
		"no such path, as text":       {"GET", "/nothing", nil, 404, "text/plain; charset=utf-8"},
		"another method":              {"DELETE", "/functions", []string{accept, js}, 405, js},
		"another method of a call":    {"PUT", "/call/echo", []string{accept, js}, 405, js},
		"q=0":                         {"GET", "/nothing", []string{accept, js + ";q=0, text/plain"}, 404, "text/plain; charset=utf-8"},
		"a parameter of none":         {"GET", "/functions?x=1", nil, 400, ""},
		"of one function":             {"GET", "/functions/echo?x=1", nil, 400, ""},
		"of calls":                    {"GET", "/calls?x=1", nil, 400, ""},
		"of the metrics":              {"GET", "/metrics?x=1", nil, 400, ""},
		"of the description":          {"GET", "/openapi.json?x", nil, 400, ""},
		"of a probe":                  {"GET", "/healthz?x=1", nil, 200, ""},
		"a list after no id":          {"GET", "/jobs?after=none", nil, 400, ""},
		"a list after a lost job":     {"GET", "/jobs?after=01ARZ3NDEKTSV4RRFFQ69G5FAV", nil, 200, ""},
		"two of a name":               {"POST", "/jobs/echo?retries=5&retries=6", nil, 400, ""},
		"two as":                      {"POST", "/call/echo?as=input&as=x", nil, 400, ""},
		"two args":                    {"POST", "/call/echo?arg=1&arg=1", nil, 200, ""},
		"two timeouts":                {"POST", "/call/echo", []string{"Fbus-Timeout", "1s", "Fbus-Timeout", "2s"}, 400, ""},
		"two waits":                   {"POST", "/jobs/echo", []string{"Fbus-Wait", "1s", "Fbus-Wait", "2s"}, 400, ""},
		"a key for a call":            {"POST", "/call/echo", []string{key, "a"}, 400, ""},
		"a key for an async call":     {"POST", "/call/echo", []string{key, "a", "Prefer", "respond-async"}, 202, ""},
		"another charset":             {"POST", "/call/echo", []string{"body", "{}", "Content-Type", "application/json; charset=latin1"}, 415, ""},
		"UTF-8":                       {"POST", "/call/echo", []string{"body", "{}", "Content-Type", "application/json; charset=UTF-8"}, 200, ""},
		"GET with a body":             {"GET", "/call/echo", []string{"body", "x"}, 400, ""},
	} {
		var body any
		if len(c.headers) > 0 && c.headers[0] == "body" {
			body = c.headers[1]
		}
		r := x.do(c.method, x.local+c.path, body, c.headers...)
		if r.StatusCode != c.status || c.kind != "" && r.Header.Get("Content-Type") != c.kind || (c.status == 405) != (r.Header.Get("Allow") != "") {
			t.Errorf("%s: %s %v %s", name, r.Status, r.Header, r.body)
		}
	}
	for path, want := range map[string]string{"/call/echo": "GET, HEAD, POST", "/call/other": "POST", "/call/none": "POST"} {
		if r := x.do("PUT", x.local+path, nil); r.StatusCode != 405 || r.Header.Get("Allow") != want {
			t.Error(path, r.Status, r.Header)
		}
	}
	id := x.do("POST", x.local+"/jobs/echo", nil).id(t)
	x.do("GET", x.local+"/jobs/"+id+"?wait=10s", nil)
	if r := x.do("GET", x.local+"/jobs/"+id+"?wait=-1s", nil); r.StatusCode != 400 {
		t.Error(r.Status, r.body)
	}
	// A field that follows a large file is refused, with the reason.
	large := "--x\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\n" + strings.Repeat("x", 2<<20) +
		"\r\n--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n"
	if r := x.do("POST", x.local+"/call/other", large, "Content-Type", "multipart/form-data; boundary=x"); r.StatusCode != 400 || !strings.Contains(r.body, "put the fields first") {
		t.Error(r.Status, r.body)
	}
	bearer := "Bearer " + x.token("ci", "*")
	if r := x.do("GET", x.far+"/functions", nil, "Authorization", bearer, "Authorization", bearer); r.StatusCode != 400 {
		t.Error("two credentials:", r.Status, r.body)
	}
}

// TestCrossSite: where no token is needed, pages of other sites get nothing.
func TestCrossSite(t *testing.T) {
	x := newSite(t, func(c *config) { c.NoAuth = true })
	x.offer(bus.Offer{Name: "shout"}, upper)
	for site, want := range map[string]int{"cross-site": 403, "same-origin": 200, "none": 200} {
		if r := x.do("POST", x.far+"/call/shout", "x", "Sec-Fetch-Site", site); r.StatusCode != want {
			t.Error(site, r.Status, r.body)
		}
	}
}

// TestStderrIsForFew: what a program writes to stderr is shown to those that may see it.
func TestStderrIsForFew(t *testing.T) {
	x := newSite(t, func(c *config) { c.Tokens["token:dev"] = tokenConfig{Stderr: true} })
	x.offer(bus.Offer{Name: "exits"}, exits)
	x.offer(bus.Offer{Name: "fails", Attributes: map[string]string{"tool": ""}}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		io.WriteString(inv.Stderr, "secret reason\n")
		return bus.Exit(3)
	})
	testbus.Until(x.t, "the tool", func() bool { return strings.Contains(x.tool("tools/list", "").body, `"fbus/function":"fails"`) })
	for name, shown := range map[string]bool{"ci": false, "dev": true} {
		auth := []string{"Authorization", "Bearer " + x.token(name, "exits", "fails")}
		id := x.do("POST", x.far+"/jobs/exits", "3", auth...).id(t)
		if r := x.do("GET", x.far+"/jobs/"+id+"/output?wait=10s", nil, auth...); r.StatusCode != 500 {
			t.Error(name, r.Status)
		}
		for what, r := range map[string]*reply{
			"a job's":  x.do("GET", x.far+"/jobs/"+id+"/stderr", nil, auth...),
			"events":   x.do("POST", x.far+"/call/exits", "3", append(auth, "Accept", "text/event-stream")...),
			"a tool's": x.toolAt(x.far, "tools/call", "fails", auth...),
			"problem":  x.do("POST", x.far+"/call/exits", "3", append(auth, "Accept", "application/problem+json")...),
		} {
			if strings.Contains(r.body, "secret reason") != shown || !shown && what == "a job's" && r.StatusCode != 403 {
				t.Error(name, what, r.Status, r.body)
			}
		}
	}
}

// TestEndOfToken: the end of a token is said to whoever waits.
func TestEndOfToken(t *testing.T) {
	x := newSite(t)
	began := make(chan bool)
	x.offer(bus.Offer{Name: "hang", Slots: 9}, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		began <- true
		<-ctx.Done()
		return bus.Exit(0)
	})
	replies := make(chan *reply, 3)
	auth := []string{"Authorization", "Bearer " + x.token("gone", "*")}
	id := x.do("POST", x.far+"/jobs/hang", "", auth...).id(t)
	<-began
	for _, c := range [][]string{{"POST", "/call/hang", "*/*"}, {"POST", "/call/hang", "text/event-stream"}, {"GET", "/jobs/" + id + "?wait=1m", "*/*"}} {
		go func() { replies <- x.do(c[0], x.far+c[1], nil, append(slices.Clone(auth), "Accept", c[2])...) }() // ends with the token
		if c[0] == "POST" {
			<-began
		}
	}
	testbus.Until(x.t, "all wait", func() bool { r := x.do("GET", x.local+"/calls", nil); return strings.Count(r.body, `"hang"`) >= 3 })
	if _, _, err := x.a.Revoke("gone"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r := <-replies
		stream := r.Header.Get("Content-Type") == "text/event-stream"
		if r.err != nil || !stream && (r.StatusCode != 401 || r.Header.Get("WWW-Authenticate") == "" || !strings.Contains(r.body, "revoked")) || stream && !strings.Contains(r.body, "event: end\ndata: {\"source\":\"fbus\",\"status\":77,\"code\":\"revoked\"") {
			t.Error(r.Request.URL, r.Status, r.Header, r.body, r.err)
		}
	}
}

// TestExpiry: a credential ends when it expires, whether the node says so or not.
func TestExpiry(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		expires time.Time
		ended   bool
	}{{time.Time{}, false}, {now.Add(time.Hour), false}, {now.Add(-time.Second), true}} {
		if err := (&caller{name: "token:x", valid: t.Context(), expires: c.expires}).ended(); (err != nil) != c.ended {
			t.Error(c.expires, err)
		}
	}
}
