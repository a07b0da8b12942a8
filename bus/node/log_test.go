package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/node"
)

// logOf runs a node with a log.
func logOf(t *testing.T) (*calllog.Log, *bus.Client) {
	noLeaks(t)
	j, err := calllog.Open(calllog.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	_, path := start(t, node.Config{Log: j})
	c, err := bus.Dial(context.Background(), bus.Unix(path), &bus.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return j, c
}

func askLog(t *testing.T, c *bus.Client, doc string) (functions []string, next uint64) {
	t.Helper()
	var out bytes.Buffer
	if _, err := c.Call(context.Background(), &bus.Request{Function: "fbus.log", Args: args.JSON([]byte(doc)), Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	for _, l := range lines[:len(lines)-1] {
		var e bus.LogEntry
		if err := json.Unmarshal([]byte(l), &e); err != nil || e.Seq == 0 {
			t.Fatalf("line %q: %v", l, err)
		}
		functions = append(functions, e.Function)
	}
	var n bus.LogNext
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &n); err != nil {
		t.Fatal(err)
	}
	return functions, n.Next
}

func TestServeLog(t *testing.T) {
	j, c := logOf(t)
	for _, f := range []string{"a", "b", "resize.big", "a"} {
		j.Append(&bus.LogEntry{Event: calllog.EventCall, Function: f, Caller: "uid:1"})
	}
	j.Append(&bus.LogEntry{Event: calllog.EventRefused, Code: "revoked"})
	for doc, want := range map[string]string{
		`{}`:                              "a b resize.big a ",
		`{"last":2}`:                      "a ",
		`{"after":2,"function":"a"}`:      "a",
		`{"function":"resize*"}`:          "resize.big",
		`{"event":"call","caller":"u*"}`:  "a b resize.big a",
		`{"after":9,"wait":100}`:          "",
		`{"function":"none","wait":0.01}`: "",
	} {
		functions, next := askLog(t, c, doc)
		if got := strings.Join(functions, " "); got != want || next != 5 {
			t.Errorf("%s: %q, next %d, want %q", doc, got, next, want)
		}
	}
}

func TestServeLogWaits(t *testing.T) {
	j, c := logOf(t)
	came := make(chan []string)
	go func() { // ends with the entry
		functions, _ := askLog(t, c, `{"wait":8}`)
		came <- functions
	}()
	j.Append(&bus.LogEntry{Event: calllog.EventCall, Function: "a"})
	if f := await(t, "the entry", came); len(f) != 1 {
		t.Errorf("got %q", f)
	}
}

func TestServeLogRefuses(t *testing.T) {
	_, c := logOf(t)
	for _, doc := range []string{`[]`, `{"last":-1}`, `{"wait":-1}`, `{"nobody":1}`, `{"function":"[a"}`, `7`} {
		_, err := c.Call(context.Background(), &bus.Request{Function: "fbus.log", Args: args.JSON([]byte(doc))})
		if !errors.Is(err, &bus.Error{Code: args.CodeUsage}) {
			t.Errorf("%s: %v", doc, err)
		}
	}
	if _, err := c.Call(context.Background(), &bus.Request{Function: "fbus.log", Args: args.List("a")}); !errors.Is(err, &bus.Error{Code: args.CodeUsage}) {
		t.Errorf("words: %v", err)
	}
	var out bytes.Buffer
	if _, err := c.Call(context.Background(), &bus.Request{Function: "fbus.log", Stdout: &out}); err != nil || out.String() != "{\"next\":0}\n" {
		t.Errorf("nothing: %q, %v", &out, err)
	}
}

// TestLogCountsDenials: a flood of denials is counted without a listener on TCP, too.
func TestLogCountsDenials(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	j, err := calllog.Open(calllog.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	n, path := start(t, node.Config{Log: j})
	c := dial(t, path)
	const denials = 200
	for range denials {
		_, err := c.Offer(bg(), bus.Offer{Name: "fbus.mine", Slots: 1}, echo)
		wantErr(t, err, bus.ErrDenied)
	}
	n.Close()
	j.Close()
	if j, err = calllog.Open(calllog.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	entries, _, err := j.Read(bg(), calllog.Query{Event: calllog.EventRefused})
	if err != nil {
		t.Fatal(err)
	}
	logged := 0
	for _, e := range entries {
		logged += max(1, int(e.More))
	}
	if logged != denials || len(entries) == denials {
		t.Errorf("%d denials in %d entries, want %d", logged, len(entries), denials)
	}
}
