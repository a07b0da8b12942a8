package testscripts

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	fbus "fbus/bus"
)

// The benchmarks here time whole processes, of a release build, each beside its
// limit or peer in the same run: "ratio" is what to quote. They need nothing but
// Go; the peers are skipped where they are not installed.
//
//	go test ./testscripts -run xxx -bench .

func init() {
	if benchRole() {
		os.Exit(0)
	}
}

// release builds fbus as it is released.
func release(b testing.TB) string {
	out := filepath.Join(b.TempDir(), "fbus")
	if err := build(out, ".."); err != nil {
		b.Fatal(err)
	}
	return out
}

func build(out, dir string) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", out, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, msg)
	}
	return nil
}

// bus is a node and its workers as processes.
type bus struct {
	b      testing.TB
	fbus   string
	socket string
	node   *exec.Cmd // set where it is looked at
}

// newBus starts one: for a benchmark of a release build; a test takes the fbus that
// the scripts take.
func newBus(b testing.TB, offers ...[]string) *bus {
	s := &bus{b: b, fbus: "fbus", socket: filepath.Join(b.TempDir(), "bus.sock")}
	if _, measured := b.(*testing.B); measured {
		s.fbus = release(b)
	}
	s.background("ready", "serve", "--no-tcp", "--socket", s.socket, "--network", "bench")
	for _, o := range offers {
		s.background("offering", append([]string{"offer"}, o...)...)
	}
	return s
}

func (s *bus) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.fbus, args...)
	dir := filepath.Dir(s.socket)
	cmd.Env = append(os.Environ(), "FBUS_NODE="+s.socket, "FBUS_HOME="+filepath.Join(dir, "home"), "FBUS_STATE="+filepath.Join(dir, "state"))
	return cmd
}

// background starts an fbus until the benchmark ends, and waits for its word.
func (s *bus) background(word string, args ...string) { until(s.b, s.command(args...), word) }

// until starts a process that says word on stderr when it is ready, and returns
// what it has said.
func until(b testing.TB, cmd *exec.Cmd, word string) string {
	b.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	w.Close()
	b.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		r.Close()
	})
	var said []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(said, []byte(word)) {
		n, err := r.Read(buf)
		if err != nil {
			b.Fatalf("%v ended: %s", cmd.Args, said)
		}
		said = append(said, buf[:n]...)
	}
	go io.Copy(io.Discard, r) // ends with the process
	return string(said)
}

// pair alternates two commands and reports their medians and the ratio.
func pair(b *testing.B, ours, peer func() *exec.Cmd) {
	b.Helper()
	run := func(cmd *exec.Cmd) time.Duration {
		start := time.Now()
		if err := cmd.Run(); err != nil {
			b.Fatalf("%v: %v", cmd.Args, err)
		}
		return time.Since(start)
	}
	var a, p []time.Duration
	for b.Loop() {
		a, p = append(a, run(ours())), append(p, run(peer()))
	}
	report(b, a, p, "ms")
}

func report(b *testing.B, ours, peer []time.Duration, unit string) {
	slices.Sort(ours)
	slices.Sort(peer)
	o, p := ours[len(ours)/2], peer[len(peer)/2]
	b.ReportMetric(float64(o)/1e6, "fbus-"+unit)
	b.ReportMetric(float64(p)/1e6, "peer-"+unit)
	b.ReportMetric(float64(o)/float64(p), "ratio")
}

// BenchmarkStart is fbus --version beside a Go program that does nothing.
func BenchmarkStart(b *testing.B) {
	fbus, src := release(b), b.TempDir()
	empty := filepath.Join(src, "empty")
	os.WriteFile(filepath.Join(src, "go.mod"), []byte("module empty\n"), 0o644)
	os.WriteFile(filepath.Join(src, "main.go"), []byte("package main\n\nfunc main() {}\n"), 0o644)
	if err := build(empty, src); err != nil {
		b.Fatal(err)
	}
	pair(b, func() *exec.Cmd { return exec.Command(fbus, "--version") },
		func() *exec.Cmd { return exec.Command(empty) })
}

// BenchmarkCallGearman is a call of cat, started for it, started ahead, and of a
// loop of Perl that stays, beside gearman's client and worker with cat.
func BenchmarkCallGearman(b *testing.B) {
	for _, tool := range []string{"gearmand", "gearman"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skipf("%s is not installed (Debian: gearman-job-server gearman-tools)", tool)
		}
	}
	s := newBus(b, []string{"once", "--", "cat"}, []string{"warm", "--warm", "2", "--", "cat"},
		[]string{"resident", "--resident", "lines", "--", "perl", "-pe", "BEGIN { $| = 1 }"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	start := func(name string, args ...string) {
		cmd := exec.Command(name, args...)
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
	}
	start("gearmand", "--log-file", "stderr", "--listen", "127.0.0.1", "--port", port)
	for range 500 {
		if nc, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			nc.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for range 2 {
		start("gearman", "-h", "127.0.0.1", "-p", port, "-w", "-f", "f", "cat")
	}
	for _, name := range []string{"once", "warm", "resident"} {
		b.Run(name, func(b *testing.B) {
			input := func(cmd *exec.Cmd) *exec.Cmd {
				f, err := os.Open("/etc/hostname")
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { f.Close() })
				cmd.Stdin = f
				return cmd
			}
			pair(b, func() *exec.Cmd { return input(s.command("call", name)) },
				func() *exec.Cmd { return input(exec.Command("gearman", "-h", "127.0.0.1", "-p", port, "-f", "f")) })
		})
	}
}

// BenchmarkOnceRate is calls a second of a program started for each, with many
// callers on one connection, beside os/exec starting the same program with
// pipes, as many at once.
func BenchmarkOnceRate(b *testing.B) {
	for _, program := range []string{"true", "cat"} {
		for _, parallel := range []int{2, 8} {
			b.Run(fmt.Sprintf("%s-%d", program, parallel), func(b *testing.B) { onceRate(b, program, parallel) })
		}
	}
}

func onceRate(b *testing.B, program string, parallel int) {
	const batch = 400
	s := newBus(b, []string{"f", "--slots", fmt.Sprint(parallel), "--", program})
	client, err := fbus.Dial(context.Background(), fbus.Unix(s.socket), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	rate := func(one func() error) float64 {
		var wg sync.WaitGroup
		began := time.Now()
		for range parallel {
			wg.Go(func() {
				for range batch / parallel {
					if err := one(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return batch / time.Since(began).Seconds()
	}
	var ours, peer []float64
	for b.Loop() {
		ours = append(ours, rate(func() error {
			_, err := client.Call(context.Background(), &fbus.Request{Function: "f", Input: strings.NewReader("hello\n")})
			return err
		}))
		peer = append(peer, rate(func() error {
			cmd := exec.Command(program)
			cmd.Stdin = strings.NewReader("hello\n")
			_, err := cmd.Output()
			return err
		}))
	}
	slices.Sort(ours)
	slices.Sort(peer)
	b.ReportMetric(ours[len(ours)/2], "calls/s")
	b.ReportMetric(peer[len(peer)/2], "os/exec/s")
	b.ReportMetric(ours[len(ours)/2]/peer[len(peer)/2], "ratio")
}

// bulkSize is what BenchmarkBulk streams, in MiB: FBUS_BULK_MIB, by default 1024.
func bulkSize() string {
	if mib := os.Getenv("FBUS_BULK_MIB"); mib != "" {
		return mib
	}
	return "1024"
}

// BenchmarkBulk streams through cat on the bus, beside the same chain of
// processes, pipes and sockets that copies raw bytes. FBUS_BULK_MIB=4096 is what
// the project's figures are made with.
func BenchmarkBulk(b *testing.B) {
	s := newBus(b, []string{"cat", "--", "cat"})
	dir := b.TempDir()
	self := func(role string, args ...string) *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "FBUS_BENCH_ROLE="+role+" "+strings.Join(args, " "))
		return cmd
	}
	until(b, self("worker", filepath.Join(dir, "w")), "ready")
	until(b, self("relay", filepath.Join(dir, "r"), filepath.Join(dir, "w")), "ready")
	through := func(cmd *exec.Cmd) *exec.Cmd {
		src := exec.Command("head", "-c", bulkSize()+"M", "/dev/zero")
		pipe, err := src.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		cmd.Stdin = pipe
		src.Start()
		b.Cleanup(func() { src.Process.Kill(); src.Wait() })
		return cmd
	}
	// The output goes through a pipe as well, as it does in a pipeline.
	drain := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Stdout = writerOnly{io.Discard}
		return through(cmd)
	}
	pair(b, func() *exec.Cmd { return drain(s.command("call", "cat")) },
		func() *exec.Cmd { return drain(self("caller", filepath.Join(dir, "r"))) })
	b.ReportMetric(0, "ns/op")
}

// writerOnly keeps os/exec from handing the descriptor on.
type writerOnly struct{ io.Writer }

// benchRole plays a process of the bare chain, if this is one.
func benchRole() bool {
	role := strings.Fields(os.Getenv("FBUS_BENCH_ROLE"))
	if len(role) == 0 {
		return false
	}
	switch role[0] {
	case "sink":
		sink()
	case "flood":
		flood(role[1:])
	case "worker":
		serveRaw(role[1], func(nc *net.UnixConn) {
			cmd := exec.Command("cat")
			in, _ := cmd.StdinPipe()
			out, _ := cmd.StdoutPipe()
			cmd.Start()
			go func() {
				copyRaw(in, nc)
				in.Close()
			}()
			copyRaw(nc, out)
			nc.CloseWrite()
			cmd.Wait()
		})
	case "relay":
		serveRaw(role[1], func(nc *net.UnixConn) {
			w, err := net.Dial("unix", role[2])
			if err != nil {
				return
			}
			go func() {
				copyRaw(w, nc)
				w.(*net.UnixConn).CloseWrite()
			}()
			copyRaw(nc, w)
			nc.CloseWrite()
			w.Close()
		})
	case "caller":
		nc, err := net.Dial("unix", role[1])
		if err != nil {
			os.Exit(1)
		}
		go func() {
			copyRaw(nc, os.Stdin)
			nc.(*net.UnixConn).CloseWrite()
		}()
		copyRaw(os.Stdout, nc)
	}
	return true
}

func serveRaw(path string, f func(*net.UnixConn)) {
	l, err := net.Listen("unix", path)
	if err != nil {
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "ready")
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		go f(nc.(*net.UnixConn))
	}
}

// copyRaw copies with a buffer, not by splice: the bytes pass through the
// process, as they do through ours.
func copyRaw(dst io.Writer, src io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
