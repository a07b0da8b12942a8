package testscripts

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	fbus "fbus/bus"
)

// TestUpReloadsUnderLoad: no reload is noticed by a call of a function that it
// does not change, and a call of one that it does is answered by the old or the
// new one. FBUS_SOAK=1 does it 50 times.
func TestUpReloadsUnderLoad(t *testing.T) {
	t.Parallel()
	reloads := 10
	if soak() {
		reloads = 50
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "bus.sock")
	file := filepath.Join(dir, "fbus.toml")
	writeReload(t, file, 0)
	p := startUp(t, file)
	c, err := fbus.Dial(context.Background(), fbus.Unix(socket), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var calls, stop atomic.Int64
	var wg sync.WaitGroup
	for _, name := range []string{"once", "warm", "lines", "once", "lines", "changed"} {
		wg.Go(func() {
			for stop.Load() == 0 {
				var out bytes.Buffer
				_, err := c.Call(context.Background(), &fbus.Request{Function: name, Input: strings.NewReader("x\n"), Stdout: &out})
				want := "x\n"
				if name == "changed" {
					want = "version "
				}
				if err != nil || !strings.HasPrefix(out.String(), want) {
					t.Errorf("%s: %q, %v", name, out.String(), err)
					return
				}
				calls.Add(1)
			}
		})
	}
	for i := 1; i <= reloads && !t.Failed(); i++ {
		writeReload(t, file, i)
		p.cmd.Process.Signal(syscall.SIGHUP)
		added := i % 2
		p.await(t, "reloaded", i, fmt.Sprintf("reloaded: %d added, 1 changed, %d removed, 3 unchanged", added, 1-added))
	}
	before := calls.Load()
	for end := time.Now().Add(patience); calls.Load() < before+20 && !t.Failed() && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // every caller still gets answers
	}
	stop.Store(1)
	wg.Wait()
	if calls.Load() < before+20 {
		t.Error("no more calls are answered")
	}
	t.Logf("%d calls during %d reloads", before, reloads)
}

// writeReload writes version i: three functions that stay, one that changes, and
// one that comes and goes.
func writeReload(t *testing.T, file string, i int) {
	t.Helper()
	text := fmt.Sprintf(`[node]
serve = true
no-tcp = true
socket = "bus.sock"
network = "load"
# %d
[functions]
once.command = ["cat"]
warm = { command = ["cat"], warm = 2 }
lines = { command = ["sh", "-c", "while read -r x; do echo $x; done"], resident = "lines" }
changed.command = ["echo", "version %d"]
`, i, i)
	if i%2 == 1 {
		text += "other.command = [\"true\"]\n"
	}
	next := file + ".new"
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, file); err != nil {
		t.Fatal(err)
	}
}

// upProcess is a running fbus up.
type upProcess struct {
	cmd *exec.Cmd

	mu   sync.Mutex // protects said
	said bytes.Buffer
}

func (p *upProcess) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

// await waits for the nth line with a word, which has to be line.
func (p *upProcess) await(t *testing.T, word string, n int, line string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		said, seen := p.said.String(), 0
		p.mu.Unlock()
		for l := range strings.Lines(said) {
			if strings.Contains(l, word) {
				seen++
			}
			if seen == n {
				if l != "fbus: "+line+"\n" {
					t.Errorf("said %q, not %q", l, line)
				}
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("never said: %s\n%s", line, said)
		}
	}
}

func startUp(t *testing.T, file string) *upProcess {
	t.Helper()
	p := &upProcess{cmd: exec.Command("fbus", "up", "-c", file)}
	p.cmd.Stderr = p
	p.cmd.Env = append(os.Environ(), "FBUS_HOME="+filepath.Dir(file), "FBUS_STATE="+filepath.Dir(file))
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Signal(syscall.SIGTERM)
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("fbus up: %v\n%s", err, p.said.String())
		}
	})
	p.await(t, "offering", 1, "offering 4 functions as worker "+host(t))
	return p
}

func host(t *testing.T) string {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}
