package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// got is a webhook that has arrived.
type got struct {
	header http.Header
	path   string
	body   string
}

// receiver is a server that answers webhooks with a status.
type receiver struct {
	*httptest.Server
	status atomic.Int32
	got    chan got
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{got: make(chan got, 100)}
	r.status.Store(200)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.got <- got{req.Header, req.URL.String(), string(body)}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(int(r.status.Load()))
		io.WriteString(w, "thanks")
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) next(t *testing.T) got {
	t.Helper()
	select {
	case g := <-r.got:
		return g
	case <-time.After(20 * time.Second):
		t.Fatal("no webhook came")
		return got{}
	}
}

// send offers the functions of these tables, as the gateway does.
func (b *bed) send(tables map[string]Send) {
	b.t.Helper()
	w, faults := NewWorker(tables, bus.Options{Node: b.Path})
	for _, f := range faults {
		b.t.Fatal(f)
	}
	if err := w.Start(context.Background()); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(w.Close)
}

// post posts a job, and returns how it ended.
func (b *bed) post(words ...string) bus.JobInfo {
	b.t.Helper()
	var id bytes.Buffer
	if _, err := b.worker.Call(context.Background(), &bus.Request{Function: "fbus.post", Args: bus.List(words...), Input: strings.NewReader("in"), Stdout: &id}); err != nil {
		b.t.Fatal(err)
	}
	return b.ended(strings.TrimSpace(id.String()))
}

// ended returns a job when it has ended.
func (b *bed) ended(id string) bus.JobInfo {
	b.t.Helper()
	query, _ := json.Marshal(bus.JobWait{IDs: []string{id}})
	b.ask("fbus.wait", string(query))
	first, _, _ := strings.Cut(b.ask("fbus.jobs", string(query)), "\n")
	var j bus.JobInfo
	if err := json.Unmarshal([]byte(first), &j); err != nil {
		b.t.Fatal(err)
	}
	return j
}

// TestSend: the end of a job is sent with the headers of Standard Webhooks, by which the reference library knows
// it, under both secrets. Its answer decides what becomes of the job.
func TestSend(t *testing.T) {
	b := newBed(t)
	r := newReceiver(t)
	keys := []string{"whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
	b.send(map[string]Send{"webhook": {URL: r.URL + "/x?key=1", SecretFile: secretFile(t, keys...)}})
	b.offer("work", succeed)
	first := b.post("work", `{"then":"webhook","retries":1,"backoff":0.001}`)
	g := r.next(t)
	for _, key := range keys {
		judge, err := standardwebhooks.NewWebhook(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := judge.Verify([]byte(g.body), g.header); err != nil {
			t.Error(err)
		}
	}
	child := b.ended(first.ID).Children[0]
	for name, want := range map[string]string{
		"Webhook-Id": child, "Content-Type": "application/json", "Fbus-Job": first.ID, "Fbus-Function": "work", "Fbus-Status": "0", "Fbus-Attempts": "1",
	} {
		if g.header.Get(name) != want {
			t.Errorf("%s is %q, expected %q", name, g.header.Get(name), want)
		}
	}
	if g.path != "/x?key=1" || g.body != `{"ok":true}` {
		t.Errorf("%+v", g)
	}
	if j := b.ended(child); j.State != "done" || j.Out != 6 {
		t.Errorf("%+v", j)
	}
	for status, want := range map[int]struct {
		state    bus.JobState
		attempts int
	}{204: {"done", 1}, 503: {"dead", 3}, 429: {"dead", 3}, 408: {"dead", 3}, 404: {"dead", 1}, 410: {"dead", 1}, 302: {"dead", 1}} {
		r.status.Store(int32(status))
		j := b.post("webhook", `{"retries":2,"backoff":0.001}`)
		if j.State != want.state || j.Attempts != want.attempts || want.state == "dead" && !strings.Contains(j.Message, fmt.Sprint(status)) || strings.Contains(j.Message, "key") {
			t.Errorf("%d: %s after %d attempts: %s", status, j.State, j.Attempts, j.Message)
		}
		id := ""
		for range want.attempts {
			g := r.next(t)
			if id = g.header.Get("Webhook-Id"); id != j.ID || g.body != "in" || g.path != "/x?key=1" {
				t.Errorf("%d: %+v", status, g)
			}
		}
	}
	if len(r.got) > 0 {
		t.Errorf("redirected: %+v", <-r.got)
	}
}

// TestSendTo: a call may name a host that is listed, and nothing that is not public without being listed.
func TestSendTo(t *testing.T) {
	b := newBed(t)
	r := newReceiver(t)
	port := r.URL[strings.LastIndex(r.URL, ":"):]
	b.send(map[string]Send{
		"any":    {Allow: []string{"*"}},
		"listed": {Allow: []string{"*.example", "localhost" + port, "127.0.0.0/30", "[::1]"}},
		"ip":     {Allow: []string{"local*", "127.0.0.1" + port}},
	})
	call := func(name string, a bus.Args) error {
		_, err := b.worker.Call(context.Background(), &bus.Request{Function: name, Args: a, Input: strings.NewReader("in")})
		return err
	}
	for name, a := range map[string]bus.Args{
		"word":   bus.List(r.URL + "/a"),
		"field":  bus.Fields(bus.Field{Name: "url", Value: "http://localhost" + port + "/a"}),
		"fields": bus.Fields(bus.Field{Name: "url", Value: r.URL + "/a"}, bus.Field{Name: "body", Value: "in"}),
		"JSON":   bus.JSON([]byte(`{"url":"` + r.URL + `/a","body":"in"}`)),
		"list":   bus.JSON([]byte(`["` + r.URL + `/a"]`)),
	} {
		if err := call("listed", a); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if g := r.next(t); g.path != "/a" || g.body != "in" || g.header.Get("Webhook-Signature") != "" || g.header.Get("Webhook-Timestamp") == "" {
			t.Errorf("%s: %+v", name, g)
		}
	}
	if err := call("ip", bus.List("http://localhost"+port)); err != nil {
		t.Error(err)
	}
	r.next(t)
	for _, c := range []struct{ function, url, want string }{
		{"any", "http://localhost" + port, "not public"},
		{"any", r.URL, "not allowed"},
		{"any", "http://[::1]" + port, "not allowed"},
		{"listed", "http://127.0.0.9" + port, "not allowed"},
		{"listed", "http://localhost:1/", "not allowed"},
		{"listed", "http://example.com/", "not allowed"},
		{"listed", "http://x.example@127.0.0.9/", "user name"},
		{"listed", "ftp://x.example/", "https://"},
		{"listed", "file:///etc/passwd", "https://"},
		{"listed", "", "no URL"},
	} {
		err := call(c.function, bus.List(c.url))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, expected %q", c.function, c.url, err, c.want)
		}
	}
	if err := call("listed", bus.List("a", "b")); err == nil {
		t.Error("two words were taken")
	}
	if len(r.got) > 0 {
		t.Errorf("arrived: %+v", <-r.got)
	}
}

func TestPublic(t *testing.T) {
	for text, want := range map[string]bool{
		"93.184.216.34": true, "2606:2800:220:1::1": true, "172.32.0.1": true, "100.128.0.1": true,
		"127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false, "0.0.0.0": false,
		"255.255.255.255": false, "224.0.0.1": false, "::1": false, "::": false, "fe80::1": false, "fd00::1": false, "ff02::1": false,
		"64:ff9b::7f00:1": false, "2002:7f00:1::": false, "2001::1": false,
	} {
		if got := public(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: public is %v", text, got)
		}
	}
}

// TestSendFaults: a check lists all that is wrong with a table.
func TestSendFaults(t *testing.T) {
	open := secretFile(t, "c2VjcmV0")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		send Send
		want []string
	}{
		{"webhook", Send{Allow: []string{"*.example.com:8443", "10.0.0.0/8", "[::1]:80", "localhost"}}, nil},
		{"fbus.webhook", Send{}, []string{"invalid function name", "url or allow is needed"}},
		{"webhook", Send{URL: "example.com", Allow: []string{"https://example.com", "a:b", "[x]", ""}, SecretFile: open},
			[]string{"allow: ", "allow: ", "allow: ", "allow: ", "url: ", "secret-file: "}},
		{"webhook", Send{URL: "https://u:p@example.com", SecretFile: "/none"}, []string{"url: ", "secret-file: "}},
	} {
		faults := c.send.Check(c.name)
		if len(faults) != len(c.want) {
			t.Errorf("%+v: %v", c.send, faults)
			continue
		}
		for i, f := range faults {
			if !strings.Contains(f.Error(), c.want[i]) {
				t.Errorf("%q, expected %q", f.Error(), c.want[i])
			}
		}
	}
}
