package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
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
