package testscripts

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// long skips a test that takes long, unless FBUS_SOAK=brief or FBUS_SOAK=1 asks for it.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("FBUS_SOAK") == "" {
		t.Skip("takes long: FBUS_SOAK=brief runs it, FBUS_SOAK=1 a hundred times as long")
	}
}

// soak reports whether tests take as long as a soak should: FBUS_SOAK=1.
func soak() bool { return os.Getenv("FBUS_SOAK") == "1" }

// mapMemory is what fbus map may take at most, however many lines there are.
const mapMemory = 96 << 20

// TestMapLosesNothing sends many lines through resident programs whose workers
// are killed at random: each line comes back, once, in order. FBUS_SOAK=1 does it
// with 100,000 lines, twice, and with a second program.
func TestMapLosesNothing(t *testing.T) {
	long(t)
	t.Parallel()
	lines, rounds := 3_000, 1
	programs := [][]string{{"sh", "-c", `while IFS= read -r line; do printf 'got %s\n' "$line"; done`}}
	if soak() {
		lines, rounds = 100_000, 2
		programs = append(programs, []string{"python3", "-c", "import sys\nfor line in sys.stdin: print('got', line, end='')"})
	}
	for _, program := range programs {
		for round := range rounds {
			t.Run(fmt.Sprint(program[0], round), func(t *testing.T) { killedWorkers(t, program, lines) })
		}
	}
}

func killedWorkers(t *testing.T, program []string, lines int) {
	if _, err := exec.LookPath(program[0]); err != nil {
		t.Skip(err)
	}
	s := newBus(t)
	stop := make(chan struct{})
	var workers sync.WaitGroup
	kills := make(chan int, 2)
	var got progress
	for i := range 2 {
		workers.Go(func() { kills <- s.mortal(t, fmt.Sprint("w", i), program, &got, stop) })
	}
	var in, want, stderr bytes.Buffer
	for i := range lines {
		fmt.Fprintln(&in, "line", i)
		fmt.Fprintln(&want, "got line", i)
	}
	cmd := s.command("map", "-w", "60s", "--retries", "100", "--no-bar", "f")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &got, &stderr
	err := cmd.Run()
	close(stop)
	workers.Wait()
	t.Logf("%d workers were killed", <-kills+<-kills)
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	if !bytes.Equal(got.all, want.Bytes()) {
		t.Errorf("%s", firstDifference(got.all, want.Bytes()))
	}
	if most := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10; most > mapMemory && !raceEnabled {
		t.Errorf("%d bytes of memory", most)
	}
}

// progress is an output, and how far it has come.
type progress struct {
	all   []byte
	bytes atomic.Int64
}

func (p *progress) Write(b []byte) (int, error) {
	p.all = append(p.all, b...)
	p.bytes.Add(int64(len(b)))
	return len(b), nil
}

// after returns a channel that is closed when so many more bytes are there, or at
// stop.
func (p *progress) after(more int64, stop <-chan struct{}) <-chan struct{} {
	until, there := p.bytes.Load()+more, make(chan struct{})
	go func() {
		defer close(there)
		for p.bytes.Load() < until {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return there
}

// mortal keeps a worker that is killed again and again, until stop, and returns
// how often it was. Most live until the work has gone on, by a random amount, so
// that it comes to its end however slow the machine is; some do not.
func (s *bus) mortal(t *testing.T, name string, program []string, got *progress, stop <-chan struct{}) int {
	for kills := 0; ; kills++ {
		var said bytes.Buffer
		cmd := s.command(append([]string{"offer", "f", "--worker", name, "--slots", "2", "--resident", "lines", "--"}, program...)...)
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Error(err)
			return kills
		}
		if kills%4 == 3 {
			time.Sleep(rand.N(100 * time.Millisecond))
		} else {
			<-got.after(rand.N[int64](8<<10), stop)
		}
		select {
		default:
			cmd.Process.Kill()
			cmd.Wait()
		case <-stop:
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
			if strings.Contains(said.String(), "panic") {
				t.Error(said.String())
			}
			return kills
		}
	}
}

// firstDifference says where two outputs part.
func firstDifference(got, want []byte) string {
	a, b := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("line %d is %q, not %q", i+1, a[i], b[i])
		}
	}
	return fmt.Sprintf("%d lines, not %d", len(a), len(b))
}
