package exec

import (
	"bufio"
	"fmt"
	"io"
	osexec "os/exec"
	"sync"
	"testing"
	"time"

	"fbus/bus/jsonrpc"
	"fbus/exec/keeper"
)

// loops answer lines with lines.
var loops = map[string][]string{
	"perl":   {"perl", "-e", `$| = 1; print "got $_" while <STDIN>`},
	"python": {"python3", "-uc", "import sys\nfor line in sys.stdin: sys.stdout.write('got ' + line)"},
}

// direct is a loop that is driven by hand, as whoever needs no bus would.
type direct struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func driven(b *testing.B, argv []string) *direct {
	cmd := osexec.Command(argv[0], argv[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	forget, err := keeper.Adopt(func() (int, error) { return started(cmd) })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		cmd.Wait()
		forget()
	})
	return &direct{in, bufio.NewReader(out)}
}

func (d *direct) call(line []byte) error {
	if _, err := d.in.Write(line); err != nil {
		return err
	}
	_, err := d.out.ReadSlice('\n')
	return err
}

// inTurn measures two ways alternately, so that both meet the same machine,
// and reports the first as a share of the second.
func inTurn(b *testing.B, batch, width int, ours, theirs func(i int)) {
	run := func(call func(int)) time.Duration {
		begin := time.Now()
		var wg sync.WaitGroup
		for i := range width {
			wg.Go(func() {
				for range batch / width {
					call(i)
				}
			})
		}
		wg.Wait()
		return time.Since(begin)
	}
	run(ours)
	run(theirs)
	var mine, his time.Duration
	n := 0
	for b.Loop() {
		mine += run(ours)
		his += run(theirs)
		n += batch
	}
	b.ReportMetric(float64(n)/mine.Seconds(), "calls/s")
	b.ReportMetric(float64(n)/his.Seconds(), "limit/s")
	b.ReportMetric(float64(his)/float64(mine), "x-limit")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkResident is two calls at a time through two loops, beside the same
// two loops driven directly.
func BenchmarkResident(b *testing.B) {
	line := []byte("hello world\n")
	for name, argv := range loops {
		b.Run(name, func(b *testing.B) {
			f := offer(b, Spec{Argv: argv, Resident: LineByLine, Slots: 2})
			two := [2]*direct{driven(b, argv), driven(b, argv)}
			inTurn(b, 4000, 2, func(int) {
				if res := f.Run(b.Context(), &Call{Input: line}); string(res.Output) != "got hello world\n" {
					b.Errorf("%+v", res)
				}
			}, func(i int) {
				if err := two[i].call(line); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// BenchmarkRPC is the same with messages, whose encoding the direct way is
// spared.
func BenchmarkRPC(b *testing.B) {
	argv := []string{"perl", "-e", `$| = 1; while (<STDIN>) { /"id":(\d+)/; print qq({"jsonrpc":"2.0","id":$1,"result":"hello"}\n) }`}
	for _, pipeline := range []int{1, 8} {
		b.Run(fmt.Sprint(pipeline), func(b *testing.B) {
			f := offer(b, Spec{Argv: argv, Resident: JSONRPC, Slots: 2 * pipeline, Pipeline: pipeline})
			two := [2]*direct{driven(b, argv), driven(b, argv)}
			var turn [2]sync.Mutex
			line := jsonrpc.AppendRequest(nil, 1, "f", []byte("[]"))
			inTurn(b, 4000, 2*pipeline, func(int) {
				if res := f.Run(b.Context(), &Call{}); string(res.Output) != "\"hello\"\n" {
					b.Errorf("%+v", res)
				}
			}, func(i int) {
				turn[i%2].Lock()
				defer turn[i%2].Unlock()
				if err := two[i%2].call(line); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// BenchmarkWarmStartup is the call of a program that takes its time to start,
// once it has, beside a start of cat.
func BenchmarkWarmStartup(b *testing.B) {
	ready := newLines()
	spec := Spec{Argv: []string{"python3", "-c", "import sys, time; time.sleep(0.15); sys.stderr.write('ready\\n'); sys.stdin.read(); print('done')"}, Warm: 1}
	logged(ready)(&spec)
	f := offer(b, spec)
	var ours, theirs time.Duration
	n := 0
	for b.Loop() {
		<-ready.said
		begin := time.Now()
		fbusCall(b, f)
		ours += time.Since(begin)
		<-ready.said
		io.WriteString(ready, "ready\n")
		begin = time.Now()
		if err := osCall("cat"); err != nil {
			b.Error(err)
		}
		theirs += time.Since(begin)
		n++
	}
	b.ReportMetric(float64(ours.Microseconds())/float64(n), "fbus-µs/call")
	b.ReportMetric(float64(theirs.Microseconds())/float64(n), "cat-µs/start")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkWarm is the call of a program that was started ahead beside the
// start of one that does the same.
func BenchmarkWarm(b *testing.B) {
	f := offer(b, Spec{Argv: []string{"cat"}, Warm: 4, Slots: 8})
	inTurn(b, 64, 1, func(int) { fbusCall(b, f) }, func(int) {
		if err := osCall("cat"); err != nil {
			b.Error(err)
		}
	})
}
