package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// natsSite starts a NATS server, and a node whose mesh registers functions there. It returns a
// client of NATS, too.
func natsSite(t *testing.T, globs ...string) (*site, *nats.Conn) {
	t.Helper()
	s, err := startServer("127.0.0.1:0", &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopServer(s) })
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return newSite(t, "a", s.ClientURL(), globs...), nc
}

// endpoints waits until the services of the network have certain endpoints, NAME=SUBJECT each, and returns
// them by name.
func endpoints(t *testing.T, nc *nats.Conn, want ...string) map[string]micro.EndpointInfo {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var got []string
		list := map[string]micro.EndpointInfo{}
		var info micro.Info
		msg, err := nc.Request("$SRV.INFO.fbus", nil, 5*time.Second)
		if err == nil {
			err = json.Unmarshal(msg.Data, &info)
		}
		for _, e := range info.Endpoints {
			got = append(got, e.Name+"="+e.Subject)
			list[e.Name] = e
		}
		slices.Sort(got)
		if slices.Equal(got, want) && (err == nil || len(want) == 0) {
			return list
		}
		if time.Now().After(until) {
			t.Fatalf("the endpoints are %s, %v, want %s", got, err, want)
		}
	}
}

// request sends a request, and returns its answer.
func request(t *testing.T, nc *nats.Conn, subject string, data []byte, headers nats.Header) *nats.Msg {
	t.Helper()
	msg, err := nc.RequestMsg(&nats.Msg{Subject: subject, Data: data, Header: headers}, 20*time.Second)
	if err != nil {
		t.Fatalf("%s: %v", subject, err)
	}
	return msg
}

// check checks headers of an answer: name, value, and so on. "" is that there is none.
func check(t *testing.T, msg *nats.Msg, headers ...string) {
	t.Helper()
	for pair := range slices.Chunk(headers, 2) {
		if got := msg.Header.Get(pair[0]); got != pair[1] {
			t.Errorf("%s is %q, want %q", pair[0], got, pair[1])
		}
	}
}

// Clients of NATS call functions: a request's body is the input, and the answer has all of the end.
func TestNATSCalls(t *testing.T) {
	x, nc := natsSite(t, "f*")
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ended := make(chan error, 1)
	noise := strings.Repeat("x", 10000)
	x.offer("f", 4, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		input, _ := io.ReadAll(inv.Input)
		switch string(input) {
		case "who":
			fmt.Fprint(inv.Stdout, inv.Caller, " ", inv.Call, " ", inv.Trace)
			return bus.Exit(0)
		case "fail":
			fmt.Fprint(inv.Stdout, "part")
			fmt.Fprint(inv.Stderr, noise, "\nno \"x\"\n\n\tä\x00\xff\n")
			return bus.Exit(3)
		case "much":
			_, err := inv.Stdout.Write(make([]byte, maxAnswer+1))
			for err == nil {
				_, err = inv.Stdout.Write(make([]byte, 1<<10))
			}
			ended <- context.Cause(ctx)
			return bus.Fail(err)
		}
		inv.Stdout.Write(input)
		return bus.Exit(0)
	})
	x.offer("g", 1, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
	endpoints(t, nc, "f=f")

	for _, size := range []int{0, 1, 100 << 10, maxAnswer} {
		data := bytes.Repeat([]byte("x"), size)
		msg := request(t, nc, "f", data, nil)
		if !bytes.Equal(msg.Data, data) {
			t.Errorf("%d bytes: got %d", size, len(msg.Data))
		}
		check(t, msg, "Fbus-Status", "0", "Fbus-Code", "exit", "Fbus-Stderr", "", "Nats-Service-Error", "", "Nats-Service-Error-Code", "")
	}
	msg := request(t, nc, "f", []byte("who"), nats.Header{"traceparent": {trace}})
	if want := fmt.Sprintf("uid:%d/nats %s %s", os.Getuid(), msg.Header.Get("Fbus-Call"), trace); string(msg.Data) != want {
		t.Errorf("the function sees %q, want %q", msg.Data, want)
	}
	msg = request(t, nc, "f", []byte("fail"), nats.Header{"traceparent": {"x\r"}})
	if string(msg.Data) != "part" {
		t.Errorf("the output is %q", msg.Data)
	}
	last := `\nno "x"\n\n\tä\x00\xff`
	check(t, msg, "Fbus-Status", "3", "Fbus-Code", "exit", "Nats-Service-Error", "program exited with status 3", "Nats-Service-Error-Code", "3",
		"Fbus-Stderr", noise[:maxErrorTail-len("\nno \"x\"\n\n\tä\x00\xff\n")]+last)
	msg = request(t, nc, "f", []byte("much"), nil)
	check(t, msg, "Fbus-Status", "70", "Fbus-Code", "output_limit", "Nats-Service-Error", "output exceeds the limit of 524288 bytes for clients of NATS",
		"Nats-Service-Error-Code", "70")
	if err := <-ended; err == nil || len(msg.Data) > 0 {
		t.Errorf("with too much output the function ends with %v, and %d bytes come", err, len(msg.Data))
	}
	if _, err := nc.Request("g", nil, 5*time.Second); err != nats.ErrNoResponders {
		t.Errorf("a function that is not named: %v", err)
	}
}

// A client of NATS whose call ran when the node was lost learns of that: the mesh goes on.
func TestNATSNodeLost(t *testing.T) {
	x, nc := natsSite(t, "f")
	began := make(chan bool, 1)
	x.offer("f", 1, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		began <- true
		<-ctx.Done()
		return bus.Exit(0)
	})
	endpoints(t, nc, "f=f")
	answers, err := nc.SubscribeSync(nc.NewInbox())
	if err == nil {
		err = nc.PublishRequest("f", answers.Subject, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	<-began
	x.kill()
	msg, err := answers.NextMsg(20 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	check(t, msg, "Fbus-Status", "255", "Fbus-Code", "node_lost", "Nats-Service-Error", "the connection to the node was lost: the call may have run")
}

// Endpoints have names that NATS takes, come and go with the offers, and say what the function is.
func TestNATSEndpoints(t *testing.T) {
	x, nc := natsSite(t, "*")
	endpoints(t, nc)
	run := func(_ context.Context, inv *bus.Invocation) bus.Result {
		fmt.Fprint(inv.Stdout, inv.Function)
		return bus.Exit(0)
	}
	client := x.dial()
	offer := func(o bus.Offer) {
		t.Helper()
		o.Slots = 1
		if _, err := client.Offer(context.Background(), o, run); err != nil {
			t.Fatal(err)
		}
	}
	schema := `{"type":"object"}`
	offer(bus.Offer{Name: "a.b", Description: "makes b", Schema: schema})
	list := endpoints(t, nc, "a_b=a.b")
	if got := list["a_b"].Metadata; got["description"] != "makes b" || got["schema"] != schema || got["function"] != "a.b" {
		t.Errorf("the metadata is %v", got)
	}
	more := x.dial()
	for _, name := range []string{"c..d", "a_b", "e."} { // the second has a name that is taken
		if _, err := more.Offer(context.Background(), bus.Offer{Name: name, Slots: 1}, run); err != nil {
			t.Fatal(err)
		}
	}
	endpoints(t, nc, "a_b=a.b", "c__d=c__d", "e_=e_")
	for subject, name := range map[string]string{"a.b": "a.b", "c__d": "c..d", "e_": "e."} {
		if msg := request(t, nc, subject, nil, nil); string(msg.Data) != name {
			t.Errorf("%s calls %q", subject, msg.Data)
		}
	}
	offer(bus.Offer{Name: "a.b", Description: "makes more"})
	for list["a_b"].Metadata["description"] != "makes more" {
		list = endpoints(t, nc, "a_b=a.b", "c__d=c__d", "e_=e_")
	}
	client.Close()
	endpoints(t, nc, "a_b=a_b", "c__d=c__d", "e_=e_")
	more.Close()
	endpoints(t, nc)
}

// With many functions, and much to say of them, their service can still be asked.
func TestNATSLimits(t *testing.T) {
	x, nc := natsSite(t, "*")
	var client *bus.Client
	long := strings.Repeat("f", 100)
	var want []string
	for i := range maxEndpoints + 1 {
		if i%100 == 0 { // a connection may have so much text
			client = x.dial()
		}
		name := fmt.Sprintf("%s.%04d", long, i)
		_, err := client.Offer(context.Background(), bus.Offer{Name: name, Slots: 1, Description: strings.Repeat("<", 1000), Schema: fmt.Sprintf("%q", strings.Repeat("s", 10<<10))},
			func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
		if err != nil {
			t.Fatal(err)
		}
		if i < maxEndpoints {
			want = append(want, strings.ReplaceAll(name, ".", "_")+"="+name)
		}
	}
	endpoints(t, nc, want...)
}

// Two nodes share the requests. They come while one of them ends, and none fails.
func TestNATSNodes(t *testing.T) {
	x, nc := natsSite(t, "f")
	x.stop()
	x.drain = 20 * time.Second
	x.join()
	y := newSite(t, "b", x.urls, "f")
	ran := make(chan string, 10000)
	for _, x := range []*site{x, y} {
		x.offer("f", 4, func(context.Context, *bus.Invocation) bus.Result {
			ran <- x.name
			return bus.Exit(0)
		})
	}
	seen := map[string]bool{}
	ask := func() {
		t.Helper()
		msg := request(t, nc, "f", nil, nil)
		check(t, msg, "Fbus-Status", "0")
		seen[<-ran] = true
	}
	endpoints(t, nc, "f=f")
	for len(seen) < 2 {
		ask()
	}
	gone := make(chan struct{})
	go func() {
		x.stop()
		close(gone)
	}()
	for done := false; !done; {
		ask()
		select {
		case <-gone:
			done = true
		default:
		}
	}
	clear(seen)
	for range 20 {
		ask()
	}
	if seen["a"] {
		t.Error("a mesh that has ended gets requests")
	}
}

// What the clients of NATS have running is bounded, and what nobody waits for runs too. When the
// mesh ends, it ends.
func TestNATSBounds(t *testing.T) {
	x, nc := natsSite(t, "f")
	began, ended := make(chan string, maxNATSCalls), make(chan string, maxNATSCalls)
	x.offer("f", maxNATSCalls, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		began <- ""
		<-ctx.Done()
		ended <- ""
		return bus.Fail(context.Cause(ctx))
	})
	endpoints(t, nc, "f=f")
	replies := nats.NewInbox()
	sub, err := nc.SubscribeSync(replies)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxNATSCalls {
		if i == 0 {
			err = nc.PublishRequest("f", replies, nil)
		} else {
			err = nc.Publish("f", nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		<-began
	}
	msg := request(t, nc, "f", nil, nil)
	check(t, msg, "Fbus-Status", "75", "Fbus-Code", "busy", "Nats-Service-Error-Code", "75")
	x.stop()
	for range maxNATSCalls {
		<-ended
	}
	msg, err = sub.NextMsg(20 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	check(t, msg, "Fbus-Status", "255", "Fbus-Code", args.CodeNodeLost, "Nats-Service-Error-Code", "255")
}
