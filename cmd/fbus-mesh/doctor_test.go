package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats.go"
)

// TestDoctorTwins: fbus doctor warns of two nodes with one name once, and says which they are.
func TestDoctorTwins(t *testing.T) {
	t.Setenv("TEST_HELLO_EVERY", "300ms")
	d := newProcesses(t, "a")
	for _, name := range []string{"x", "y"} {
		d.serve(name)
		d.begin(name, "mesh", "-q", "--name", "b", d.nats)
	}
	var out bytes.Buffer
	if err := d.until(func() error {
		out.Reset()
		if err := d.run("a", &out, "doctor"); err != nil {
			return err
		}
		const twins = "warn  mesh         more than one node is called @b: "
		_, line, _ := strings.Cut(out.String(), twins)
		line, _, _ = strings.Cut(line, "\n")
		if strings.Count(out.String(), twins) != 1 || !strings.Contains(line, d.sockets["x"]) || !strings.Contains(line, d.sockets["y"]) {
			return args.Errorf(args.CodeInternal, "they are not shown once")
		}
		return nil
	}); err != nil {
		t.Errorf("%v:\n%s", err, &out)
	}
}

// TestDoctor: fbus doctor and status show what is wrong with the mesh of a node.
func TestDoctor(t *testing.T) {
	t.Setenv("TEST_HELLO_EVERY", "300ms")
	d := newProcesses(t, "a", "b")
	d.offer("b", "f", "true")
	d.slots("a", "f", 0, 1)
	shows := func(command string, lines ...string) {
		t.Helper()
		var out bytes.Buffer
		if err := d.until(func() error {
			out.Reset()
			if err := d.run("a", &out, command); err != nil {
				return err
			}
			for _, line := range lines {
				if !strings.Contains(out.String(), line) {
					return args.Errorf(args.CodeInternal, "%q is not in the output", line)
				}
			}
			return nil
		}); err != nil {
			t.Errorf("%v:\n%s", err, &out)
		}
	}
	shows("doctor", "ok    mesh         node a with 1 other node, NATS at "+d.nats)

	// Two nodes say hello: one of another version, and one that cannot be reached and whose clock is wrong.
	nc, err := nats.Connect(d.nats)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	say := func(h hello) {
		data, err := json.Marshal(h)
		if err == nil {
			err = nc.Publish("fbus.t.hello", data)
		}
		if err == nil {
			err = nc.Flush()
		}
		if err != nil {
			t.Error(err)
		}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(ended)
		for {
			say(hello{Version: namesVersion + 1, Node: "new", ID: "new"})
			say(hello{Version: namesVersion, Node: "odd", ID: "odd", Time: time.Now().Add(-time.Hour).UnixMilli()})
			select {
			case <-time.After(100 * time.Millisecond):
			case <-stop:
				return
			}
		}
	}()
	const other = "its fbus mesh has version 2 of the messages, and this one 1"
	shows("doctor", "warn  mesh         @new is left out: "+other, "warn  mesh         @odd is left out: ", "warn  mesh         the clock of @odd is 1h0m0s behind this node's")
	shows("status", "@new not reached: "+other, "@odd not reached: ")
	close(stop)
	<-ended

	d.meshes["a"].Process.Signal(syscall.SIGSTOP)
	defer d.meshes["a"].Process.Signal(syscall.SIGCONT)
	shows("doctor", "warn  mesh         the mesh of this node does not answer: ")
	shows("status", "mesh       does not answer: no answer within 2s")
	d.meshes["a"].Process.Signal(syscall.SIGCONT)

	stopServer(d.server)
	shows("doctor", "warn  mesh         not connected to NATS: ", "new calls stay at this node")
	shows("status", "not connected to NATS: ")
	var info bus.MeshInfo
	text, err := output(d.ctx, d.client("a"), bus.MeshFunction, bus.Args{})
	if err == nil {
		err = json.Unmarshal(text, &info)
	}
	if err != nil || info.NATS != "" || info.NATSError == "" {
		t.Errorf("%s, %v", text, err)
	}
}
