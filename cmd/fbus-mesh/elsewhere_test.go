package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
)

// workers returns the workers of a function that a node knows.
func (d *processes) workers(client *bus.Client, function string) []bus.WorkerInfo {
	d.t.Helper()
	var list []bus.WorkerInfo
	_, err := client.Call(d.ctx, &bus.Request{Function: "fbus.functions", Args: args.List(function), Stdout: &lines{each: func(text []byte) {
		var i bus.FunctionInfo
		if json.Unmarshal(text, &i) == nil {
			list = i.Workers
		}
	}}})
	if err != nil {
		d.t.Fatal(err)
	}
	return list
}

// knows waits until a node knows something of a worker of a function.
func (d *processes) knows(client *bus.Client, function, what string, is func(w *bus.WorkerInfo) bool) {
	d.t.Helper()
	if err := d.until(func() error {
		list := d.workers(client, function)
		if slices.ContainsFunc(list, func(w bus.WorkerInfo) bool { return is(&w) }) {
			return nil
		}
		return fmt.Errorf("the node does not know that %s: %+v", what, list)
	}); err != nil {
		d.t.Fatal(err)
	}
}

// TestCannotStartElsewhere: of a program at another node that cannot be started callers get the
// reason, as of one that is here: each time, and until it can be started.
func TestCannotStartElsewhere(t *testing.T) {
	d := newProcesses(t, "a", "b")
	program := filepath.Join(d.dir, "program")
	write := func() {
		t.Helper()
		if err := os.WriteFile(program, []byte("#!/bin/sh\necho ran\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write()
	d.begin("b", "offer", "-q", "--slots", "1", "--worker", "w", "f", "--", program)
	d.slots("a", "f", 0, 1)
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	a, b := d.client("a"), d.client("b")
	check := func(what string, status int) {
		t.Helper()
		var texts []string
		for _, c := range []*bus.Client{a, b} {
			_, res, err := call(c, &bus.Request{Function: "f"})
			if res.Status != status || status != 0 && !errors.Is(err, bus.ErrCannotStart) {
				t.Errorf("%s: the call ends with %d, %v", what, res.Status, err)
			}
			texts = append(texts, fmt.Sprint(err))
		}
		if !strings.HasSuffix(texts[1], texts[0]) { // the first one has what the worker says
			t.Errorf("%s: the call ends with %q, and at its node with %q", what, texts[0], texts[1])
		}
	}
	check("at first", 127)
	d.knows(a, "f", "it cannot be started", func(w *bus.WorkerInfo) bool { return w.Name == "@b" && w.CannotStart == 127 })
	check("later", 127)
	e := d.fbusRuns("a", "call", "--all", "-n", "f")
	<-e.ended
	if e.status != 127 {
		t.Errorf("call --all ends with %d: %s", e.status, &e.out)
	}
	write()
	d.slots("a", "f", 0, 1)
	check("again", 0)

	// One of two that cannot is passed over; by its name it ends the call.
	d.begin("b", "offer", "-q", "--slots", "1", "--worker", "v", "f", "--", "true")
	d.slots("a", "f", 0, 2)
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	e = d.fbusRuns("a", "call", "--all", "--tag", "-n", "f")
	<-e.ended
	if e.status != 127 {
		t.Errorf("call --all with one that cannot ends with %d: %s", e.status, &e.out)
	}
	if _, res, err := call(a, &bus.Request{Function: "f"}); err != nil {
		t.Errorf("a call beside one that cannot ends with %d, %v", res.Status, err)
	}
}

// TestHeldElsewhere: callers see which workers at another node are held there, as those of their own.
func TestHeldElsewhere(t *testing.T) {
	d := newProcesses(t, "a", "b")
	d.offer("b", "f", "echo 1", "--worker", "w1")
	d.begin("b", "offer", "-q", "--slots", "1", "--worker", "w2", "f", "--", "echo", "2")
	d.slots("a", "f", 0, 2)
	a := d.client("a")
	hold := func(command, on string, held ...string) {
		t.Helper()
		if err := d.run("b", nil, command, "--on", on); err != nil {
			t.Fatal(err)
		}
		d.knows(a, "f", fmt.Sprint("held are ", held), func(w *bus.WorkerInfo) bool { return w.Relay && slices.Equal(w.BehindHeld, held) })
	}
	shows := func(status int, command string, lines ...string) {
		t.Helper()
		e := d.fbusRuns("a", strings.Fields(command)...)
		d.ends("held", e, status, time.Now(), 0)
		for _, line := range lines {
			if !strings.Contains(e.out.String(), line) {
				t.Errorf("%q is not in the output of fbus %s:\n%s", line, command, &e.out)
			}
		}
	}
	hold("hold", "w1", "w1")
	shows(0, "call --all --tag -n f", "fbus: f: not called, since held: @b/w1\n", "@b/w2\t2\n")
	shows(0, "call --no-wait -n f", "2\n")
	shows(0, "ls f", "(1 of 2 workers held)")
	shows(0, "describe f", "1 of 2 workers at @b: w1\n")
	shows(0, "doctor f", "calls also go to other nodes")

	hold("hold", "w2", "w1", "w2")
	const reason = "all its workers are held: fbus hold, at node b, lists what is held"
	id := d.post("a", "f")
	shows(75, "call --all -n f", "fbus: f: all its workers are held\n", "fbus: hint: fbus hold, at the node of each worker, lists what is held")
	shows(75, "call --no-wait -n f", "fbus: f: "+reason)
	shows(0, "ls f", "(2 of 2 workers held)")
	shows(0, "describe f", reason, "@b gets nothing new")
	shows(0, "jobs", reason)
	shows(75, "doctor f", "all its workers are held", "fbus hold, at node b, lists what is held")

	hold("release", "w2", "w1")
	d.job("a", id)
	shows(0, "call -n f", "2\n")
}

// TestDeniedElsewhere: what the ticket of a mesh may not call at another node is no function of
// that node here, and a denial of that node ends no call that another worker can take.
func TestDeniedElsewhere(t *testing.T) {
	s, err := startServer("127.0.0.1:0", &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopServer(s) })
	d := firstNode(t)
	d.nats = s.ClientURL()
	if err := d.mesh("a", d.ports["a"]); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nap", "who"} {
		if err := d.start("a", "offer", "-q", "--slots", "4", name, "--", "sleep", "0.01"); err != nil {
			t.Fatal(err)
		}
	}
	ticket := d.ticket(t, "lim", "--relay", "--call", "who")
	for _, learns := range []bool{true, false} {
		t.Run(fmt.Sprint(learns), func(t *testing.T) {
			if !learns { // as if the rights had changed since
				defer func(f func(context.Context, *link) error) { learn = f }(learn)
				learn = func(context.Context, *link) error { return nil }
			}
			dir, err := os.MkdirTemp("", "mesh")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			b := &site{t: t, name: "b", urls: d.nats, network: "demo", ticket: ticket, path: filepath.Join(dir, "s")}
			b.startNode()
			b.offer("nap", 1, func(context.Context, *bus.Invocation) bus.Result {
				time.Sleep(10 * time.Millisecond)
				return bus.Exit(0)
			})
			b.join()
			defer func() { b.stop() }()
			b.await("who", 4)
			client := b.dial()
			if _, res, err := call(client, &bus.Request{Function: "who"}); err != nil || res.Worker != "@a" {
				t.Errorf("who runs at %q: %v", res.Worker, err)
			}
			if learns {
				b.await("nap", 0)
			} else {
				b.await("nap", 4)
			}
			const calls = 12
			ends := make(chan error, calls)
			for range calls {
				go func() {
					_, _, err := call(client, &bus.Request{Function: "nap"})
					ends <- err
				}()
			}
			for range calls {
				if err := <-ends; err != nil {
					t.Error(err)
				}
			}
			b.await("nap", 0)
		})
	}
}

// TestRefusedOffer: a function elsewhere for which the own node has no room is offered once there is some.
func TestRefusedOffer(t *testing.T) {
	t.Parallel()
	list, _ := sites(t, 2)
	a, b := list[0], list[1]
	long := strings.Repeat("x", 60<<10)
	offer := func(w string) *bus.Client { // a little more than half of the text that a connection may have
		t.Helper()
		c := b.dial()
		for i := range 20 {
			o := bus.Offer{Name: fmt.Sprintf("%s%d", w, i), Slots: 1, Schema: `{"title":"` + long + `"}`}
			if _, err := c.Offer(t.Context(), o, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) }); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}
	first := offer("first")
	for i := range 20 {
		a.await(fmt.Sprint("first", i), 1)
	}
	offer("second")
	for known := 20; known == 20; time.Sleep(5 * time.Millisecond) {
		known = len(a.node.Functions())
	}
	first.Close()
	for i := range 20 {
		a.await(fmt.Sprint("second", i), 1)
	}
}
