package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"fbus/bus"

	"github.com/nats-io/nats.go"
)

// TestStopped: while the mesh of a node is stopped (SIGSTOP), calls of others run at those that are
// not: none waits for more than a second beside a free slot. FBUS_SOAK=1 stops it for a minute.
func TestStopped(t *testing.T) {
	t.Parallel()
	during := 5 * time.Second
	if os.Getenv("FBUS_SOAK") == "1" {
		during = time.Minute
	}
	d := newProcesses(t, "a", "b", "c")
	for _, name := range []string{"b", "c"} {
		d.begin(name, "offer", "-q", "--slots", "2", "f", "--", "true")
	}
	d.slots("a", "f", 0, 4)
	client := d.client("a")
	stopped := d.meshes["b"].Process
	stopped.Signal(syscall.SIGSTOP)
	var times []time.Duration
	for until := time.Now().Add(during); time.Now().Before(until); {
		ctx, cancel := context.WithTimeout(context.Background(), during)
		at := time.Now()
		_, err := client.Call(ctx, &bus.Request{Function: "f", Stdout: io.Discard})
		times = append(times, time.Since(at))
		cancel()
		if err != nil {
			t.Error(err)
		}
	}
	stopped.Signal(syscall.SIGCONT)
	most := percentile(times, 1)
	t.Logf("%d calls, median %v, most %v", len(times), percentile(times, 0.5), most)
	if most > time.Second {
		t.Errorf("a call waits for %v", most)
	}
	d.slots("a", "f", 0, 4)
}

// TestOwnMeshStopped: the mesh of the caller's node is stopped for longer than others may be silent. Calls that
// wait meanwhile run when it goes on: it does not take the others for silent.
func TestOwnMeshStopped(t *testing.T) {
	t.Setenv("TEST_HELLO_EVERY", "300ms")
	d := newProcesses(t, "a", "b")
	d.begin("b", "offer", "-q", "--slots", "2", "f", "--", "true")
	d.slots("a", "f", 0, 2)
	stopped := d.meshes["a"].Process
	for range 3 {
		stopped.Signal(syscall.SIGSTOP)
		var calls []*ending
		for range 5 {
			calls = append(calls, d.fbusRuns("a", "call", "-n", "f"))
		}
		time.Sleep(4 * 300 * time.Millisecond) // long enough for a mesh to count as silent
		stopped.Signal(syscall.SIGCONT)
		for _, c := range calls {
			d.ends("stopped", c, 0, time.Now(), 0)
		}
	}
}

// TestServerStopped: the NATS server of another node's mesh is stopped. Calls for an idle function there run all the
// same: the node is asked itself.
func TestServerStopped(t *testing.T) {
	t.Parallel()
	urls, routes := freeURLs(t, 2), freeURLs(t, 2)
	d := newNodes(t, "", "a", "b")
	var servers []*exec.Cmd
	for i, name := range []string{"a", "b"} {
		servers = append(servers, d.natsMember(i, urls, routes))
		d.nats = urls[i]
		d.mesh(name)
	}
	d.offer("b", "f", "echo x")
	d.slots("a", "f", 0, 1)
	client := d.client("a")
	stopped := servers[1].Process
	stopped.Signal(syscall.SIGSTOP)
	defer stopped.Signal(syscall.SIGCONT)
	at := time.Now()
	if out, _, err := call(client, &bus.Request{Function: "f"}); err != nil || out != "x\n" {
		t.Errorf("%q, %v", out, err)
	}
	if took := time.Since(at); took > soon {
		t.Errorf("a call beside a free slot takes %v", took)
	}
}

// TestNodeStopped: node b is stopped (SIGSTOP), and its mesh is not. Calls that run there end with 74,
// and others run elsewhere, also those of clients of NATS. When it goes on, it is back.
func TestNodeStopped(t *testing.T) {
	t.Parallel()
	d := newProcesses(t)
	for _, name := range []string{"a", "b", "c"} {
		d.serve(name)
		d.mesh(name, "--nats-service", "f")
	}
	nc, err := nats.Connect(d.nats)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	d.offer("b", "long", d.tree("long"))
	d.offer("b", "f", "echo x")
	d.begin("c", "offer", "-q", "--slots", "1", "f", "--", "echo", "x")
	d.slots("a", "f", 0, 2)
	d.slots("a", "long", 0, 1)
	long := d.fbusRuns("a", "call", "-n", "long")
	d.file("long")
	stopped := d.serves["b"].Process
	at := time.Now()
	stopped.Signal(syscall.SIGSTOP)
	defer stopped.Signal(syscall.SIGCONT)
	d.ends("node", long, 74, at, pulseEvery+pulseLost+soon)
	d.slots("a", "f", 0, 1)
	d.slots("a", "long", 0, 0)
	client := d.client("a")
	for range 20 {
		if msg, err := nc.Request("f", nil, soon); err != nil || string(msg.Data) != "x\n" {
			t.Errorf("a client of NATS: %v", err)
		}
		at := time.Now()
		if _, _, err := call(client, &bus.Request{Function: "f"}); err != nil {
			t.Error(err)
		}
		if took := time.Since(at); took > soon {
			t.Errorf("a call beside a free slot takes %v", took)
		}
	}
	at = time.Now()
	stopped.Signal(syscall.SIGCONT)
	d.gone("node", "long")
	d.slots("a", "f", 0, 2)
	d.slots("a", "long", 0, 1)
	if took := time.Since(at); took > 2*time.Second+soon {
		t.Errorf("it is back after %v", took)
	}
	d.release()
	d.ends("node", d.fbusRuns("a", "call", "-n", "long"), 0, time.Now(), 0)
}
