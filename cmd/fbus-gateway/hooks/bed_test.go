package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/node"
	"fbus/cmd/testbus"
)

// bed is a node, a client of it that is allowed what the gateway is, and functions that record their calls.
type bed struct {
	*testbus.Node
	t      *testing.T
	client *bus.Client
	worker *bus.Client
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, Node: testbus.Start(t, node.Config{Jobs: testbus.Jobs(t)})}
	b.client = b.Dial(&bus.Options{Relay: true, Rights: []string{"call:*", "relay", "monitor"}})
	b.worker = b.Dial(nil)
	return b
}

// ran is one call of a function.
type ran struct {
	caller, job, args, input string
}

// offer offers a function that records its calls and ends each with what end returns.
func (b *bed) offer(name string, end func() bus.Result) chan ran {
	b.t.Helper()
	calls := make(chan ran, 100)
	_, err := b.worker.Offer(context.Background(), bus.Offer{Name: name, Slots: 4}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		in, _ := io.ReadAll(inv.Input)
		text := string(inv.Args)
		if words, err := inv.Words(); err == nil {
			text = strings.Join(words, "|")
		}
		calls <- ran{inv.Caller, inv.Job, text, string(in)}
		return end()
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return calls
}

func succeed() bus.Result { return bus.Result{Output: []byte(`{"ok":true}`)} }

// serve serves the hooks of that table.
func (b *bed) serve(tables map[string]Config) *httptest.Server {
	b.t.Helper()
	h, faults := New(tables)
	for _, f := range faults {
		b.t.Fatal(f)
	}
	h.Call, h.Note = b.client.Call, b.t.Logf
	h.Status = func(_ string, end bus.End) int { return map[int]int{69: 404, 75: 503}[end.Status] }
	s := httptest.NewServer(h)
	b.t.Cleanup(s.Close)
	return s
}

// secret writes a secret file.
func secretFile(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// send sends a request, and returns the status and the body of the answer.
func send(t *testing.T, method, url, body string, header map[string]string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var text bytes.Buffer
	text.ReadFrom(answer.Body)
	return answer.StatusCode, text.String()
}

// next returns the next call of a function.
func next(t *testing.T, calls chan ran) ran {
	t.Helper()
	return testbus.Await(t, "a call of the function", calls)
}

// none checks that a function was not called: no request is under way, and all jobs have ended.
func (b *bed) none(calls chan ran) {
	b.t.Helper()
	ids := []string{}
	for line := range strings.Lines(b.ask("fbus.jobs", `{}`)) {
		var j bus.JobInfo
		if err := json.Unmarshal([]byte(line), &j); err != nil {
			b.t.Fatal(err)
		}
		if j.ID != "" {
			ids = append(ids, j.ID)
		}
	}
	if len(ids) > 0 {
		query, _ := json.Marshal(bus.JobWait{IDs: ids})
		b.ask("fbus.wait", string(query))
	}
	select {
	case c := <-calls:
		b.t.Fatalf("it was called: %+v", c)
	default:
	}
}

// ask calls a function of the node.
func (b *bed) ask(function, query string) string {
	b.t.Helper()
	var out bytes.Buffer
	if _, err := b.client.Call(context.Background(), &bus.Request{Function: function, Args: bus.JSON([]byte(query)), Stdout: &out}); err != nil {
		b.t.Fatal(err)
	}
	return out.String()
}
