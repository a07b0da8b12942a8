package main

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
)

// id returns the id of the job that a reply is about.
func (r *reply) id(t *testing.T) string {
	t.Helper()
	id, ok := strings.CutPrefix(r.Header.Get("Location"), "/jobs/")
	if r.StatusCode != 202 || !ok || len(id) != 26 || !strings.Contains(r.body, id) {
		t.Fatal(r.Status, r.Header, r.body)
	}
	return id
}

// TestJobs: a job is posted, waited for, read, and posted again.
func TestJobs(t *testing.T) {
	x := newSite(t, func(c *config) { c.Tokens["token:ci"] = tokenConfig{Stderr: true} })
	x.offer(bus.Offer{Name: "shout"}, upper)
	x.offer(bus.Offer{Name: "exits"}, exits)
	x.offer(bus.Offer{Name: "echo"}, echo)
	auth := []string{"Authorization", "Bearer " + x.token("ci", "shout", "exits", "echo")}
	id := x.do("POST", x.far+"/jobs/shout", "hello", auth...).id(t)
	if r := x.do("GET", x.far+"/jobs/"+id+"?wait=10s", nil, auth...); r.StatusCode != 200 || !strings.Contains(r.body, `"state":"done"`) {
		t.Error(r.Status, r.body)
	}
	if r := x.do("GET", x.far+"/jobs/"+id+"/output", nil, auth...); r.StatusCode != 200 || r.body != "HELLO" || r.Header.Get("Fbus-Status") != "0" {
		t.Error(r.Status, r.body, r.Header)
	}
	for body, kind := range map[string]string{`{"a":1}`: "application/json", strings.Repeat("x", 100_000): ""} {
		id := x.do("POST", x.far+"/call/echo", body, append(auth, "Content-Type", kind, "Prefer", "respond-async")...).id(t)
		r := x.do("GET", x.far+"/jobs/"+id+"/output?wait=10s", nil, auth...)
		if r.StatusCode != 200 || strings.TrimSpace(r.body) != body {
			t.Errorf("%s: %.50s", r.Status, r.body)
		}
	}
	id = x.do("POST", x.far+"/jobs/exits?then=shout", "3", auth...).id(t)
	if r := x.do("GET", x.far+"/jobs/"+id+"?wait=10s", nil, auth...); !strings.Contains(r.body, `"state":"dead"`) {
		t.Error(r.body)
	}
	if r := x.do("GET", x.far+"/jobs/"+id+"/output", nil, auth...); r.StatusCode != 500 || r.body != "some output" || r.Header.Get("Fbus-Status") != "3" {
		t.Error(r.Status, r.body, r.Header)
	}
	if r := x.do("GET", x.far+"/jobs/"+id+"/stderr", nil, auth...); r.StatusCode != 200 || r.body != "secret reason\n" {
		t.Error(r.Status, r.body)
	}
	if r := x.do("POST", x.far+"/jobs/"+id+"/retry", nil, auth...); r.id(t) != id {
		t.Error(r.Status, r.body)
	}
	x.do("GET", x.far+"/jobs/"+id+"?wait=10s", nil, auth...)
	if r := x.do("DELETE", x.far+"/jobs/"+id, nil, auth...); r.StatusCode != 409 {
		t.Error(r.Status, r.body)
	}
	later := x.do("POST", x.far+"/jobs/shout?delay=1h&retries=2", "x", auth...).id(t)
	var list []bus.JobInfo
	if r := x.do("GET", x.far+"/jobs?state=delayed", nil, auth...); json.Unmarshal([]byte(r.body), &list) != nil || len(list) != 1 || list[0].ID != later || list[0].Retries != 2 {
		t.Error(r.Status, r.body)
	}
	if r := x.do("GET", x.far+"/jobs/"+later+"/output", nil, auth...); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" {
		t.Error(r.Status, r.body)
	}
	if r := x.do("DELETE", x.far+"/jobs/"+later, nil, auth...); r.StatusCode != 200 || !strings.Contains(r.body, later) {
		t.Error(r.Status, r.body)
	}
	// What is another's does not exist.
	other := []string{"Authorization", "Bearer " + x.token("other", "shout")}
	for _, path := range []string{"/jobs/" + id, "/jobs/" + id + "/output", "/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV", "/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/stderr"} {
		if r := x.do("GET", x.far+path, nil, other...); r.StatusCode != 404 {
			t.Error(path, r.Status, r.body)
		}
	}
	if r := x.do("GET", x.far+"/jobs", nil, other...); r.body != "[]\n" {
		t.Error(r.body)
	}
	if r := x.do("POST", x.far+"/jobs/shout?then=exits", "", other...); r.StatusCode != 403 {
		t.Error(r.Status, r.body)
	}
	if r := x.do("GET", x.local+"/jobs", nil); !strings.Contains(r.body, id) {
		t.Error(r.body)
	}
	if r := x.do("GET", x.local+"/jobs?stat=dead", nil); r.StatusCode != 400 {
		t.Error(r.Status, r.body)
	}
}

// TestJobsOfOthers: a limit counts what is shown, and who sees others' jobs may not touch them.
func TestJobsOfOthers(t *testing.T) {
	x := newSite(t, func(c *config) {
		c.Publish = []string{"shout", "exits"}
		c.Tokens["token:ops"] = tokenConfig{Stderr: true}
	})
	x.offer(bus.Offer{Name: "shout"}, upper)
	x.offer(bus.Offer{Name: "exits"}, exits)
	ci := []string{"Authorization", "Bearer " + x.token("ci", "*")}
	text, _, err := x.a.IssueToken(trust.LocalUser, trust.Request{Name: "ops", Rights: trust.Rights{Call: []string{"exits"}, Monitor: true}})
	if err != nil {
		t.Fatal(err)
	}
	ops := []string{"Authorization", "Bearer " + text}
	var ids []string
	for range 3 {
		ids = append(ids, x.do("POST", x.far+"/jobs/exits", "3", ci...).id(t))
	}
	x.do("GET", x.far+"/jobs/"+ids[2]+"?wait=10s", nil, ci...)
	for range 5 {
		if _, err := x.own.Call(t.Context(), &bus.Request{Function: "fbus.post", Args: args.List("hidden", "{}")}); err != nil {
			t.Fatal(err)
		}
	}
	shout := x.do("POST", x.far+"/jobs/shout", "x", ci...).id(t)
	for url, want := range map[string][]string{
		x.local + "/jobs?limit=2": {ids[2], shout}, x.far + "/jobs?limit=2": {ids[1], ids[2]}, x.far + "/jobs?limit=1&after=" + ids[0]: {ids[1]},
	} {
		total := "3" // jobs that ops may see
		if strings.HasPrefix(url, x.local) {
			total = "4"
		}
		var list []bus.JobInfo
		r := x.do("GET", url, nil, ops...)
		if err := json.Unmarshal([]byte(r.body), &list); err != nil || r.Header.Get("Fbus-Total") != total {
			t.Error(r.Status, r.Header, r.body)
		}
		var got []string
		for _, j := range list {
			got = append(got, j.ID)
		}
		if !slices.Equal(got, want) {
			t.Error(url, got, want)
		}
	}
	if r := x.do("GET", x.far+"/jobs/"+shout, nil, ops...); r.StatusCode != 404 {
		t.Error(r.Status, r.body)
	}
	if r := x.do("GET", x.far+"/jobs/"+ids[2], nil, ops...); r.StatusCode != 200 {
		t.Error(r.Status, r.body)
	}
	for _, what := range []string{"GET /output", "GET /stderr", "DELETE ", "POST /retry"} {
		method, path, _ := strings.Cut(what, " ")
		if r := x.do(method, x.far+"/jobs/"+ids[2]+path, nil, ops...); r.StatusCode != 403 || !strings.Contains(r.body, ids[2]) {
			t.Error(what, r.Status, r.body)
		}
	}
	first := x.do("POST", x.far+"/jobs/shout?then=exits", "0", ci...).id(t)
	var j bus.JobInfo
	x.do("GET", x.far+"/jobs/"+first+"?wait=10s", nil, ci...)
	if r := x.do("GET", x.far+"/jobs/"+first, nil, ci...); json.Unmarshal([]byte(r.body), &j) != nil || j.Then != "exits" || len(j.Children) != 1 {
		t.Fatal(r.Status, r.body)
	}
	second := j.Children[0]
	third := x.do("POST", x.far+"/jobs/exits?else=shout&finally=exits&delay=1h", "3", ci...).id(t)
	for id, want := range map[string]string{second: "", third: `"finally":"exits"`} {
		for _, path := range []string{"/jobs/" + id, "/jobs?limit=2"} {
			if r := x.do("GET", x.far+path, nil, ops...); r.StatusCode != 200 || strings.Contains(r.body, "shout") || strings.Contains(r.body, first) || !strings.Contains(r.body, want) {
				t.Error(path, r.Status, r.body)
			}
		}
		if r := x.do("GET", x.far+"/jobs/"+id, nil, ci...); !strings.Contains(r.body, "shout") && !strings.Contains(r.body, first) {
			t.Error(r.Status, r.body)
		}
	}
	own := x.do("POST", x.far+"/jobs/exits", "3", ops...).id(t)
	if r := x.do("GET", x.far+"/jobs/"+own+"/stderr?wait=10s", nil, ops...); r.StatusCode != 200 || r.body != "secret reason\n" {
		t.Error(r.Status, r.body)
	}
}

// TestIdempotencyKey: a key posts once, and with other arguments it is refused.
func TestIdempotencyKey(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "shout"}, upper)
	key := []string{"Idempotency-Key", `"order 7"`}
	id := x.do("POST", x.local+"/jobs/shout", "one", key...).id(t)
	x.do("GET", x.local+"/jobs/"+id+"?wait=10s", nil)
	if again := x.do("POST", x.local+"/jobs/shout", "one", key...).id(t); again != id {
		t.Error(again)
	}
	if r := x.do("POST", x.local+"/jobs/shout", "two", key...); r.StatusCode != 422 {
		t.Error(r.Status, r.body)
	}
}

// TestCalls: a call is listed and ended by its id.
func TestCalls(t *testing.T) {
	x := newSite(t)
	began := make(chan string, 1)
	x.offer(bus.Offer{Name: "hang"}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		began <- inv.Call
		<-ctx.Done()
		return bus.Exit(0)
	})
	auth := []string{"Authorization", "Bearer " + x.token("ci", "hang")}
	other := []string{"Authorization", "Bearer " + x.token("other", "hang")}
	ended := make(chan *reply)
	go func() { ended <- x.do("POST", x.far+"/call/hang", "", auth...) }() // ends with the call
	id := <-began
	if r := x.do("GET", x.far+"/calls", nil, auth...); !strings.Contains(r.body, id) || strings.Contains(r.body, "fbus.") {
		t.Error(r.body)
	}
	if r := x.do("GET", x.far+"/calls", nil, other...); r.body != "[]\n" {
		t.Error(r.body)
	}
	if r := x.do("DELETE", x.far+"/calls/"+id, nil, other...); r.StatusCode != 404 {
		t.Error(r.Status, r.body)
	}
	if r := x.do("DELETE", x.far+"/calls/"+id, nil, auth...); r.StatusCode != 200 {
		t.Error(r.Status, r.body)
	}
	if r := <-ended; r.StatusCode != 500 || r.Header.Get("Fbus-Code") != "cancelled" {
		t.Error(r.Status, r.Header)
	}
}

// TestEvents: what a call does comes as events.
func TestEvents(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "work", Attributes: map[string]string{"read-only": ""}}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write([]byte("one\ntwo \xe2\x82"))
		inv.Stdout.Write([]byte("\xac"))
		inv.Stderr.Write([]byte("oh"))
		inv.Progress(bus.Progress{Done: 1, Total: 2, Text: "half"})
		time.Sleep(20 * time.Millisecond)
		return bus.Exit(3)
	})
	x.offer(bus.Offer{Name: "bytes"}, func(context.Context, *bus.Invocation) bus.Result { return bus.Result{Output: []byte{0xff, '\r'}} })
	if r := x.do("POST", x.local+"/call/bytes", "", "Accept", "text/event-stream"); !strings.Contains(r.body, "event: stdout.base64\ndata: /w0=\n\n") {
		t.Errorf("%q", r.body)
	}
	for method, body := range map[string]io.Reader{"GET": nil, "POST": strings.NewReader("x")} {
		r := x.do(method, x.local+"/call/work", body, "Accept", "text/event-stream")
		if r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/event-stream" || r.err != nil {
			t.Fatal(r.Status, r.Header, r.err)
		}
		for _, want := range []string{
			"event: stdout\ndata: one\ndata: two ", "€", "event: stderr\ndata: oh\n\n", `event: progress` + "\n" + `data: {"done":1,"total":2,"text":"half"}`,
			`data: {"source":"program","status":3,"code":"exit"`,
		} {
			if !strings.Contains(r.body, want) {
				t.Errorf("%s: no %q in %q", method, want, r.body)
			}
		}
	}
}

// TestForm: fields of a form are arguments, its file is the input.
func TestForm(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "echo"}, echo)
	part := func(name, file, text string) string {
		if file != "" {
			file = `; filename="` + file + `"`
		}
		return "--b\r\nContent-Disposition: form-data; name=\"" + name + "\"" + file + "\r\n\r\n" + text + "\r\n"
	}
	large := strings.Repeat("0123456789", 300_000)
	for name, c := range map[string]struct {
		body, want string
		status     int
	}{
		"fields":               {part("a", "", "1") + part("b", "", "x y"), "{\"a\":\"1\",\"b\":\"x y\"}\n", 200},
		"file":                 {part("f", "x.png", "data"), "data", 200},
		"file and field":       {part("f", "x.png", "data") + part("a", "", "1"), "{\"a\":\"1\"}\ndata", 200},
		"large file":           {part("a", "", "1") + part("f", "x", large), "{\"a\":\"1\"}\n" + large, 200},
		"field after a large":  {part("f", "x", large) + part("a", "", "1"), "", 400},
		"two files":            {part("f", "x", "1") + part("g", "y", "2"), "", 400},
		"the same field twice": {part("a", "", "1") + part("a", "", "2"), "", 400},
	} {
		r := x.do("POST", x.local+"/call/echo", c.body+"--b--\r\n", "Content-Type", "multipart/form-data; boundary=b")
		if r.StatusCode != c.status && c.status == 200 || c.status == 200 && (r.body != c.want || r.err != nil) || c.status != 200 && r.StatusCode == 200 && r.err == nil {
			t.Errorf("%s: %s %.60q %v", name, r.Status, r.body, r.err)
		}
	}
}
