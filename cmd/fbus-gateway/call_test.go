package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/cmd/testbus"
)

// TestCall: the body is the input, the output is the body, and how it ended is in the headers.
func TestCall(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "shout"}, upper)
	x.offer(bus.Offer{Name: "cat"}, echo)
	r := x.do("POST", x.local+"/call/shout", "hello", "Content-Type", "application/x-www-form-urlencoded")
	if r.StatusCode != 200 || r.body != "HELLO" || r.Header.Get("Fbus-Status") != "0" || r.Header.Get("Fbus-Code") != "exit" || r.Header.Get("Fbus-Worker") != "w" || r.Header.Get("Fbus-Call") == "" {
		t.Error(r.Status, r.Header, r.body)
	}
	for header, want := range map[string]string{
		"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox", "Content-Length": "5", "Content-Disposition": "",
	} {
		if got := r.Header.Get(header); got != want {
			t.Errorf("%s: %q", header, got)
		}
	}
	r = x.do("POST", x.local+"/call/cat", "\x00\xff")
	if r.body != "\x00\xff" || r.Header.Get("Content-Type") != "application/octet-stream" || r.Header.Get("Content-Disposition") != "attachment" {
		t.Error(r.Status, r.Header)
	}
}

// TestTypeOfLongOutput: the type of an output depends on its bytes, and not on how they come.
func TestTypeOfLongOutput(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "cat"}, echo)
	long := strings.Repeat("text ", maxHeld/4)
	for name, c := range map[string]struct{ in, kind string }{
		"text":       {long, "text/plain; charset=utf-8"},
		"zeros":      {strings.Repeat("\x00", len(long)), "application/octet-stream"},
		"a late NUL": {long[:maxHeld-1] + "\x00" + long, "application/octet-stream"},
		"beyond":     {long[:maxHeld] + "\x00" + long, "text/plain; charset=utf-8"},
	} {
		for _, query := range []string{"", "?status=header"} {
			if r := x.do("POST", x.local+"/call/cat"+query, c.in); r.Header.Get("Content-Type") != c.kind || r.body != c.in || r.err != nil {
				t.Error(name, query, r.Header, len(r.body), r.err)
			}
		}
	}
}

// TestArguments: a JSON body and ?arg are arguments.
func TestArguments(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "echo"}, echo)
	const js = "application/json"
	for _, c := range []struct {
		query, body, kind string
		status            int
		want              string
	}{
		{"", `{"a":1.0}`, js, 200, "{\"a\":1.0}\n"},
		{"", `{"a":1}`, "application/json; charset=utf-8", 200, "{\"a\":1}\n"},
		{"?as=input", `{"a":1}`, js, 200, `{"a":1}`},
		{"?arg=x&arg=y+z", "", "", 200, "[\"x\",\"y z\"]\n"},
		{"?arg=x", "data", "text/plain", 200, "[\"x\"]\ndata"},
		{"?arg=x", "[1]", js, 400, ""},
		{"?arg=x&as=input", "[1]", js, 200, "[\"x\"]\n[1]"},
		{"", "{", js, 400, ""},
		{"", "", js, 200, ""},
		{"", strings.Repeat("x", 100_000), "", 200, strings.Repeat("x", 100_000)},
	} {
		r := x.do("POST", x.local+"/call/echo"+c.query, c.body, "Content-Type", c.kind)
		if r.StatusCode != c.status || r.err != nil || c.status == 200 && r.body != c.want {
			t.Errorf("%s %.20s: %s %.40q %v", c.query, c.body, r.Status, r.body, r.err)
		}
	}
}

// TestStatuses: the end of a call has a status of HTTP.
func TestStatuses(t *testing.T) {
	x := newSite(t, func(cfg *config) {})
	x.offer(bus.Offer{Name: "exits"}, exits)
	for status, want := range map[int]int{0: 200, 1: 500, 3: 500, 64: 400, 65: 422, 75: 503, 255: 500} {
		r := x.do("POST", x.local+"/call/exits", fmt.Sprint(status))
		if r.StatusCode != want || r.body != "some output" || r.Header.Get("Fbus-Status") != fmt.Sprint(status) || (r.Header.Get("Retry-After") != "") != (want == 503) {
			t.Errorf("%d: %s %q %v", status, r.Status, r.body, r.Header)
		}
		r = x.do("POST", x.local+"/call/exits", fmt.Sprint(status), "Accept", "application/problem+json")
		if status != 0 && (r.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(r.body, fmt.Sprintf(`"exit_status":%d`, status)) || strings.Contains(r.body, "output")) {
			t.Errorf("%d: %s %q %v", status, r.Status, r.body, r.Header)
		}
	}
	release, began := make(chan bool), make(chan bool, 9)
	x.offer(bus.Offer{Name: "slow"}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		began <- true
		select {
		case <-release:
		case <-ctx.Done():
		}
		return bus.Exit(0)
	})
	r := x.do("POST", x.local+"/call/slow", "", "Fbus-Timeout", "50ms")
	<-began
	if r.StatusCode != 504 || r.Header.Get("Fbus-Code") != "deadline" {
		t.Error(r.Status, r.Header)
	}
	if r = x.do("POST", x.local+"/call/none", ""); r.StatusCode != 404 || r.Header.Get("Fbus-Status") != "69" {
		t.Error(r.Status, r.Header)
	}
	if r = x.do("GET", x.local+"/call/slow", nil); r.StatusCode != 405 || r.Header.Get("Allow") != "POST" {
		t.Error(r.Status, r.Header)
	}
	held := make(chan *reply)
	go func() { held <- x.do("POST", x.local+"/call/slow", "") }() // ends with release
	<-began
	if r = x.do("POST", x.local+"/call/slow", "", "Fbus-Wait", "10ms"); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" || r.Header.Get("Fbus-Code") != "busy" {
		t.Error(r.Status, r.Header)
	}
	close(release)
	if r := <-held; r.StatusCode != 200 {
		t.Error(r.Status)
	}
}

// TestCancelled: a closed connection cancels the call, also while a part of its input is still to come.
func TestCancelled(t *testing.T) {
	x := newSite(t)
	began, ended := make(chan bool, 1), make(chan bool, 1)
	x.offer(bus.Offer{Name: "hang"}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		began <- true
		<-ctx.Done()
		ended <- true
		return bus.Exit(0)
	})
	for name, in := range map[string]io.Reader{"no body": nil, "whole": strings.NewReader("x"), "endless": &endless{}} {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "POST", x.local+"/call/hang", in)
		if err != nil {
			t.Fatal(err)
		}
		go func() { // ends with ctx
			if resp, err := x.http.RoundTrip(r); err == nil {
				resp.Body.Close()
			}
		}()
		<-began
		cancel()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error(name, "is not cancelled")
		}
	}
}

// endless is a body that does not end.
type endless struct{}

func (*endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestHungUp: clients that hang up while output is held do no harm, whenever they do.
func TestHungUp(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "slow", Slots: 100}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write([]byte("x"))
		inv.Stderr.Write([]byte("x"))
		<-ctx.Done()
		return bus.Exit(1)
	})
	var all sync.WaitGroup
	for i := range 60 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(1100))*time.Millisecond)
		defer cancel()
		kind := "*/*"
		if i%3 == 0 {
			kind = "text/event-stream"
		}
		all.Go(func() { // ends with ctx
			r, _ := http.NewRequestWithContext(ctx, "POST", x.local+"/call/slow", nil)
			r.Header.Set("Accept", kind)
			if resp, err := x.http.RoundTrip(r); err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	all.Wait()
	// Its first byte comes when those of the others would have come.
	r, _ := http.NewRequestWithContext(t.Context(), "POST", x.local+"/call/slow", nil)
	resp, err := x.http.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.ReadFull(resp.Body, make([]byte, 1)); n != 1 {
		t.Error(err)
	}
}

// TestStreams: output comes as it is written, while input is still being sent.
func TestStreams(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "cat"}, echo)
	in, feed := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "POST", x.local+"/call/cat", in)
	if err != nil {
		t.Fatal(err)
	}
	go feed.Write(bytes.Repeat([]byte("a"), maxHeld))
	resp, err := x.http.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, maxHeld)); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two"} {
		feed.Write([]byte(word))
		got := make([]byte, 3)
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != word {
			t.Fatalf("%s: %q %v", word, got, err)
		}
	}
	feed.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
}

// TestBytes: all bytes arrive, whatever their number.
func TestBytes(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "cat", Slots: 4}, echo)
	for _, size := range []int{0, 1, 32767, 32768, 32769, 65535, 65536, 65537, 1 << 20} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * i >> 7)
		}
		for name, body := range map[string]io.Reader{"length": bytes.NewReader(data), "chunked": io.MultiReader(bytes.NewReader(data))} {
			r := x.do("POST", x.local+"/call/cat", body)
			if r.StatusCode != 200 || r.err != nil || sha256.Sum256([]byte(r.body)) != sha256.Sum256(data) {
				t.Errorf("%s %d: %s, %d bytes, %v", name, size, r.Status, len(r.body), r.err)
			}
		}
	}
}

// TestLateFailure: a call that fails when the header was sent is an error for every client; one that takes
// trailers learns why.
func TestLateFailure(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "late"}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write(make([]byte, 100_000))
		return bus.Exit(3)
	})
	for name, body := range map[string]any{"empty": nil, "unread": &endless{}} {
		r := x.do("POST", x.local+"/call/late", body)
		if r.StatusCode != 200 || r.err == nil {
			t.Error(name, r.Status, r.err)
		}
		r = x.do("POST", x.local+"/call/late", body, "TE", "trailers")
		if r.StatusCode != 200 || r.err != nil || len(r.body) != 100_000 || r.Trailer.Get("Fbus-Status") != "3" || r.Trailer.Get("Fbus-Code") != "exit" {
			t.Error(name, r.Status, r.err, r.Trailer)
		}
		if r = x.do("POST", x.local+"/call/late", body, "TE", "gzip, trailers; q=0"); r.StatusCode != 200 || r.err == nil {
			t.Error(name, r.Status, r.err)
		}
		r = x.do("POST", x.local+"/call/late?status=header", body)
		if r.StatusCode != 500 || r.err != nil || len(r.body) != 100_000 || r.Header.Get("Fbus-Status") != "3" {
			t.Error(name, r.Status, r.err, r.Header)
		}
	}
}

// TestUnreadBody: a function that does not want all of the body answers, and what follows on the connection
// is not taken for a request.
func TestUnreadBody(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "first"}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		one := make([]byte, 1)
		io.ReadFull(inv.Input, one)
		return bus.Result{Output: one}
	})
	for range 3 {
		r := x.do("POST", x.local+"/call/first", io.MultiReader(strings.NewReader("x"), &endless{}))
		if r.StatusCode != 200 || r.body != "x" || r.err != nil || !r.Close {
			t.Error(r.Status, r.body, r.err, r.Header)
		}
	}
}

// TestSchema: arguments that do not match the function's schema are refused, and the error says where.
func TestSchema(t *testing.T) {
	x := newSite(t)
	x.offer(bus.Offer{Name: "price", Schema: `{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}`}, echo)
	x.offer(bus.Offer{Name: "resize", Arguments: "command line: {1}"}, echo)
	x.offer(bus.Offer{Name: "greet", Arguments: "command line: {name}"}, echo)
	if r := x.do("GET", x.local+"/functions/greet", nil); !strings.Contains(r.body, `"required":["name"]`) || !strings.Contains(r.body, `"name":"greet"`) {
		t.Error(r.body)
	}
	const js = "application/json"
	for _, c := range []struct {
		path, body string
		status     int
		says       string
	}{
		{"/call/price", `{"n":3}`, 200, ""},
		{"/call/price", `{"n":"x"}`, 422, "/n"},
		{"/call/price", `{}`, 422, "n"},
		{"/call/resize?arg=50", "", 200, ""},
		{"/call/resize?arg=50&arg=60", "", 422, ""},
		{"/jobs/price", `{}`, 422, "n"},
		{"/call/price", "", 200, ""},
		{"/call/resize", "", 422, "minItems"},
		{"/call/greet", "", 422, "name"},
		{"/jobs/greet", "{}", 422, "name"},
	} {
		r := x.do("POST", x.local+c.path, c.body, "Content-Type", js)
		if r.StatusCode != c.status || !strings.Contains(r.body, c.says) {
			t.Errorf("%s %s: %s %s", c.path, c.body, r.Status, r.body)
		}
	}
	x.offer(bus.Offer{Name: "price"}, echo)
	testbus.Until(x.t, "the new offer has no schema", func() bool { return x.do("POST", x.local+"/call/price", `{}`, "Content-Type", js).StatusCode == 200 })
}
