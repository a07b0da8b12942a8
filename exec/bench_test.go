package exec

import (
	"bytes"
	osexec "os/exec"
	"sync"
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
