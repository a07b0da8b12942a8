package node_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/trust"
)

// TestPlainErrors calls the node's own functions with documents that they cannot take, and
// checks that no answer has words of Go in it.
func TestPlainErrors(t *testing.T) {
	noLeaks(t)
	j, err := calllog.Open(calllog.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	m, err := jobs.Open(jobs.Config{Dir: t.TempDir(), Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	a, err := trust.Open(trust.Options{Dir: filepath.Join(t.TempDir(), "net"), Network: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	_, path := start(t, node.Config{Log: j, Jobs: m, Gate: a, Authority: a})
	c := dial(t, path)
	docs := []string{`[]`, `7`, `"x"`, `true`, `{`, `{"a":`, `{} {}`, `{"nobody":1}`, `x`, `{"a"}`, `[1`}
	for _, field := range []string{
		"after", "last", "function", "caller", "event", "wait", "ids", "state", "limit", "newest", "dead", "older", "name", "call", "offer", "admin",
		"ttl", "reusable", "addresses", "kind", "input", "then", "delay", "at", "retries", "backoff", "priority", "unique", "keep", "timeout", "on",
	} {
		for _, value := range []string{`"x"`, `7`, `-7.5`, `1e400`, `true`, `[1,"x"]`, `{"x":1}`, `"[-]"`} {
			if field == "wait" && value == "7" {
				continue // it would
			}
			docs = append(docs, `{"`+field+`":`+value+`}`)
		}
	}
	said := map[string]bool{}
	for _, name := range node.OwnNames() {
		for _, doc := range docs {
			for i, a := range []args.Args{{}, args.List("f", doc)} {
				req := &bus.Request{Function: name, Args: a}
				if i == 0 {
					req.Input = strings.NewReader(doc)
				}
				_, err := c.Call(bg(), req)
				var e *bus.Error
				if err == nil || !errors.As(err, &e) {
					continue
				}
				said[e.Message] = true
				for _, word := range []string{"Go ", "json:", "strconv", "unmarshal", "struct", "interface", "uint", "int64", "float", "invalid character", "x509", "asn1"} {
					if strings.Contains(e.Message+e.Hint, word) {
						t.Errorf("%s %s: %s", name, doc, e.Message)
					}
				}
			}
		}
	}
	for _, want := range []string{
		"fbus.log: wait must be a number, not a string", "fbus.log: after must be a whole number, at least 0, not the number -7.5",
		`fbus.jobs: unknown field "nobody"`, "fbus.jobs: ids must be an array, not true or false", "fbus.jobs: the document must be an object, not an array",
		`fbus.jobs: after must be the id of a job, not "x"`,
		"fbus.log: this is not JSON: line 1, column 6: its end is missing", "fbus.log: this is not JSON: line 1, column 4: unexpected '{' after top-level value", "fbus.post: options: retries must be a whole number, not a string",
	} {
		if !said[want] {
			t.Errorf("nobody said: %s", want)
		}
	}
	if t.Failed() {
		for s := range said {
			t.Log(s)
		}
	}
}
