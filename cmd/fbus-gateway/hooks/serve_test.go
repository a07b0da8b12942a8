package hooks

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func mac(newHash func() hash.Hash, secret, text string) []byte {
	m := hmac.New(newHash, []byte(secret))
	io.WriteString(m, text)
	return m.Sum(nil)
}

// github returns the headers of a delivery by GitHub.
func github(secret, body, event, id string) map[string]string {
	return map[string]string{
		"Content-Type": "application/json", "X-GitHub-Event": event, "X-GitHub-Delivery": id,
		"X-Hub-Signature-256": "sha256=" + hex.EncodeToString(mac(sha256.New, secret, body)),
	}
}

const push = `{"ref":"refs/heads/main","after":"abc","n":12345678901234567890,"commits":[{"id":"c1"}],"ok":true}`

// TestGitHubVector: the signature in GitHub's documentation is accepted.
func TestGitHubVector(t *testing.T) {
	b := newBed(t)
	calls := b.offer("deploy", succeed)
	s := b.serve(map[string]Config{"github": {
		Function: "deploy", SecretFile: secretFile(t, "It's a Secret to Everybody"), Verify: "github", Args: []string{"{body}"},
	}})
	header := map[string]string{
		"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
		"X-GitHub-Delivery":   "1", "X-GitHub-Event": "push", "Content-Type": "text/plain",
	}
	if status, text := send(t, "POST", s.URL+"/hook/github", "Hello, World!", header); status != 202 {
		t.Fatalf("%d %s", status, text)
	}
	if c := next(t, calls); c.args != "Hello, World!" || c.caller != fmt.Sprintf("uid:%d/hook:github", os.Getuid()) {
		t.Errorf("%+v", c)
	}
	if status, _ := send(t, "POST", s.URL+"/hook/github", "Hello, World?", header); status != 401 {
		t.Errorf("another body: %d", status)
	}
	b.none(calls)
}

// TestGitHub: a delivery is posted once, whatever its sender or others repeat; pings and what the conditions
// exclude run nothing.
func TestGitHub(t *testing.T) {
	b := newBed(t)
	calls := b.offer("deploy", succeed)
	s := b.serve(map[string]Config{"gh": {
		Function: "deploy", SecretFile: secretFile(t, "old", "new"), Verify: "github",
		Args: []string{"{header.x-github-event}", "{body.ref}", "{body.commits.0.id}", "n={body.n}", "{{{body.commits}}}", "{query.q}"},
		When: []any{`body.ref == "refs/*"`, `body.ref != "refs/tags/?*"`},
	}})
	url := s.URL + "/hook/gh?q=1"
	post := func(body string, header map[string]string) (int, string) { return send(t, "POST", url, body, header) }

	status, first := post(push, github("new", push, "push", "d1"))
	if status != 202 {
		t.Fatalf("%d %s", status, first)
	}
	var got struct{ Job string }
	if err := json.Unmarshal([]byte(first), &got); err != nil || len(got.Job) != 26 {
		t.Fatalf("%s: %v", first, err)
	}
	if c := next(t, calls); c.args != `push|refs/heads/main|c1|n=12345678901234567890|{[{"id":"c1"}]}|1` || c.job != got.Job {
		t.Errorf("%+v", c)
	}
	if status, again := post(push, github("old", push, "push", "d1")); status != 202 || again != first {
		t.Errorf("delivered again: %d %s", status, again)
	}
	if status, text := post(push, github("new", push, "push", "d2")); status != 409 {
		t.Errorf("replayed with another id: %d %s", status, text)
	}
	other := strings.Replace(push, "abc", "def", 1)
	other = strings.Replace(other, "c1", "c2", 1)
	if status, text := post(other, github("new", other, "push", "d1")); status != 409 {
		t.Errorf("another body of that id: %d %s", status, text)
	}
	same := strings.Replace(push, "abc", "def", 1)
	if status, text := post(same, github("new", same, "push", "d1")); status != 409 {
		t.Errorf("another body of that id, with the same arguments: %d %s", status, text)
	}
	nameless := github("new", same, "push", "")
	delete(nameless, "X-GitHub-Delivery")
	if status, text := post(same, nameless); status != 422 || !strings.Contains(text, "X-Github-Delivery") {
		t.Errorf("no id: %d %s", status, text)
	}
	if status, text := post(`{"zen":"x"}`, github("new", `{"zen":"x"}`, "ping", "d3")); status != 200 || !strings.Contains(text, "pong") {
		t.Errorf("ping: %d %s", status, text)
	}
	tag := strings.Replace(push, "heads/main", "tags/v1", 1)
	if status, text := post(tag, github("new", tag, "push", "d4")); status != 200 || !strings.Contains(text, "ignored") {
		t.Errorf("a tag: %d %s", status, text)
	}
	if status, text := post(`{"ref":"refs/x"}`, github("new", `{"ref":"refs/x"}`, "push", "d5")); status != 422 || !strings.Contains(text, "body.commits.0.id") {
		t.Errorf("a field is missing: %d %s", status, text)
	}
	for name, header := range map[string]map[string]string{
		"wrong secret": github("wrong", push, "push", "d6"),
		"no signature": {"X-GitHub-Event": "ping", "X-GitHub-Delivery": "d6"},
		"empty":        {"X-GitHub-Delivery": "d6", "X-Hub-Signature-256": "sha256="},
	} {
		if status, text := post(push, header); status != 401 || strings.Contains(text, "new") {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	if status, _ := send(t, "GET", url, "", nil); status != 405 {
		t.Errorf("GET: %d", status)
	}
	if status, _ := send(t, "POST", s.URL+"/hook/other", push, github("new", push, "push", "d7")); status != 404 {
		t.Errorf("no such hook: %d", status)
	}
	b.none(calls)
}

// TestGitHubForm: GitHub's other content type gives the same body.
func TestGitHubForm(t *testing.T) {
	b := newBed(t)
	calls := b.offer("deploy", succeed)
	s := b.serve(map[string]Config{"gh": {Function: "deploy", SecretFile: secretFile(t, "s"), Verify: "github", Args: []string{"{body.ref}"}}})
	body := "payload=%7B%22ref%22%3A%22r%22%7D"
	header := github("s", body, "push", "1")
	header["Content-Type"] = "application/x-www-form-urlencoded"
	if status, text := send(t, "POST", s.URL+"/hook/gh", body, header); status != 202 {
		t.Fatalf("%d %s", status, text)
	}
	if c := next(t, calls); c.args != "r" {
		t.Errorf("%+v", c)
	}
}

// TestStandard: the reference library's deliveries are accepted, but not old ones. The whole request is one
// JSON document, the same for each attempt at a delivery, without secrets.
func TestStandard(t *testing.T) {
	b := newBed(t)
	calls := b.offer("paid", succeed)
	key := "whsec_" + base64.StdEncoding.EncodeToString([]byte("0123456789abcdef01234567"))
	s := b.serve(map[string]Config{"pay": {Function: "paid", Verify: "standard", SecretFile: secretFile(t, key)}})
	signer, err := standardwebhooks.NewWebhook(key)
	if err != nil {
		t.Fatal(err)
	}
	post := func(id string, at time.Time, body string) (int, string) {
		signature, err := signer.Sign(id, at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return send(t, "POST", s.URL+"/hook/pay?a=1&b=2&b=3", body, map[string]string{
			"Webhook-Id": id, "Webhook-Timestamp": fmt.Sprint(at.Unix()), "Webhook-Signature": "v1,AAAA " + signature,
			"Content-Type": "application/json", "Authorization": "Bearer secret", "X-Custom": "<1>", "X-Gitlab-Token": "x", "X-Api-Key": "x",
		})
	}
	now := time.Now()
	status, first := post("msg_1", now, `{"b":1.50,"a":"<"}`)
	if status != 202 {
		t.Fatalf("%d %s", status, first)
	}
	want := `{"headers":{"content-type":"application/json","webhook-id":"msg_1","x-custom":"<1>"},"query":{"a":"1","b":["2","3"]},"body":{"a":"<","b":1.50}}`
	if c := next(t, calls); c.args != want {
		t.Errorf("got  %s\nwant %s", c.args, want)
	}
	if status, again := post("msg_1", now.Add(3*time.Second), `{"b":1.50,"a":"<"}`); status != 202 || again != first {
		t.Errorf("tried again: %d %s", status, again)
	}
	for _, off := range []time.Duration{-301 * time.Second, 310 * time.Second} {
		if status, text := post("msg_2", now.Add(off), `{}`); status != 401 || !strings.Contains(text, "time") {
			t.Errorf("%v off: %d %s", off, status, text)
		}
	}
	b.none(calls)
}

// TestHMAC: other senders' ways to sign, with the time.
func TestHMAC(t *testing.T) {
	b := newBed(t)
	calls := b.offer("f", succeed)
	file := secretFile(t, "s3")
	s := b.serve(map[string]Config{
		"slack": {
			Function: "f", SecretFile: file, Verify: "hmac", Header: "x-slack-signature", Prefix: "v0=",
			Signed: "v0:{header.X-Slack-Request-Timestamp}:{body}", Timestamp: "X-Slack-Request-Timestamp", Args: []string{"{body.command}"},
		},
		"shop": {Function: "f", SecretFile: file, Verify: "hmac", Header: "X-Shop-Hmac", Encoding: "base64", ID: "{header.X-Id}", Args: []string{}},
		"old":  {Function: "f", SecretFile: file, Verify: "hmac", Header: "X-Sig", Algorithm: "sha1", Args: []string{"old"}},
		"long": {Function: "f", SecretFile: file, Verify: "hmac", Header: "X-Sig", Algorithm: "sha512", Args: []string{"long"}},
	})
	slack := func(at time.Time, form string) (int, string) {
		stamp := fmt.Sprint(at.Unix())
		return send(t, "POST", s.URL+"/hook/slack", form, map[string]string{
			"Content-Type": "application/x-www-form-urlencoded", "X-Slack-Request-Timestamp": stamp,
			"X-Slack-Signature": "v0=" + hex.EncodeToString(mac(sha256.New, "s3", "v0:"+stamp+":"+form)),
		})
	}
	if status, text := slack(time.Now(), "command=%2Fgo&x=1"); status != 202 {
		t.Errorf("%d %s", status, text)
	}
	if c := next(t, calls); c.args != "/go" {
		t.Errorf("%+v", c)
	}
	if status, text := slack(time.Now().Add(-6*time.Minute), "command=%2Fgo"); status != 401 {
		t.Errorf("old: %d %s", status, text)
	}
	for name, signature := range map[string][2]string{
		"shop": {"X-Shop-Hmac", base64.StdEncoding.EncodeToString(mac(sha256.New, "s3", "x"))},
		"old":  {"X-Sig", hex.EncodeToString(mac(sha1.New, "s3", "x"))},
		"long": {"X-Sig", hex.EncodeToString(mac(sha512.New, "s3", "x"))},
	} {
		header := map[string]string{signature[0]: signature[1], "X-Id": "1"}
		if status, text := send(t, "POST", s.URL+"/hook/"+name, "x", header); status != 202 {
			t.Errorf("%s: %d %s", name, status, text)
		}
		next(t, calls)
		if status, _ := send(t, "POST", s.URL+"/hook/"+name, "x", header); status != 202 {
			t.Errorf("%s again: %d", name, status)
		}
	}
	b.none(calls)
}

// TestToken: a hook in mode call answers with the output; what has succeeded is not run again, what has
// failed is.
func TestToken(t *testing.T) {
	b := newBed(t)
	var status atomic.Int32
	calls := b.offer("f", func() bus.Result {
		if s := status.Load(); s != 0 {
			return bus.Exit(int(s))
		}
		return bus.Result{Output: []byte("done")}
	})
	s := b.serve(map[string]Config{
		"lab": {Function: "f", SecretFile: secretFile(t, "t0ken"), Verify: "token", Header: "X-Gitlab-Token", Mode: "call", ID: "{header.X-Gitlab-Event-UUID}", Args: []string{"{body.a}"}},
		"any": {Function: "none", SecretFile: secretFile(t, "t0ken"), Verify: "token", Mode: "call"},
	})
	post := func(id, token string) (int, string) {
		return send(t, "POST", s.URL+"/hook/lab", `{"a":"1"}`, map[string]string{"X-Gitlab-Token": token, "X-Gitlab-Event-UUID": id})
	}
	status.Store(69)
	if got, text := post("1", "t0ken"); got != 404 || strings.Contains(text, "exit") {
		t.Errorf("%d %s", got, text)
	}
	next(t, calls)
	status.Store(75)
	if got, _ := post("1", "t0ken"); got != 503 {
		t.Errorf("busy: %d", got)
	}
	next(t, calls)
	if got, text := send(t, "POST", s.URL+"/hook/lab", `{"a":"1","b":2}`, map[string]string{"X-Gitlab-Token": "t0ken", "X-Gitlab-Event-UUID": "1"}); got != 409 {
		t.Errorf("other content of a call that failed: %d %s", got, text)
	}
	status.Store(0)
	if got, text := post("1", "t0ken"); got != 200 || text != "done" {
		t.Errorf("%d %s", got, text)
	}
	next(t, calls)
	if got, _ := post("1", "t0ken"); got != 409 {
		t.Errorf("again: %d", got)
	}
	for _, token := range []string{"", "t0ke", "t0ken ", "t0kenn", "Bearer t0ken"} {
		if got, _ := post("2", strings.TrimSpace(token)+"x"); got != 401 {
			t.Errorf("token %q: %d", token, got)
		}
	}
	if got, text := post("two words", "t0ken"); got != 400 {
		t.Errorf("id with a space: %d %s", got, text)
	}
	if got, text := send(t, "POST", s.URL+"/hook/any", "", map[string]string{"Authorization": "bearer t0ken"}); got != 404 || !strings.Contains(text, "no_function") {
		t.Errorf("no function: %d %s", got, text)
	}
	b.none(calls)
}

// TestBodies: a body is bounded, and what claims to be JSON has to be that.
func TestBodies(t *testing.T) {
	b := newBed(t)
	s := b.serve(map[string]Config{"x": {Function: "f", SecretFile: secretFile(t, "t"), Verify: "token"}})
	post := func(body io.Reader, kind string) int {
		r, err := http.NewRequest("POST", s.URL+"/hook/x", body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer t")
		r.Header.Set("Content-Type", kind)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer.StatusCode
	}
	large := strings.Repeat("x", maxBody+1)
	for _, c := range []struct {
		name, kind string
		body       io.Reader
		want       int
	}{
		{"large", "text/plain", strings.NewReader(large), 413},
		{"large, of unknown length", "text/plain", io.MultiReader(strings.NewReader(large)), 413},
		{"no JSON", "application/json", strings.NewReader(`{"a":1} x`), 400},
		{"JSON that begins twice", "application/hal+json", strings.NewReader(`{}{}`), 400},
		{"deep", "application/json", strings.NewReader(strings.Repeat("[", 1<<20)), 400},
		{"not text", "", strings.NewReader("\xff"), 400},
		{"no content", "application/json", strings.NewReader(""), 400},
	} {
		if got := post(c.body, c.kind); got != c.want {
			t.Errorf("%s: %d, expected %d", c.name, got, c.want)
		}
	}
}

// TestBodiesAtOnce: senders that are not verified cannot fill the memory, and leave the room when they go.
func TestBodiesAtOnce(t *testing.T) {
	h, faults := New(map[string]Config{"x": {Function: "f", SecretFile: secretFile(t, "t"), Verify: "token"}})
	if faults != nil {
		t.Fatal(faults)
	}
	h.room = 100_000
	post := func(body io.Reader) chan int {
		status := make(chan int, 1)
		go func() { // ends with the body
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("POST", "/hook/x", body))
			status <- w.Code
		}()
		return status
	}
	held, feed := io.Pipe()
	first := post(held)
	feed.Write(make([]byte, 32<<10))
	feed.Write(make([]byte, 32<<10))
	feed.Write([]byte("x")) // the one before was counted
	if got := <-post(strings.NewReader(strings.Repeat("x", 50_000))); got != 503 {
		t.Errorf("another body: %d", got)
	}
	if got := <-post(strings.NewReader(strings.Repeat("x", 10_000))); got != 401 {
		t.Errorf("a small body: %d", got)
	}
	feed.Close()
	if got := <-first; got != 401 {
		t.Errorf("the first body: %d", got)
	}
	if got := <-post(strings.NewReader(strings.Repeat("x", 90_000))); got != 401 {
		t.Errorf("a body after it: %d", got)
	}
}
