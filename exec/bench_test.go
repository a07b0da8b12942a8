package exec

import (
	"bytes"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/exec/keeper"
)

// osCall is what most programs do to run another: the limit that a call is
// measured against.
func osCall(argv ...string) error {
	cmd := osexec.Command(argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader([]byte("hello\n")), &out, &errs
	forget, err := keeper.Adopt(func() (int, error) { return started(cmd) })
	defer forget()
	if err != nil {
		return err
	}
	return cmd.Wait()
}

func fbusCall(b *testing.B, f *Function) {
	var out, errs bytes.Buffer
	res := f.Run(b.Context(), &Call{Input: []byte("hello\n"), Stdout: &out, Stderr: &errs})
	if res.Status != 0 {
		b.Errorf("%+v", res)
	}
}

// timed runs n calls, width at a time.
func timed(n, width int, call func()) time.Duration {
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range width {
		wg.Go(func() {
			for j := i; j < n; j += width {
				call()
			}
		})
	}
	wg.Wait()
	return time.Since(begin)
}

// BenchmarkOnce alternates between this package and os/exec, so that both meet
// the same machine, and reports this package's rate as a share of os/exec's.
func BenchmarkOnce(b *testing.B) {
	for _, program := range []string{"true", "cat"} {
		for _, width := range []int{1, 4, 16} {
			b.Run(program+"/"+string(rune('0'+width/10))+string(rune('0'+width%10)), func(b *testing.B) {
				f := offer(b, Spec{Argv: []string{program}})
				fbus := func() { fbusCall(b, f) }
				plain := func() {
					if err := osCall(program); err != nil {
						b.Error(err)
					}
				}
				timed(2*width, width, fbus)
				var ours, theirs time.Duration
				const batch = 64
				n := 0
				for b.Loop() {
					ours += timed(batch, width, fbus)
					theirs += timed(batch, width, plain)
					n += batch
				}
				b.ReportMetric(float64(ours.Microseconds())/float64(n), "fbus-µs/call")
				b.ReportMetric(float64(theirs.Microseconds())/float64(n), "os/exec-µs/call")
				b.ReportMetric(float64(theirs)/float64(ours), "x-os/exec-rate")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkProgressLines runs a program that writes a million lines about its progress, and one that
// writes them on stderr, in turn. Each chunk of stderr is written on, to /dev/null in place of a
// connection. It reports the worker's processor time and its system calls that read and write, as a
// share of those for stderr.
func BenchmarkProgressLines(b *testing.B) {
	const program = "seq -f '%.0f 1000000 rows' 1000000 >&"
	functions := []*Function{
		offer(b, Spec{Argv: []string{"sh", "-c", program + "3"}, ProgressFD: 3}),
		offer(b, Spec{Argv: []string{"sh", "-c", program + "2"}}),
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	var cpu [2]time.Duration
	var calls [2]int
	for b.Loop() {
		for i, f := range functions {
			var last uint64
			began, before := spent(b)
			res := f.Run(b.Context(), &Call{Stdout: io.Discard, Stderr: null, Progress: func(done, _ uint64, _ string) { last = done }})
			ended, after := spent(b)
			if cpu[i], calls[i] = cpu[i]+ended-began, calls[i]+after-before; res.Status != 0 || i == 0 && last != 1_000_000 {
				b.Fatalf("%+v, the last report is %d", res, last)
			}
		}
	}
	b.ReportMetric(float64(cpu[0])/float64(cpu[1]), "x-stderr-cpu")
	b.ReportMetric(float64(calls[0])/float64(calls[1]), "x-stderr-calls")
}

// spent returns the processor time of this process, and its system calls that have read or written.
func spent(b *testing.B) (cpu time.Duration, calls int) {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Skip(err)
	}
	for line := range strings.Lines(string(text)) {
		var n int
		if k, _ := fmt.Sscanf(line, "syscr: %d", &n); k == 0 {
			fmt.Sscanf(line, "syscw: %d", &n)
		}
		calls += n
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), calls
}
