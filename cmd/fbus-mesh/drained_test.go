package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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
	"fbus/cmd/testbus"
)

// TestDrainsUnderLoad: node b, its mesh, and that of a get TERM in turn, while a has more calls and jobs than it can
// run alone. None of them fails, and each runs once. FBUS_SOAK=1 drains them more often.
func TestDrainsUnderLoad(t *testing.T) {
	t.Parallel()
	rounds := 2
	if os.Getenv("FBUS_SOAK") == "1" {
		rounds = 20
	}
	d := newProcesses(t, "a", "b")
	for _, name := range []string{"a", "b"} {
		d.begin(name, "offer", "-q", "--slots", "2", "f", "--", "sh", "-c", "echo $1 >>"+filepath.Join(d.dir, "runs")+"; sleep 0.01", "sh", "{1}")
	}
	d.slots("a", "f", 2, 2)

	call := func(ctx context.Context, c *bus.Client, what string) error {
		_, err := output(ctx, c, "f", args.List(what))
		return err
	}
	job := func(ctx context.Context, c *bus.Client, what string) error {
		id, err := output(ctx, c, "fbus.post", args.List("f", `{"at_most_once":true}`, string(args.List(what).Data())))
		if err == nil {
			_, err = output(ctx, c, "fbus.result", args.List(strings.TrimSpace(string(id))))
		}
		return err
	}
	var load sync.WaitGroup
	over := make(chan struct{})
	counts := make([]int, 8)
	for i := range counts {
		c, name, run := d.client("a"), "call", call
		if i%2 == 1 {
			name, run = "job", job
		}
		load.Go(func() {
			for ; ; counts[i]++ {
				select {
				case <-over:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(d.ctx, 20*time.Second)
				if err := run(ctx, c, fmt.Sprint(i, ".", counts[i])); err != nil {
					t.Errorf("%s %d.%d: %v", name, i, counts[i], err)
				}
				cancel()
			}
		})
	}
	drain := func(cmd *exec.Cmd) {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
	for range rounds {
		drain(d.serves["b"])
		d.serve("b")
		d.slots("a", "f", 2, 2)
		drain(d.meshes["b"])
		d.mesh("b")
		d.slots("a", "f", 2, 2)
		drain(d.meshes["a"])
		d.mesh("a")
		d.slots("a", "f", 2, 2)
	}
	close(over)
	load.Wait()

	text, err := os.ReadFile(filepath.Join(d.dir, "runs"))
	if err != nil {
		t.Fatal(err)
	}
	runs := map[string]int{}
	for what := range bytes.FieldsSeq(text) {
		runs[string(what)]++
	}
	for i, n := range counts {
		if n == 0 {
			t.Errorf("load %d: nothing has run", i)
		}
		for k := range n {
			if what := fmt.Sprint(i, ".", k); runs[what] != 1 {
				t.Errorf("%s has run %d times", what, runs[what])
			}
		}
	}
	t.Logf("%d calls and jobs", len(runs))
}

// TestOwnNodeDrains: node a gets TERM while a call of its own runs at b, and others wait for the slot there. All of
// them run. If the mesh of a gets TERM after that, the call that runs may finish.
func TestOwnNodeDrains(t *testing.T) {
	t.Parallel()
	for _, meshToo := range []bool{false, true} {
		d := newProcesses(t, "a", "b")
		d.offer("a", "here", "echo x")
		d.offer("b", "there", "echo x >>"+filepath.Join(d.dir, "runs")+"; until [ -e "+filepath.Join(d.dir, "go")+" ]; do sleep 0.02; done")
		d.slots("a", "there", 0, 1)
		d.slots("b", "here", 0, 1)
		calls := []*ending{d.fbusRuns("a", "call", "-n", "there")}
		d.file("runs")
		b := d.client("b")
		if !meshToo {
			calls = append(calls, d.fbusRuns("a", "call", "-n", "there"), d.fbusRuns("a", "call", "-n", "there"))
			a := d.client("a")
			testbus.Until(t, "two calls wait", func() bool {
				var f bus.FunctionInfo
				text, _ := output(d.ctx, a, "fbus.functions", args.List("there"))
				return json.Unmarshal(text, &f) == nil && f.Queued == 2
			})
		}
		at := time.Now()
		d.serves["a"].Process.Signal(syscall.SIGTERM)
		d.slots("b", "here", 0, 0)
		if meshToo {
			d.meshes["a"].Process.Signal(syscall.SIGTERM)
			testbus.Until(t, "the mesh has left", func() bool {
				var i bus.MeshInfo
				text, _ := output(d.ctx, b, bus.MeshFunction, args.Args{})
				return json.Unmarshal(text, &i) == nil && len(i.Peers) == 0
			})
		}
		d.release()
		for _, c := range calls {
			d.ends("drained", c, 0, at, 0)
		}
	}
}
