package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus"

	"github.com/nats-io/nats-server/v2/server"
)

// The tests below are the table of events in docs/mesh.md, with real nodes and meshes.

// soon is what is promised to happen within a second, on a machine that is three times slower.
const soon = 3 * time.Second

// tree is a program with a process that has left its group, and ignores what asks it to end. It
// writes their pids, and ends when the file go is there.
func (d *processes) tree(name string) string {
	return fmt.Sprintf(`(trap "" TERM; exec sleep 1000) & one=$!
		echo "$$ $one" >%[1]s.new; mv %[1]s.new %[1]s
		until test -e %[2]s; do sleep 0.02; done; echo done`, filepath.Join(d.dir, name), filepath.Join(d.dir, "go"))
}

func (d *processes) release() { os.WriteFile(filepath.Join(d.dir, "go"), []byte("\n"), 0o600) }

// post posts a job, and returns its id.
func (d *processes) post(name string, words ...string) string {
	d.t.Helper()
	var out bytes.Buffer
	if err := d.run(name, &out, append([]string{"post", "-n"}, words...)...); err != nil {
		d.t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

// job checks that a job ends well.
func (d *processes) job(name, id string) {
	d.t.Helper()
	if err := d.run(name, nil, "result", "-w", "20s", "-t", "20s", id); err != nil {
		d.t.Errorf("the job posted at %s: %v", name, err)
	}
}

// TestJobForOneNode: a job for one node runs there at once, also where workers here, and slots of another
// node, are free. The other nodes know the attributes of a function.
func TestJobForOneNode(t *testing.T) {
	t.Parallel()
	d := newProcesses(t, "a", "b", "c")
	for _, name := range []string{"a", "b", "c"} {
		d.begin(name, "offer", "-q", "--slots", "1", "f", "--", "echo", name)
		d.offer(name, "only."+name, "true", "--attr", "tool", "--attr", "x.y=1")
	}
	for _, name := range []string{"a", "b", "c"} {
		d.slots(name, "f", 1, 2)
	}
	d.slots("a", "only.b", 0, 1)
	var out bytes.Buffer
	if err := d.run("a", &out, "describe", "--json", "only.b"); err != nil || !strings.Contains(out.String(), `"attributes":{"tool":"","x.y":"1"}`) {
		t.Errorf("%v: %s", err, &out)
	}
	for range 5 {
		for _, name := range []string{"c", "b"} {
			out.Reset()
			if err := d.run("a", &out, "result", "-w", "5s", "-t", "5s", d.post("a", "--on", "@"+name, "f")); err != nil || out.String() != name+"\n" {
				t.Fatalf("for @%s: %v: %s", name, err, &out)
			}
		}
	}
}

// TestNodeDrains: node b gets TERM while a call of a's runs there, and one of its own at a. Both finish. Its
// functions are gone at a at once.
func TestNodeDrains(t *testing.T) {
	t.Parallel()
	d := newProcesses(t, "a", "b")
	d.offer("b", "there", d.tree("there"))
	d.offer("a", "back", d.tree("back"))
	d.slots("a", "there", 0, 1)
	d.slots("b", "back", 0, 1)
	there, back := d.fbusRuns("a", "call", "-n", "there"), d.fbusRuns("b", "call", "-n", "back")
	d.file("there")
	d.file("back")
	at := time.Now()
	d.serves["b"].Process.Signal(syscall.SIGTERM)
	d.slots("a", "there", 0, 0)
	d.ends("drained", d.fbusRuns("a", "call", "-n", "--no-wait", "there"), 69, at, soon)
	d.release()
	d.ends("drained", there, 0, at, 0)
	d.ends("drained", back, 0, at, 0)
}

// TestWorkerOrNodeDies: a worker, or node, elsewhere dies in the middle of a call. The caller gets
// 74; a job runs again, and so does a call that may.
func TestWorkerOrNodeDies(t *testing.T) {
	for _, dies := range []string{"worker", "node"} {
		t.Run(dies, func(t *testing.T) {
			t.Parallel()
			d := newProcesses(t, "a", "b", "c")
			script := func(f, name string) string { return d.tree(f + "." + name) }
			victims := []*os.Process{}
			for _, f := range []string{"call", "again", "job"} {
				victims = append(victims, d.offer("b", f, script(f, "b")).Process)
				d.slots("a", f, 0, 1)
			}
			call := d.fbusRuns("a", "call", "-n", "call")
			again := d.fbusRuns("a", "call", "-n", "--retries", "1", "-w", "20s", "again")
			id := d.post("a", "job")
			for _, f := range []string{"call", "again", "job"} {
				d.file(f + ".b")
			}
			if dies == "node" {
				victims = []*os.Process{d.serves["b"].Process}
			}
			at := time.Now()
			for _, p := range victims {
				p.Kill()
			}
			d.ends(dies, call, 74, at, soon)
			for _, f := range []string{"call", "again", "job"} {
				d.gone(dies, f+".b")
				d.slots("a", f, 0, 0)
			}
			d.offer("c", "again", script("again", "c"))
			d.offer("c", "job", script("job", "c"))
			d.file("again.c")
			d.file("job.c")
			d.release()
			d.ends(dies, again, 0, at, 0)
			d.job("a", id)
		})
	}
}

// TestMeshDies: the mesh of node a dies. Its relayed calls end with 74 and their programs at b are
// gone; calls of a's own workers go on as if nothing had been. When the mesh is back, so are the
// functions elsewhere.
func TestMeshDies(t *testing.T) {
	t.Parallel()
	d := newProcesses(t, "a", "b")
	d.offer("a", "here", d.tree("here"))
	d.offer("a", "quick", "echo x")
	d.offer("b", "there", d.tree("there"))
	d.offer("b", "ran", d.tree("ran"))
	d.slots("a", "there", 0, 1)
	d.slots("a", "ran", 0, 1)
	here, there := d.fbusRuns("a", "call", "-n", "here"), d.fbusRuns("a", "call", "-n", "there")
	id := d.post("a", "ran")
	for _, f := range []string{"here", "there", "ran"} {
		d.file(f)
	}
	for range 3 { // as often as a job may lose its worker
		client := d.client("a")
		stop, most := make(chan struct{}), make(chan time.Duration, 1)
		go func() { // ends when stop is closed
			longest := time.Duration(0)
			for {
				select {
				case <-stop:
					most <- longest
					return
				default:
				}
				at := time.Now()
				if _, _, err := call(client, &bus.Request{Function: "quick"}); err != nil {
					t.Errorf("a call of a's own worker: %v", err)
					<-stop
					most <- 0
					return
				}
				longest = max(longest, time.Since(at))
			}
		}()
		at := time.Now()
		d.kill(d.meshes["a"])
		d.ends("mesh", there, 74, at, soon)
		d.gone("mesh", "there")
		d.gone("mesh", "ran")
		d.slots("a", "there", 0, 0)
		at = time.Now()
		d.mesh("a")
		d.slots("a", "there", 0, 1)
		if took := time.Since(at); took > 2*soon {
			t.Errorf("functions elsewhere are back after %v", took)
		}
		there = d.fbusRuns("a", "call", "-n", "-w", "20s", "there")
		d.file("there")
		d.file("ran") // the job runs again
		close(stop)
		if longest := <-most; longest > soon {
			t.Errorf("a call of a's own worker took %v", longest)
		}
	}
	select {
	case <-here.ended:
		t.Errorf("a call of a's own worker has ended with the mesh: %s", &here.out)
	default:
	}
	d.release()
	d.ends("mesh", here, 0, time.Now(), 0)
	d.ends("mesh", there, 0, time.Now(), 0)
	d.gone("mesh", "here")
	d.job("a", id)
}

// TestOwnNodeDies: node a dies. Its callers get 255, and b ends their programs. When a is back, its
// mesh finds it, and its jobs run, those too that had begun.
func TestOwnNodeDies(t *testing.T) {
	t.Parallel()
	d := newProcesses(t, "a", "b")
	d.offer("b", "call", d.tree("call"))
	d.offer("b", "job", d.tree("job"))
	d.slots("a", "call", 0, 1)
	d.slots("a", "job", 0, 1)
	call := d.fbusRuns("a", "call", "-n", "call")
	ids := []string{d.post("a", "job"), d.post("a", "job"), d.post("a", "job")}
	d.file("call")
	d.file("job")
	at := time.Now()
	d.kill(d.serves["a"])
	d.ends("node", call, 255, at, soon)
	d.gone("node", "call")
	d.gone("node", "job")
	d.release()
	d.serve("a")
	for _, id := range ids {
		d.job("a", id)
	}
	d.ends("node", d.fbusRuns("a", "call", "-n", "-w", "20s", "call"), 0, at, 0)
}

// TestServerGone: the NATS server is gone. Calls go on, and so does each node by itself. Functions
// that are only elsewhere are gone after three missed words. The meshes find the server again.
func TestServerGone(t *testing.T) {
	t.Setenv("TEST_HELLO_EVERY", "300ms")
	d := newProcesses(t, "a", "b")
	d.offer("a", "here", "echo x")
	d.offer("b", "there", d.tree("there"))
	d.slots("a", "there", 0, 1)
	long := d.fbusRuns("a", "call", "-n", "there")
	d.file("there")
	port := d.server.Addr().String()
	stopServer(d.server)
	at := time.Now()
	d.ends("local", d.fbusRuns("a", "call", "-n", "here"), 0, at, 0)
	d.slots("a", "there", 0, 0)
	d.ends("elsewhere", d.fbusRuns("a", "call", "-n", "there"), 69, time.Now(), 0)
	d.ends("elsewhere", d.fbusRuns("a", "call", "-n", "-w", "300ms", "there"), 69, time.Now(), 0)
	waiting := d.fbusRuns("a", "call", "-n", "-w", "20s", "there")
	select {
	case <-long.ended:
		t.Errorf("a call has ended with NATS: %s", &long.out)
	default:
	}
	s, err := startServer(port, &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.server = s
	d.release()
	d.ends("what ran", long, 0, at, 0)
	d.ends("what waited", waiting, 0, at, 0)
}
