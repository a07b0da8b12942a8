package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/cmd/fbus-gateway/hooks"
	"fbus/cmd/testbus"
)

func writeSecret(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWebhook: a webhook needs no token, only its signature; it runs as a job of the hook.
func TestWebhook(t *testing.T) {
	x := newSite(t, func(cfg *config) {
		cfg.Hooks = map[string]hooks.Config{"gh": {Function: "deploy", Verify: "github", SecretFile: writeSecret(t, "s"), Args: []string{"{body.ref}"}}}
	})
	calls := make(chan string, 10)
	x.offer(bus.Offer{Name: "deploy"}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		words, _ := inv.Words()
		calls <- inv.Caller[strings.Index(inv.Caller, "/"):] + " " + strings.Join(words, "|")
		return bus.Result{}
	})
	body := `{"ref":"main"}`
	m := hmac.New(sha256.New, []byte("s"))
	io.WriteString(m, body)
	signature := "sha256=" + hex.EncodeToString(m.Sum(nil))
	post := func(id, signature string) *reply {
		return x.do("POST", x.far+"/hook/gh", body, "Content-Type", "application/json", "X-GitHub-Delivery", id, "X-GitHub-Event", "push", "X-Hub-Signature-256", signature)
	}
	first := post("1", signature)
	if first.StatusCode != 202 {
		t.Fatalf("%s %s", first.Status, first.body)
	}
	if got := <-calls; got != "/hook:gh main" {
		t.Errorf("called with %s", got)
	}
	if again := post("1", signature); again.StatusCode != 202 || again.body != first.body {
		t.Errorf("again: %s %s", again.Status, again.body)
	}
	if r := post("2", "sha256=00"); r.StatusCode != 401 {
		t.Errorf("a wrong signature: %s", r.Status)
	}
	if r := x.do("POST", x.far+"/hook/none", body); r.StatusCode != 404 {
		t.Errorf("no such hook: %s", r.Status)
	}
	if r := x.do("POST", x.far+"/hook/gh/", body); r.StatusCode != 400 {
		t.Errorf("another path: %s", r.Status)
	}
}

// TestWebhookStatus: the answer of a called function has the status that its table says.
func TestWebhookStatus(t *testing.T) {
	x := newSite(t, func(cfg *config) {
		cfg.Hooks = map[string]hooks.Config{"h": {Function: "exits", Verify: "token", SecretFile: writeSecret(t, "s"), Mode: "call", Args: []string{}}}
		cfg.Functions["exits"] = functionConfig{Status: map[int]int{3: 409}}
		cfg.Publish = []string{"other"}
	})
	x.offer(bus.Offer{Name: "exits"}, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(3) })
	if r := x.do("POST", x.far+"/hook/h", nil, "Authorization", "Bearer s"); r.StatusCode != 409 {
		t.Error(r.Status, r.body)
	}
}

// TestSendWebhook: the gateway offers functions that send webhooks, with no right to offer anything else.
func TestSendWebhook(t *testing.T) {
	got := make(chan string, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- r.Header.Get("Fbus-Function") + " " + string(body)
	}))
	defer s.Close()
	x := newSite(t, func(cfg *config) { cfg.Send = map[string]hooks.Send{"webhook": {URL: s.URL}} })
	x.offer(bus.Offer{Name: "upper"}, upper)
	testbus.Until(x.t, "the gateway offers webhook", func() bool { return x.g.link.function("webhook") != nil })
	if r := x.do("POST", x.local+"/jobs/upper?then=webhook", "hello"); r.StatusCode != 202 {
		t.Fatalf("%s %s", r.Status, r.body)
	}
	select {
	case text := <-got:
		if text != "upper HELLO" {
			t.Error(text)
		}
	case <-time.After(20 * time.Second):
		t.Error("no webhook came")
	}
}

// TestWhatCallersSee: metrics and the description show a caller only the functions that they may call.
func TestWhatCallersSee(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "mine", Description: "mine alone"}, upper)
	x.offer(bus.Offer{Name: "secret"}, upper)
	ask := func(function string, a bus.Args) []byte {
		var out bytes.Buffer
		if _, err := x.own.Call(t.Context(), &bus.Request{Function: function, Args: a, Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	invite := func(invitation string) string {
		var info bus.TokenInfo
		if err := json.Unmarshal(ask("fbus.invite", bus.JSON([]byte(invitation))), &info); err != nil {
			t.Fatal(err)
		}
		return "Bearer " + info.Token
	}
	both := invite(`{"token":true,"name":"both","call":["mine"],"monitor":true}`)
	mine, watcher := invite(`{"token":true,"name":"mine","call":["mine"]}`), invite(`{"token":true,"name":"watcher","monitor":true}`)
	for _, name := range []string{"mine", "secret"} {
		if r := x.do("POST", x.local+"/call/"+name, "a"); r.body != "A" {
			t.Fatalf("%s %s", r.Status, r.body)
		}
	}
	for _, path := range []string{"/metrics", "/openapi.json"} {
		if r := x.do("GET", x.far+path, nil); r.StatusCode != 401 {
			t.Errorf("%s without a token: %s", path, r.Status)
		}
		r := x.do("GET", x.far+path, nil, "Authorization", mine)
		if r.StatusCode != 200 || !strings.Contains(r.body, "mine") || strings.Contains(r.body, "secret") {
			t.Errorf("%s: %s %s", path, r.Status, r.body)
		}
	}
	testbus.Until(x.t, "the tokens are known", func() bool { return len(x.g.link.expiries.byName()) == 3 })
	r := x.do("GET", x.far+"/metrics", nil, "Authorization", both)
	if !strings.Contains(r.body, "fbus_connections") || !strings.Contains(r.body, "mine") || strings.Contains(r.body, "secret") {
		t.Errorf("monitor of its own functions: %s %s", r.Status, r.body)
	}
	for who, r := range map[string]*reply{"local": x.do("GET", x.local+"/metrics", nil), "monitor": x.do("GET", x.far+"/metrics", nil, "Authorization", watcher)} {
		for _, part := range []string{
			`fbus_calls_total{code="exit",function="secret",source="program"} 1`, `fbus_token_expiry_timestamp_seconds{token="mine"} `, "fbus_ticket_expiry_timestamp_seconds ",
			`fbus_gateway_requests_total{route="POST /call/{name}",status="200"} 2`, `fbus_gateway_requests_total{route="other",status="401"} 2`,
		} {
			if !strings.Contains(r.body, part) {
				t.Errorf("%s: no %s in %s", who, part, r.body)
			}
		}
	}
	ask("fbus.revoke", bus.List("mine"))
	testbus.Until(x.t, "the gateway knows of it", func() bool { return len(x.g.link.expiries.byName()) == 2 })
	var doc struct {
		OpenAPI string
		Paths   map[string]any
	}
	r = x.do("GET", x.local+"/openapi.json", nil)
	if err := json.NewDecoder(bytes.NewReader([]byte(r.body))).Decode(&doc); err != nil || doc.OpenAPI != "3.1.0" || doc.Paths["/call/secret"] == nil || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%v: %s", err, r.body)
	}
}
