package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// crowd is four nodes with a mesh each and a cluster of three NATS servers, all processes, under
// load: calls and jobs that write down each run of theirs.
type crowd struct {
	*processes
	urls    []string // of the servers
	routes  []string
	servers []*exec.Cmd
	over    chan struct{} // closed when no more load is made
	load    sync.WaitGroup
	caller  int // the last one

	without [][2]time.Time // when the mesh of a was not there, or only just again

	mu    sync.Mutex     // protects the fields below
	calls map[string]int // statuses, by what was called
	ends  map[int]int    // how many calls have ended how
	jobs  map[string]string
}

var crowdNames = []string{"a", "b", "c", "d"}

func newCrowd(t *testing.T) *crowd {
	if os.Getenv("FBUS_SOAK") == "" {
		t.Skip("takes long: FBUS_SOAK=brief and FBUS_SOAK=1 run it")
	}
	d := &crowd{over: make(chan struct{}), calls: map[string]int{}, ends: map[int]int{}, jobs: map[string]string{}, servers: make([]*exec.Cmd, 3)}
	d.urls, d.routes = freeURLs(t, len(d.servers)), freeURLs(t, len(d.servers))
	d.processes = newNodes(t, strings.Join(d.urls, ","))
	for i := range d.servers {
		d.natsServer(i)
	}
	for _, name := range crowdNames {
		d.serve(name)
		d.mesh(name)
		for _, f := range []string{"call", "job", "far"} {
			if f != "far" || name != "a" {
				d.begin(name, "offer", "-q", "--slots", "3", f, "--", "sh", "-c", "echo $1 >>"+filepath.Join(d.dir, f)+"; sleep 0.0$2", "sh", "{1}", "{2}")
			}
		}
	}
	for _, name := range crowdNames {
		d.slots(name, "call", 3, 9)
		d.slots(name, "job", 3, 9)
	}
	return d
}

// natsServer starts one of the servers.
func (d *crowd) natsServer(i int) { d.servers[i] = d.natsMember(i, d.urls, d.routes) }

// callers calls at a node again and again, until the end of the load, with naps between the calls.
func (d *crowd) callers(name, function string, many int, nap time.Duration) {
	for range many {
		d.caller++
		i := d.caller
		d.load.Go(func() {
			var c *bus.Client
			for n := 0; ; n++ {
				select {
				case <-d.over:
					if c != nil {
						c.Close()
					}
					return
				default:
				}
				ctx, cancel := context.WithTimeout(d.ctx, 100*time.Second)
				if c == nil || c.Err() != nil {
					var err error
					if c, err = bus.Dial(ctx, bus.Unix(d.sockets[name]), &bus.Options{Name: "test"}); err != nil {
						c = nil
						cancel()
						time.Sleep(10 * time.Millisecond) // the node is started again
						continue
					}
				}
				what := fmt.Sprint(name, ".", i, ".", n)
				_, err := c.Call(ctx, &bus.Request{
					Function: function, Args: args.List(what, fmt.Sprint(rand.IntN(6))), Stdout: io.Discard, WaitFunction: bus.WaitFor(20 * time.Second),
				})
				cancel()
				status := 0
				if err != nil {
					status = args.AsError(err, args.CodeInternal).Status()
				}
				if status != 0 && status != 74 && status != 255 {
					d.t.Errorf("call %s ends with %v", what, err)
				}
				d.mu.Lock()
				d.calls[what] = status
				d.ends[status]++
				d.mu.Unlock()
				if nap > 0 {
					time.Sleep(rand.N(nap))
				}
			}
		})
	}
}

// posts posts jobs at a node, until the end of the load.
func (d *crowd) posts(name string) {
	d.load.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-d.over:
				return
			case <-time.After(100 * time.Millisecond):
			}
			what := fmt.Sprint(name, ".", n)
			var out bytes.Buffer
			if d.run(name, &out, "post", "-q", "job", what, "1") == nil {
				d.mu.Lock()
				d.jobs[what] = strings.TrimSpace(out.String())
				d.mu.Unlock()
			}
		}
	})
}

// ran returns how often each of the calls or jobs has run.
func (d *crowd) ran(function string) map[string]int {
	text, err := os.ReadFile(filepath.Join(d.dir, function))
	if err != nil {
		d.t.Fatal(err)
	}
	runs := map[string]int{}
	for line := range bytes.Lines(text) {
		runs[strings.TrimSpace(string(line))]++
	}
	return runs
}

// files returns how many descriptors the mesh of a node has.
func (d *crowd) files(name string) int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.meshes[name].Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	return len(list)
}

// check ends the load, and checks what was promised.
func (d *crowd) check(files int) {
	t := d.t
	close(d.over)
	d.load.Wait()
	for _, name := range crowdNames {
		d.slots(name, "call", 3, 9)
	}
	runs := d.ran("call")
	maps.Copy(runs, d.ran("far"))
	for what, status := range d.calls {
		if n := runs[what]; n > 1 || n == 0 && status == 0 {
			t.Errorf("call %s ended with %d and has run %d times", what, status, n)
		}
	}
	dead := 0
	runs = nil
	for what, id := range d.jobs {
		name := what[:1]
		if err := d.run(name, nil, "result", "-w", "30s", "-t", "30s", id); err != nil {
			dead++
			t.Logf("job %s: %v", what, err)
		}
	}
	runs = d.ran("job")
	again := 0
	for what := range d.jobs {
		if runs[what] == 0 {
			t.Errorf("job %s has not run", what)
		}
		again += max(0, runs[what]-1)
	}
	t.Logf("%d calls ended with %v; %d jobs, %d of them run again, %d dead", len(d.calls), d.ends, len(d.jobs), again, dead)
	if d.ends[0] == 0 || len(d.jobs) == 0 {
		t.Error("nothing has run")
	}
	d.waited("a", "call")
	d.waited("a", "far")

	// Nothing is left over: at the nodes, in the mesh, and after the end of all.
	for _, name := range crowdNames {
		if err := d.until(func() error {
			var out bytes.Buffer
			if err := d.run(name, &out, "ls", "--json"); err != nil {
				return err
			}
			for line := range bytes.Lines(out.Bytes()) {
				var i bus.FunctionInfo
				if err := json.Unmarshal(line, &i); err != nil {
					return err
				}
				if i.Busy+i.Queued > 0 {
					return fmt.Errorf("%s at %s: %d busy, %d queued", i.Name, name, i.Busy, i.Queued)
				}
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if err := d.until(func() error {
		if n := d.files("a"); n > files+2 {
			return fmt.Errorf("the mesh of a has %d files open, %d at first", n, files)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	d.stop()
	d.running = nil
	mine := []byte("FBUS_HOME=" + d.dir + "/")
	if err := d.until(func() error {
		list, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, path := range list {
			if env, _ := os.ReadFile(path); bytes.Contains(env, mine) {
				cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
				return fmt.Errorf("left over: %s: %q", filepath.Dir(path), cmd)
			}
		}
		if list, _ := filepath.Glob(filepath.Join(d.dir, "*.sock")); len(list) > 0 {
			return fmt.Errorf("left over: %v", list)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// waited checks how long the calls at a node have waited for a slot. There was always a free one.
func (d *crowd) waited(name, function string) {
	d.t.Helper()
	c := d.client(name)
	var times []time.Duration
	for after, more := uint64(0), true; more; {
		more = false
		text, err := output(d.ctx, c, "fbus.log", args.JSON(fmt.Appendf(nil, `{"function":%q,"event":"call","after":%d}`, function, after)))
		if err != nil {
			d.t.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			var e struct {
				bus.LogEntry
				Next uint64 `json:"next"`
			}
			if err := json.Unmarshal(line, &e); err != nil {
				d.t.Fatal(err)
			}
			if e.Event != "call" {
				after = e.Next
				continue
			}
			more = true
			waited := time.Duration(e.Waited * float64(time.Second))
			for _, w := range d.without {
				if e.Time.Add(-waited).Before(w[1]) && e.Time.After(w[0]) {
					waited = 0 // only its own slots could be used
				}
			}
			if times = append(times, waited); waited > time.Second {
				d.t.Errorf("call %s of %s waited %v at %s, until %v: ended with %d", e.Call, function, waited, name, e.Time.Format(time.StampMilli), e.Status)
			}
		}
	}
	if len(times) == 0 {
		d.t.Fatalf("no calls are in the log of %s", name)
	}
	d.t.Logf("%d calls of %s at %s waited for a slot: median %v, p99 %v, most %v", len(times), function, name, percentile(times, 0.5), percentile(times, 0.99), percentile(times, 1))
}

// TestKilled: nodes, meshes and servers of a cluster are killed in any order, and started again.
func TestKilled(t *testing.T) {
	d := newCrowd(t)
	files := d.files("a")
	d.callers("a", "call", 4, 0)
	d.callers("a", "far", 4, 3*time.Second) // these have to ask for slots anew
	d.callers("b", "call", 2, 100*time.Millisecond)
	d.posts("a")
	d.posts("b")
	times := number("TEST_KILLS", 100)
	if os.Getenv("FBUS_SOAK") == "brief" {
		times = 10
	}
	for range times {
		name := crowdNames[rand.IntN(len(crowdNames))]
		pause := rand.N(200 * time.Millisecond)
		switch rand.IntN(3) {
		case 0:
			if name == "a" { // its callers are judged
				name = "b"
			}
			d.kill(d.serves[name])
			time.Sleep(pause)
			d.serve(name)
		case 1:
			at := time.Now()
			d.kill(d.meshes[name])
			time.Sleep(pause)
			d.mesh(name)
			if name == "a" {
				d.without = append(d.without, [2]time.Time{at, time.Now().Add(2 * time.Second)})
			}
		case 2:
			i := rand.IntN(len(d.servers))
			d.kill(d.servers[i])
			time.Sleep(pause)
			d.natsServer(i)
		}
		time.Sleep(rand.N(500 * time.Millisecond))
	}
	d.check(files)
}

// TestStoppedUnderLoad: a node, a mesh, or a server is stopped (SIGSTOP) for a while. Calls run at the
// others.
func TestStoppedUnderLoad(t *testing.T) {
	d := newCrowd(t)
	files := d.files("a")
	d.callers("a", "call", 4, 0)
	d.callers("a", "far", 4, 3*time.Second)
	d.posts("a")
	during := time.Duration(number("TEST_STOP", 60)) * time.Second
	if os.Getenv("FBUS_SOAK") == "brief" {
		during = 3 * time.Second
	}
	stop := func(what string, p *os.Process) {
		t.Logf("%v: %s is stopped", time.Now().Format(time.StampMilli), what)
		d.mu.Lock()
		before := d.ends[0]
		d.mu.Unlock()
		p.Signal(syscall.SIGSTOP)
		time.Sleep(during)
		p.Signal(syscall.SIGCONT)
		d.mu.Lock()
		ended := d.ends[0] - before
		d.mu.Unlock()
		t.Logf("%d calls have ended meanwhile", ended)
		if ended < int(during/time.Second) {
			t.Errorf("while %s was stopped only %d calls have ended", what, ended)
		}
		for _, name := range crowdNames {
			d.slots(name, "call", 3, 9)
		}
	}
	stop("the mesh of another node", d.meshes["b"].Process)
	for i, s := range d.servers {
		stop(fmt.Sprint("server ", i), s.Process)
	}
	stop("another node", d.serves["c"].Process)
	d.check(files)
}
