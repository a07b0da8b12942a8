package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/node"
	"fbus/cmd/testbus"
)

// bed is a node with jobs, and metrics of it.
type bed struct {
	t      *testing.T
	client *bus.Client
	m      *Metrics
}

func newBed(t *testing.T) *bed {
	t.Helper()
	n := testbus.Start(t, node.Config{Jobs: testbus.Jobs(t)})
	b := &bed{t: t, client: n.Dial(nil)}
	gateway := n.Dial(&bus.Options{Relay: true, Rights: []string{"call:*", "relay", "monitor"}})
	b.m = &Metrics{
		Call: gateway.Call, Note: t.Logf,
		Tokens: func() map[string]time.Time { return map[string]time.Time{"ci": time.Unix(2e9, 0)} },
	}
	return b
}

// offer offers a function that exits with what its input says.
func (b *bed) offer(name string) {
	b.t.Helper()
	_, err := b.client.Offer(context.Background(), bus.Offer{Name: name, Slots: 2}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		var status int
		fmt.Fscan(inv.Input, &status)
		return bus.Exit(status)
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) call(name, input string, words ...string) string {
	b.t.Helper()
	var out strings.Builder
	req := &bus.Request{Function: name, Input: strings.NewReader(input), Stdout: &out}
	if len(words) > 0 {
		req.Args = bus.List(words...)
	}
	b.client.Call(context.Background(), req)
	return out.String()
}

// serve serves /metrics for somebody who may call some functions.
func (b *bed) serve(monitor bool, may func(string) bool) string {
	b.t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		end := b.m.Begin()
		b.m.Serve(w, r, may, monitor)
		end("GET /metrics", 200)
	}))
	b.t.Cleanup(s.Close)
	return s.URL
}

func scrape(t *testing.T, url, accept string) (kind, text string) {
	t.Helper()
	r, _ := http.NewRequest("GET", url, nil)
	r.Header.Set("Accept", accept)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != 200 {
		t.Fatalf("%d %s, %v", answer.StatusCode, body, err)
	}
	return answer.Header.Get("Content-Type"), string(body)
}

func has(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("%q is missing", line)
		}
	}
}

// TestMetrics: what the node counts is shown as Prometheus and OpenMetrics have it, and promtool finds
// nothing wrong with it.
func TestMetrics(t *testing.T) {
	b := newBed(t)
	b.offer("f")
	b.offer("g.x")
	for _, input := range []string{"0", "0", "3"} {
		b.call("f", input)
	}
	b.call("none", "")
	b.call("fbus.hold", "", `{"functions":["f"]}`)
	b.call("fbus.post", "0", "f")
	url := b.serve(true, nil)
	scrape(t, url, "")
	kind, text := scrape(t, url, "")
	if !strings.HasPrefix(kind, "text/plain") {
		t.Errorf("type %s", kind)
	}
	has(t, text,
		"fbus_up 1", `fbus_slots{function="f"} 2`, `fbus_busy{function="f"} 0`, `fbus_workers{function="g.x"} 1`, `fbus_queued{function="f"} 0`,
		`fbus_calls_total{code="exit",function="f",source="program"} 3`, `fbus_exits_total{function="f",status="3"} 1`,
		`fbus_calls_total{code="no_function",function="other",source="fbus"} 1`, `fbus_refused_calls_total{code="no_function"} 1`,
		`fbus_ran_seconds_count{function="f"} 3`, `fbus_waited_seconds_bucket{function="f",le="+Inf"} 3`,
		`fbus_jobs{state="queued"} 1`, `fbus_jobs{state="dead"} 0`, `fbus_oldest_call_seconds{function="f"} 0`,
		`fbus_token_expiry_timestamp_seconds{token="ci"} 2e+09`, `fbus_gateway_requests_total{route="GET /metrics",status="200"} 1`,
	)
	for _, part := range []string{"\nfbus_last_success_timestamp_seconds{function=\"f\"} ", "\nfbus_oldest_job_seconds 0.", "\nprocess_open_fds ", "\nfbus_store_bytes "} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing", part)
		}
	}
	if strings.Contains(text, "fbus.metrics") {
		t.Error("the node's own functions are shown")
	}
	if t.Failed() {
		t.Log(text)
	}
	kind, open := scrape(t, url, "application/openmetrics-text; version=1.0.0")
	if !strings.HasPrefix(kind, "application/openmetrics-text") || !strings.HasSuffix(open, "# EOF\n") {
		t.Errorf("OpenMetrics: %s", kind)
	}
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed")
	}
	check := exec.Command(tool, "check", "metrics")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// TestGuest: who may call only some functions is shown these, and nothing of others in any sum.
func TestGuest(t *testing.T) {
	b := newBed(t)
	for _, name := range []string{"mine", "mine.too", "secret"} {
		b.offer(name)
		b.call(name, "0")
	}
	b.call("secret.gone", "")
	b.m.Globs = []string{"mine"}
	_, text := scrape(t, b.serve(false, func(name string) bool { return strings.HasPrefix(name, "mine") }), "")
	has(t, text, `fbus_calls_total{code="exit",function="mine",source="program"} 1`, `fbus_calls_total{code="exit",function="other",source="program"} 1`, "fbus_up 1")
	for _, word := range []string{"secret", "too", "no_function", "fbus_connections", "token", "process_", "fbus_gateway", "fbus_jobs{"} {
		if strings.Contains(text, word) {
			t.Errorf("a guest sees %q in\n%s", word, text)
		}
	}
}

// TestCardinality: at most 1,000 functions have series of their own, and a function keeps its own.
func TestCardinality(t *testing.T) {
	m := &Metrics{}
	functions := func(from, to int) (list []bus.FunctionMetrics) {
		list = append(list, bus.FunctionMetrics{Name: ""}, bus.FunctionMetrics{Name: other})
		for i := from; i < to; i++ {
			list = append(list, bus.FunctionMetrics{Name: fmt.Sprintf("f%04d", i), Queued: 1})
		}
		return list
	}
	show := func(list []bus.FunctionMetrics) map[string]*total {
		return (&view{metrics: m, snapshot: &snapshot{Metrics: bus.Metrics{Functions: list}}, monitor: true}).totals()
	}
	if got := show(functions(500, 1000)); len(got) != 501 || got[other].Queued != 0 {
		t.Errorf("%d names", len(got))
	}
	got := show(functions(0, 3000))
	if len(got) != 1001 || got[other].Queued != 2000 || got["f0999"] == nil || got["f0000"] == nil || got["f0500"] == nil {
		t.Errorf("%d names, %d in others", len(got), got[other].Queued)
	}
}

// TestNodeAway: without a node the gateway's own metrics are still shown.
func TestNodeAway(t *testing.T) {
	b := newBed(t)
	b.m.Call = func(ctx context.Context, req *bus.Request) (bus.Result, error) {
		return bus.Result{}, bus.ErrNodeLost
	}
	url := b.serve(true, nil)
	scrape(t, url, "")
	_, text := scrape(t, url, "")
	has(t, text, "fbus_up 0", "fbus_gateway_requests_open 1")
}

// TestPrometheus: a real Prometheus scrapes the metrics and answers queries about them.
func TestPrometheus(t *testing.T) {
	path, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("prometheus is not installed")
	}
	b := newBed(t)
	b.offer("f")
	b.call("f", "0")
	b.call("f", "4")
	target := strings.TrimPrefix(b.serve(true, nil), "http://")
	dir := t.TempDir()
	config := fmt.Sprintf("global: {scrape_interval: 200ms, scrape_timeout: 200ms}\nscrape_configs:\n- job_name: fbus\n  metrics_path: /\n  static_configs: [{targets: [%q]}]\n", target)
	if err := os.WriteFile(filepath.Join(dir, "p.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := exec.Command(path, "--config.file=p.yml", "--web.listen-address=127.0.0.1:0", "--storage.tsdb.path=data", "--log.format=json")
	p.Dir = dir
	log, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	address := ""
	lines := json.NewDecoder(log)
	for address == "" {
		var line struct{ Msg, Address string }
		if err := lines.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line.Msg == "Listening on" {
			address = line.Address
		}
	}
	go io.Copy(io.Discard, log) // ends with the process
	query := func(text string) string {
		answer, err := http.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(text))
		if err != nil {
			return ""
		}
		defer answer.Body.Close()
		var doc struct {
			Data struct {
				Result []struct{ Value []any }
			}
		}
		if json.NewDecoder(answer.Body).Decode(&doc) != nil || len(doc.Data.Result) == 0 {
			return ""
		}
		return fmt.Sprint(doc.Data.Result[0].Value[1])
	}
	want := map[string]string{`up{job="fbus"}`: "1", `fbus_exits_total{function="f",status="4"}`: "1", `fbus_ran_seconds_count{function="f"}`: "2", "fbus_up": "1"}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		wrong := ""
		for text, value := range want {
			if got := query(text); got != value {
				wrong = fmt.Sprintf("%s is %q, expected %q", text, got, value)
			}
		}
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(wrong)
		}
	}
}
