package exec

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/bus/args"
)

func TestStatuses(t *testing.T) {
	t.Parallel()
	f := sh(t, "read n; exit $n")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := i; n < 256; n += 8 {
				got := runCall(t.Context(), f, &Call{Input: fmt.Appendln(nil, n)})
				check(t, got, programExit(n), "")
			}
		})
	}
	wg.Wait()
}

func TestSignals(t *testing.T) {
	t.Parallel()
	f := offer(t, Spec{Argv: []string{"perl", "-e", "kill <STDIN>+0, $$; sleep 100"}})
	var wg sync.WaitGroup
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGABRT,
		syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGPIPE, syscall.SIGTERM, syscall.SIGUSR1, syscall.Signal(40)} {
		wg.Go(func() {
			got := runCall(t.Context(), f, &Call{Input: fmt.Appendln(nil, int(sig))})
			check(t, got, killedBy(sig), "")
		})
	}
	wg.Wait()
}

func TestBytesExact(t *testing.T) {
	t.Parallel()
	f := offer(t, Spec{Argv: []string{"cat"}})
	var wg sync.WaitGroup
	for _, n := range []int{0, 1, 32767, 32768, 32769, 65535, 65536, 65537, 1 << 20} {
		wg.Go(func() {
			data := make([]byte, n)
			for i := range data {
				data[i] = byte(rand.IntN(256))
			}
			whole := runCall(t.Context(), f, &Call{Input: data})
			check(t, whole, programExit(0), string(data))
			first := min(n, 32<<10)
			parts := runCall(t.Context(), f, &Call{Input: data[:first], Rest: bytes.NewReader(data[first:])})
			check(t, parts, programExit(0), string(data))
		})
	}
	wg.Wait()
}

// hashed is a reader or a writer that remembers only a sum.
type hashed struct {
	left int64
	rnd  *rand.ChaCha8
	sum  hash.Hash
}

func (h *hashed) Read(p []byte) (int, error) {
	if h.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), h.left)
	h.rnd.Read(p[:n])
	h.sum.Write(p[:n])
	h.left -= n
	return int(n), nil
}

func (h *hashed) Write(p []byte) (int, error) {
	h.left += int64(len(p))
	return h.sum.Write(p)
}

func TestBytesExactHuge(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("64 MiB")
	}
	f := offer(t, Spec{Argv: []string{"cat"}})
	in := &hashed{left: 64 << 20, rnd: rand.NewChaCha8([32]byte{1}), sum: sha256.New()}
	out := &hashed{sum: sha256.New()}
	res := f.Run(t.Context(), &Call{Rest: in, Stdout: out})
	if !same(res, programExit(0)) || out.left != 64<<20 || !bytes.Equal(in.sum.Sum(nil), out.sum.Sum(nil)) {
		t.Errorf("%+v, %d bytes", res, out.left)
	}
}

func TestUnreadInput(t *testing.T) {
	f := offer(t, Spec{Argv: []string{"true"}})
	in := &hashed{left: 64 << 20, rnd: rand.NewChaCha8([32]byte{1}), sum: sha256.New()}
	check(t, runCall(t.Context(), f, &Call{Rest: in}), programExit(0), "")
}

func TestInputThatNeverComes(t *testing.T) {
	f := sh(t, "echo done; exit 3")
	r, w := io.Pipe()
	defer w.Close()
	check(t, runCall(t.Context(), f, &Call{Input: []byte("first"), Rest: r}), programExit(3), "done\n")
	r.Close()
}

// Input that breaks off must not look like its end.
func TestInputBreaksOff(t *testing.T) {
	f := sh(t, "cat; echo complete")
	r, w := io.Pipe()
	said := newLines()
	done := background(t.Context(), f, &Call{Rest: r, Stdout: said})
	w.Write([]byte("part\n"))
	said.next(t)
	w.CloseWithError(errors.New("connection lost"))
	if res := await(t, done); !same(res, fbusEnd(args.CodeCancelled, "cancelled: input ended early: connection lost")) {
		t.Errorf("%+v", res)
	}
	if len(said.said) > 0 {
		t.Errorf("the program went on: %q", <-said.said)
	}
}

func TestStderrFlood(t *testing.T) {
	t.Parallel()
	f := sh(t, "head -c 10000000 /dev/zero >&2; echo out")
	got := runCall(t.Context(), f, &Call{})
	check(t, got, programExit(0), "out\n")
	if len(got.err) != 10000000 {
		t.Errorf("%d bytes of stderr", len(got.err))
	}
}

func TestClosedOutputs(t *testing.T) {
	t.Parallel()
	f := sh(t, "exec >&- 2>&-; sleep 0.1; exit 9")
	check(t, runCall(t.Context(), f, &Call{}), programExit(9), "")
}

// slow is a reader of output that takes its time.
type slow struct{ bytes.Buffer }

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(20 * time.Millisecond)
	return s.Buffer.Write(p)
}

// The program is long gone when the last of its output is read.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	f := sh(t, "head -c 200000 /dev/zero; sleep 1000 &")
	var out slow
	if res := f.Run(t.Context(), &Call{Stdout: &out}); !same(res, programExit(0)) || out.Len() != 200000 {
		t.Errorf("%+v, %d bytes", res, out.Len())
	}
}

// A stranger that holds the pipe must not hold the call.
func TestOutputHeldOutside(t *testing.T) {
	f := sh(t, "echo $$; read go; echo bye")
	r, w := io.Pipe()
	said := newLines()
	done := background(t.Context(), f, &Call{Rest: r, Stdout: said})
	held, err := os.OpenFile("/proc/"+said.next(t)+"/fd/1", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	io.WriteString(w, "\n")
	if res := await(t, done); !same(res, programExit(0)) || said.next(t) != "bye" {
		t.Errorf("%+v", res)
	}
	r.Close()
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestNobodyReads(t *testing.T) {
	f := offer(t, Spec{Argv: []string{"yes"}})
	if res := f.Run(t.Context(), &Call{Stdout: broken{}}); !same(res, killedBy(syscall.SIGPIPE)) {
		t.Errorf("%+v", res)
	}
}

func TestOutputLimit(t *testing.T) {
	limit := func(s *Spec) { s.MaxOutput = 100 << 10 }
	exact := runCall(t.Context(), sh(t, "head -c 102400 /dev/zero", limit), &Call{})
	check(t, exact, programExit(0), strings.Repeat("\x00", 100<<10))
	over := runCall(t.Context(), sh(t, "head -c 102401 /dev/zero; trap '' TERM; sleep 1000", limit), &Call{})
	check(t, over, fbusEnd(args.CodeOutputLimit, "output exceeds 100K"), strings.Repeat("\x00", 100<<10))
}

// TestErrorOutputLimit: the limit holds for stderr too, in every mode.
func TestErrorOutputLimit(t *testing.T) {
	t.Parallel()
	limit := func(s *Spec) { s.MaxOutput = 100 << 10 }
	over := fbusEnd(args.CodeOutputLimit, "output exceeds 100K")
	for name, f := range map[string]*Function{
		"once":     sh(t, "trap '' TERM PIPE; while :; do head -c 102401 /dev/zero; done >&2", limit),
		"warm":     sh(t, "echo ready >&2; cat >/dev/null; trap '' TERM PIPE; while :; do head -c 102401 /dev/zero; done >&2", limit, warmMode(1)),
		"resident": sh(t, "read -r x; head -c 200000 /dev/zero >&2; while :; do echo answer; read -r x; done", limit, lineMode),
	} {
		got := runCall(t.Context(), f, &Call{})
		if !same(got.Result, over) || len(got.err) > 100<<10 || len(got.err) < 99<<10 {
			t.Errorf("%s: %+v, %d bytes", name, got.Result, len(got.err))
		}
	}
	exact := runCall(t.Context(), sh(t, "head -c 102400 /dev/zero >&2; head -c 102400 /dev/zero", limit), &Call{})
	check(t, exact, programExit(0), strings.Repeat("\x00", 100<<10))
	if len(exact.err) != 100<<10 {
		t.Errorf("%d bytes on stderr", len(exact.err))
	}
	rpc := offerRPC(t, func(s *Spec) { s.MaxOutput = 100 })
	check(t, do(t, rpc, "err", strings.Repeat("x", 90)), programExit(0), "null\n")
	if got := do(t, rpc, "err", strings.Repeat("x", 101)); !same(got.Result, fbusEnd(args.CodeOutputLimit, "output exceeds 100 bytes")) {
		t.Errorf("%+v", got)
	}
}

func TestCancel(t *testing.T) {
	scripts := map[string]string{
		"plain":        "echo $$; sleep 1000",
		"ignores TERM": "trap '' TERM; sleep 1000 & echo $$ $!; while :; do sleep 1; done",
		"stopped":      "echo $$; kill -STOP $$",
		"children":     "sleep 1000 & setsid sleep 1000 & echo $$ $!; wait",
		"exits well":   "trap 'exit 0' TERM; sleep 1000 & echo $$ $!; wait",
	}
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := sh(t, script)
			ctx, cancel := context.WithCancel(t.Context())
			said := newLines()
			done := background(ctx, f, &Call{Stdout: said})
			pids := said.next(t)
			cancel()
			if res := await(t, done); !same(res, fbusEnd(args.CodeCancelled, "cancelled")) {
				t.Errorf("%+v", res)
			}
			checkGone(t, pids)
		})
	}
}

// What a program says and starts while it cleans up is still its own.
func TestGrace(t *testing.T) {
	t.Parallel()
	f := sh(t, `trap 'sh -c "sleep 0.05; echo cleaned"; exit 5' TERM; echo ready; while :; do sleep 1; done`,
		func(s *Spec) { s.Grace = patience })
	ctx, cancel := context.WithCancel(t.Context())
	said := newLines()
	done := background(ctx, f, &Call{Stdout: said})
	said.next(t)
	cancel()
	if res := await(t, done); res.Code != "cancelled" || said.next(t) != "cleaned" {
		t.Errorf("%+v", res)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	got := runCall(ctx, sh(t, "sleep 1000"), &Call{})
	check(t, got, fbusEnd(args.CodeDeadline, "deadline exceeded"), "")

	f := sh(t, "sleep 1000", func(s *Spec) { s.Timeout = 50 * time.Millisecond })
	check(t, runCall(t.Context(), f, &Call{}), fbusEnd(args.CodeDeadline, "ran longer than 50ms"), "")

	ended, end := context.WithCancel(t.Context())
	end()
	check(t, runCall(ended, f, &Call{}), fbusEnd(args.CodeCancelled, "cancelled"), "")
}

func TestKillAndClose(t *testing.T) {
	t.Parallel()
	f := sh(t, "trap '' TERM; sleep 1000 & echo $$ $!; wait", func(s *Spec) { s.Grace = time.Hour })
	said := newLines()
	var done []<-chan Result
	var pids string
	for range 3 {
		done = append(done, background(t.Context(), f, &Call{Stdout: said}))
		pids += said.next(t) + " "
	}
	f.Kill()
	f.Close()
	checkGone(t, pids)
	for _, d := range done {
		if res := await(t, d); res.Code != "cancelled" {
			t.Errorf("%+v", res)
		}
	}
	if res := f.Run(t.Context(), &Call{}); res.Code != args.CodeCancelled {
		t.Errorf("after Close: %+v", res)
	}
}

func TestSlots(t *testing.T) {
	f := sh(t, "echo $$; read x", func(s *Spec) { s.Slots = 1 })
	r, w := io.Pipe()
	defer r.Close()
	said := newLines()
	first := background(t.Context(), f, &Call{Rest: r, Stdout: said})
	said.next(t)
	ctx, cancel := context.WithCancel(t.Context())
	second := background(ctx, f, &Call{Stdout: said})
	cancel()
	if res := await(t, second); res.Code != "cancelled" {
		t.Errorf("%+v", res)
	}
	w.Close()
	if res := await(t, first); !same(res, programExit(1)) {
		t.Errorf("%+v", res)
	}
}

func TestInputBesideArguments(t *testing.T) {
	f := &Function{spec: Spec{Name: "f"}}
	c := list(t, "a")
	c.HasInput = true
	_, err := f.prepare(c)
	if args.AsError(err, "").Code != args.CodeBadInput || !strings.Contains(err.Error(), "takes its arguments on stdin") {
		t.Error(err)
	}
}
