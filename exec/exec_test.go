package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/exec/keeper"

	"github.com/vmihailenco/msgpack/v5"
	"go.uber.org/goleak"

	"fbus/bus/args"
)

func TestMain(m *testing.M) {
	if status, ok := keeper.Dispatch(); ok {
		os.Exit(status)
	}
	if len(os.Args) > 2 && os.Args[1] == "child" {
		os.Exit(child(os.Args[2]))
	}
	if err := keeper.BecomeReaper(); err != nil {
		panic(err)
	}
	keeper.Env = append(keeper.Env, "GORACE=atexit_sleep_ms=0") // else each takes a second to end under -race
	closedAfter = patience                                      // on a busy machine an exit takes long
	firstPause = 5 * time.Millisecond
	illegal = func(_ *Function, from, to state) { panic(fmt.Sprintf("a process went from %v to %v", from, to)) }
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must come: long enough for any
// machine, since only a failure takes it.
const patience = time.Minute

// soak reports whether tests are to take their time: FBUS_SOAK=1.
func soak() bool { return os.Getenv("FBUS_SOAK") != "" }

// reply is what a call gave.
type reply struct {
	Result
	out, err string
}

func runCall(ctx context.Context, f *Function, c *Call) reply {
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	res := f.Run(ctx, c)
	out.Write(res.Output)
	res.Output = nil
	return reply{res, out.String(), errs.String()}
}

// extras are the programs of tests that a plain machine, with sh and the coreutils, may
// lack.
var extras = regexp.MustCompile(`\b(awk|grep|perl|ps|python3|setsid)\b`)

// offer makes a function, or skips the test where its program is missing.
func offer(t testing.TB, spec Spec) *Function {
	t.Helper()
	if spec.Name == "" {
		spec.Name = "f"
	}
	for _, tool := range extras.FindAllString(strings.Join(spec.Argv, " "), -1) {
		if _, err := osexec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	f, err := New(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// set gives a variable another value until the test's functions are closed, if
// it is called before they are offered.
func set[T any](t *testing.T, v *T, to T) {
	old := *v
	*v = to
	t.Cleanup(func() { *v = old })
}

// sh offers a shell script.
func sh(t testing.TB, script string, more ...func(*Spec)) *Function {
	t.Helper()
	spec := Spec{Argv: []string{"sh", "-c", script}, Grace: 200 * time.Millisecond}
	for _, m := range more {
		m(&spec)
	}
	return offer(t, spec)
}

func programExit(n int) Result {
	return Result{End: args.End{Source: args.FromProgram, Status: n, Code: "exit"}}
}

// same compares results, their output too.
func same(got, want Result) bool { return reflect.DeepEqual(got, want) }

func killedBy(sig syscall.Signal) Result {
	return Result{End: args.End{Source: args.FromSignal, Status: 128 + int(sig), Code: signalName(sig)}}
}

// check holds a reply against a result and an output.
func check(t *testing.T, got reply, want Result, out string) {
	t.Helper()
	if !same(got.Result, want) || got.out != out {
		t.Errorf("got %+v\nwant %+v, output %q", got, want, out)
	}
}

// checkGone checks that no process of a list of numbers is left.
func checkGone(t *testing.T, pids string) {
	t.Helper()
	list := strings.Fields(pids)
	if len(list) == 0 {
		t.Error("no pids")
	}
	for _, s := range list {
		pid, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("not a pid: %q", s)
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
}

// lines is a writer that tells of each line that a program says.
type lines struct {
	mu   sync.Mutex // guards part
	part []byte
	said chan string
}

func newLines() *lines { return &lines{said: make(chan string, 1000)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, p...)
	for {
		line, rest, ok := bytes.Cut(l.part, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.said <- string(line)
		l.part = rest
	}
}

func sprintln(format string, args ...any) string { return fmt.Sprintf(format, args...) + "\n" }

// next waits for a line.
func (l *lines) next(t *testing.T) string {
	t.Helper()
	select {
	case s := <-l.said:
		return s
	case <-time.After(patience):
		t.Fatal("the program says nothing")
		return ""
	}
}

// overdue is a context whose deadline passes when a test says so.
func overdue(t *testing.T) (ctx context.Context, pass func()) {
	ctx, end := context.WithCancelCause(t.Context())
	return ctx, func() { end(context.DeadlineExceeded) }
}

// background starts a call; its result comes on the channel.
func background(ctx context.Context, f *Function, c *Call) <-chan Result {
	done := make(chan Result, 1)
	go func() { done <- f.Run(ctx, c) }()
	return done
}

func await(t *testing.T, done <-chan Result) Result {
	t.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(patience):
		t.Fatal("the call does not end")
		return Result{}
	}
}

// eventually waits for what only the kernel can tell.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// doc marks a JSON document in a test's arguments; a string is a string.
type doc string

func pack(t testing.TB, write func(enc *msgpack.Encoder)) []byte {
	t.Helper()
	var buf bytes.Buffer
	write(msgpack.NewEncoder(&buf))
	return buf.Bytes()
}

func packValue(enc *msgpack.Encoder, v any) {
	if d, ok := v.(doc); ok {
		enc.EncodeBytes([]byte(d))
		return
	}
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
}

func list(t testing.TB, values ...any) *Call {
	return &Call{Kind: args.KindList, Args: pack(t, func(enc *msgpack.Encoder) {
		enc.EncodeArrayLen(len(values))
		for _, v := range values {
			packValue(enc, v)
		}
	})}
}

func fields(t testing.TB, pairs ...any) *Call {
	return &Call{Kind: args.KindMap, Args: pack(t, func(enc *msgpack.Encoder) {
		enc.EncodeMapLen(len(pairs) / 2)
		for _, v := range pairs {
			packValue(enc, v)
		}
	})}
}

func document(text string) *Call { return &Call{Kind: args.KindJSON, Args: []byte(text)} }

func itoa(n int) string { return strconv.Itoa(n) }
