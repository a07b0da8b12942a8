package node_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// The worked examples in testdata/clients were written from PROTOCOL.md alone:
// what they do here is what that page promises to others.

// languages has, for each, programs that may run its scripts and what one that
// can answers with its own path.
var languages = map[string]struct{ candidates, probe []string }{
	"py": {[]string{"python3", "/usr/bin/python3"},
		[]string{"-c", "import sys; from msgpack import packb; assert sys.version_info >= (3, 10); print(sys.executable)"}},
	"pl": {[]string{"perl", "/usr/bin/perl"},
		[]string{"-MData::MessagePack=1.00", "-e", "print $^X"}},
}

// interpreters is the path of the program for each language, empty if absent.
var interpreters = sync.OnceValue(func() map[string]string {
	found := map[string]string{}
	for lang, l := range languages {
		for _, program := range l.candidates {
			out, err := exec.Command(program, l.probe...).Output()
			if err == nil && found[lang] == "" {
				found[lang] = strings.TrimSpace(string(out))
			}
		}
	}
	return found
})

// script is the command that runs role (caller, worker) in a language. It skips
// the test where that language is absent.
func script(ctx context.Context, t *testing.T, role, lang string, args ...string) *exec.Cmd {
	t.Helper()
	program := interpreters()[lang]
	if program == "" {
		t.Skipf("none of %q can do %q", languages[lang].candidates, languages[lang].probe)
	}
	path := filepath.Join("..", "testdata", "clients", role+"."+lang)
	cmd := exec.CommandContext(ctx, program, append([]string{path}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = patience // then it is killed, and the test fails
	return cmd
}

// waitStatus is the status as a shell has it: 128+N for a signal.
func waitStatus(ps *os.ProcessState) int {
	if ws := ps.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ps.ExitCode()
}

// A callFunc calls fn and tells its stderr and exit status; the end of ctx cancels
// the call.
type callFunc func(ctx context.Context, fn string, args []string, stdin *os.File, stdout io.Writer) (string, int)

func scriptCaller(t *testing.T, lang, path string) callFunc {
	script(context.Background(), t, "caller", lang) // or skip
	return func(ctx context.Context, fn string, args []string, stdin *os.File, stdout io.Writer) (string, int) {
		cmd := script(ctx, t, "caller", lang, append([]string{path, fn}, args...)...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = stdout, &stderr
		if stdin != nil {
			cmd.Stdin = stdin
		}
		err := cmd.Run()
		if cmd.ProcessState == nil {
			return err.Error(), -1
		}
		return stderr.String(), waitStatus(cmd.ProcessState)
	}
}

func goCaller(t *testing.T, path string) callFunc {
	c := dial(t, path)
	return func(ctx context.Context, fn string, words []string, stdin *os.File, stdout io.Writer) (string, int) {
		req := &bus.Request{Function: fn, Stdout: stdout}
		if words != nil {
			req.Args = args.List(words...)
		} else if stdin != nil {
			req.Input = stdin
		}
		_, err := c.Call(ctx, req)
		var fault *args.Error
		switch {
		case err == nil:
			return "", 0
		case errors.Is(err, context.Canceled):
			return "caller: cancelled: " + err.Error(), 143
		case errors.As(err, &fault):
			return fmt.Sprintf("caller: %s: %s", fault.Code, fault.Message), fault.Status()
		}
		return err.Error(), -1
	}
}

// scriptWorker runs a worker until the test ends, and returns when it offers
// name. Its wait tells what it said after that and its exit status.
func scriptWorker(t *testing.T, lang, path, name string) (wait func() (string, int)) {
	t.Helper()
	cmd := script(context.Background(), t, "worker", lang, path, name)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stderr)
	first, err := lines.ReadString('\n')
	wait = sync.OnceValues(func() (string, int) {
		rest, _ := io.ReadAll(lines)
		cmd.Wait()
		return string(rest), waitStatus(cmd.ProcessState)
	})
	t.Cleanup(func() { cmd.Process.Kill(); wait() })
	if first != "offering "+name+"\n" {
		t.Fatalf("the worker says %q: %v", first, err)
	}
	return wait
}

// upperFunc is the function of the scripts' workers, in Go.
func upperFunc(_ context.Context, inv *bus.Invocation) bus.Result {
	if inv.Kind != args.KindRaw {
		words, err := inv.Words()
		if err != nil {
			return bus.Result{End: bus.End{Source: args.FromBus, Status: 65, Code: args.CodeBadInput, Message: err.Error()}}
		}
		for _, w := range words {
			fmt.Fprintf(inv.Stdout, "%s\n", upperASCII([]byte(w)))
		}
		return bus.Result{}
	}
	inv.Stdout.Write(upperASCII(inv.Head()))
	for buf := make([]byte, 64<<10); inv.Rest() != nil; {
		n, err := inv.Rest().Read(buf)
		if _, werr := inv.Stdout.Write(upperASCII(buf[:n])); err != nil || werr != nil {
			break
		}
	}
	return bus.Result{}
}

func upperASCII(b []byte) []byte {
	out := bytes.Clone(b)
	for i, c := range out {
		if 'a' <= c && c <= 'z' {
			out[i] = c - 'a' + 'A'
		}
	}
	return out
}

// stdinPipe is a stdin and where to write it.
func stdinPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// stdinWith is a stdin that has data and ends.
func stdinWith(t *testing.T, data []byte) *os.File {
	r, w := stdinPipe(t)
	go func() { // ends when all is read, or the pipe is closed
		w.Write(data)
		w.Close()
	}()
	return r
}

// untilRunning waits until a call is with its worker.
func untilRunning(t *testing.T, n *node.Node) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, c := range n.Calls() {
			if c.State == "running" {
				return
			}
		}
	}
	t.Fatal("the call does not go out")
}

// Every caller can call every worker.
func TestClientsOfOtherLanguages(t *testing.T) {
	t.Parallel()
	for _, c := range []string{"py", "pl", "go"} {
		for _, w := range []string{"py", "pl", "go"} {
			if c == "go" && w == "go" || c != "go" && w != "go" && !thorough() { // the node is between the two
				continue
			}
			t.Run(c+"-"+w, func(t *testing.T) {
				n, path := start(t, node.Config{})
				if w == "go" {
					_, err := dial(t, path).Offer(t.Context(), bus.Offer{Name: "upper", Slots: 1}, upperFunc)
					if err != nil {
						t.Fatal(err)
					}
				} else {
					scriptWorker(t, w, path, "upper")
				}
				call := goCaller(t, path)
				if c != "go" {
					call = scriptCaller(t, c, path)
				}
				testPair(t, n, call)
			})
		}
	}
}

func testPair(t *testing.T, n *node.Node, call callFunc) {
	list := func(t *testing.T) {
		t.Helper()
		var out bytes.Buffer
		words := []string{"a b", "", "caf\u00e9", "x\xffy", "-7", strings.Repeat("z", 300)}
		stderr, status := call(t.Context(), "upper", words, nil, &out)
		want := string(upperASCII([]byte(strings.Join(words, "\n") + "\n")))
		if status != 0 || stderr != "" || out.String() != want {
			t.Errorf("status %d, stderr %q, stdout %q, want %q", status, stderr, out.String(), want)
		}
	}
	t.Run("list", list)

	big := make([]byte, 5<<20+7)
	rand.New(rand.NewSource(1)).Read(big)
	for name, in := range map[string][]byte{
		"whole": []byte("Hello, b\u00fcs\n"), "empty": nil, "inline and no more": big[:wire.MaxInlineInput],
		"window": big[:wire.InitialWindow], "5 MB": big,
	} {
		t.Run(name, func(t *testing.T) {
			out := sha256.New()
			stderr, status := call(t.Context(), "upper", nil, stdinWith(t, in), out)
			if want := sha256.Sum256(upperASCII(in)); status != 0 || stderr != "" || !bytes.Equal(out.Sum(nil), want[:]) {
				t.Errorf("status %d, stderr %q, sha256 %x, want %x", status, stderr, out.Sum(nil), want)
			}
		})
	}

	t.Run("5 MB from a file", func(t *testing.T) {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.Write(big)
		f.Seek(0, io.SeekStart)
		out := sha256.New()
		stderr, status := call(t.Context(), "upper", nil, f, out)
		if want := sha256.Sum256(upperASCII(big)); status != 0 || !bytes.Equal(out.Sum(nil), want[:]) {
			t.Errorf("status %d, stderr %q, sha256 %x, want %x", status, stderr, out.Sum(nil), want)
		}
	})

	t.Run("slow stdin", func(t *testing.T) {
		stdin, w := stdinPipe(t)
		out, stdout := io.Pipe()
		var status int
		done := make(chan struct{})
		go func() { // ends with the call, for stdin is closed below
			defer close(done)
			_, status = call(t.Context(), "upper", nil, stdin, stdout)
			stdout.Close()
		}()
		untilRunning(t, n) // and nothing has been written
		lines := bufio.NewReader(out)
		for range 3 {
			fmt.Fprintln(w, "slow")
			if got, err := lines.ReadString('\n'); got != "SLOW\n" {
				t.Errorf("%q, %v", got, err)
			}
		}
		w.Close()
		<-done
		if status != 0 {
			t.Errorf("status %d", status)
		}
	})

	t.Run("missing", func(t *testing.T) {
		stderr, status := call(t.Context(), "missing", []string{"a"}, nil, io.Discard)
		if status != 69 || !strings.HasPrefix(stderr, "caller: no_function: ") {
			t.Errorf("status %d, stderr %q", status, stderr)
		}
	})

	t.Run("cancel", func(t *testing.T) {
		stdin, _ := stdinPipe(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { // ends when the call runs
			untilRunning(t, n)
			cancel()
		}()
		stderr, status := call(ctx, "upper", nil, stdin, io.Discard)
		if status != 143 || !strings.HasPrefix(stderr, "caller: cancelled: ") {
			t.Errorf("status %d, stderr %q", status, stderr)
		}
		list(t) // the one slot is free again
	})
}

// fakeNode is the other side of a script: a node that does as the test says. It
// writes each byte by itself, so frames come in every possible split.
type fakeNode struct {
	t   *testing.T
	nc  net.Conn
	dec wire.Decoder
}

func (p *fakeNode) send(frames ...wire.Frame) {
	p.t.Helper()
	for _, f := range frames {
		p.raw(wire.Append(nil, f))
	}
}

func (p *fakeNode) raw(b []byte) {
	for i := range b {
		p.nc.Write(b[i : i+1]) // an error shows at the next read
	}
}

// next reads a frame into f, whose type it must be of.
func (p *fakeNode) next(f wire.Frame) {
	p.t.Helper()
	p.nc.SetReadDeadline(time.Now().Add(patience))
	head := make([]byte, 4)
	if _, err := io.ReadFull(p.nc, head); err != nil {
		p.t.Fatalf("waiting for %T: %v", f, err)
	}
	body := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := io.ReadFull(p.nc, body); err != nil {
		p.t.Fatal(err)
	}
	got, err := p.dec.Decode(body)
	if err != nil || reflect.TypeOf(got) != reflect.TypeOf(f) {
		p.t.Fatalf("%x is no %T: %v", body, f, err)
	}
	reflect.ValueOf(f).Elem().Set(reflect.ValueOf(got).Elem())
}

// end reads an END and checks it.
func (p *fakeNode) end(id uint64, source args.Source, status uint64, code string) {
	p.t.Helper()
	var f wire.EndFrame
	if p.next(&f); f.ID != id || f.Status != status || string(f.Code) != code {
		p.t.Errorf("END of %d, status %d, code %q; want %d, %d, %q", f.ID, f.Status, f.Code, id, status, code)
	}
}

// data reads a DATA and checks it.
func (p *fakeNode) data(id uint64, want string) {
	p.t.Helper()
	var f wire.DataFrame
	if p.next(&f); f.ID != id || f.Stream != wire.Output || string(f.Payload) != want {
		p.t.Errorf("DATA %d of %d: %q, want %q of %d", f.Stream, f.ID, f.Payload, want, id)
	}
}

// runAgainst starts a script that connects to the fakeNode and reads its HELLO. wait
// tells its output and exit status.
func runAgainst(t *testing.T, role, lang string, args ...string) (p *fakeNode, wait func() (stdout, stderr string, status int)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := script(context.Background(), t, role, lang, append([]string{path}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitOnce := sync.OnceValue(func() int { cmd.Wait(); return waitStatus(cmd.ProcessState) })
	t.Cleanup(func() { cmd.Process.Kill(); waitOnce() })
	l.(*net.UnixListener).SetDeadline(time.Now().Add(patience))
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	p = &fakeNode{t: t, nc: nc}
	p.next(&wire.HelloFrame{})
	return p, func() (string, string, int) {
		status := waitOnce()
		return stdout.String(), stderr.String(), status
	}
}

var nodeHello = &wire.HelloFrame{Major: wire.Major, Network: []byte("test"), Instance: []byte("n"), Name: []byte("n")}

// newerFrame is a frame that a newer minor version might send: type 77 with a map
// whose key is an array.
var newerFrame = []byte{0, 0, 0, 6, 0x92, 77, 0x81, 0x91, 1, 2}

// longCancel adds an element to a CANCEL of call 2.
var longCancel = []byte{0, 0, 0, 6, 0x94, 9, 2, 0xa1, 'x', 0xc0}

// The scripts' workers keep to credit, drop late frames, skip what is new and
// end the connection over what is wrong.
func TestScriptWorkersFrameByFrame(t *testing.T) {
	for lang := range languages {
		t.Run(lang, func(t *testing.T) {
			p, wait := runAgainst(t, "worker", lang, "upper")
			p.send(nodeHello)
			var offer wire.OfferFrame
			if p.next(&offer); string(offer.Name) != "upper" || offer.Slots != 1 {
				t.Errorf("offer of %q with %d slots", offer.Name, offer.Slots)
			}
			p.send(&wire.OfferedFrame{Seq: offer.Seq})

			p.raw(newerFrame)
			p.send(&wire.CallFrame{ID: 1, Name: offer.Name, Input: []byte("abcdef"), WindowOutput: 4})
			p.data(1, "ABCD")
			var grant wire.GrantFrame
			if p.next(&grant); grant.ID != 1 || grant.Stream != wire.Input || grant.Bytes == 0 || grant.Bytes > wire.MaxWindow {
				t.Errorf("grant %+v", grant)
			}
			p.send(&wire.DataFrame{ID: 1, Payload: []byte("gh")}, &wire.DataFrame{ID: 1}, &wire.EOFFrame{ID: 1})
			p.send(&wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: 1})
			p.data(1, "E")
			p.send(&wire.GrantFrame{ID: 1, Stream: wire.Stderr, Bytes: 9}, &wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: 9})
			p.data(1, "FGH")
			p.end(1, args.FromProgram, 0, "exit")

			late := []wire.Frame{&wire.DataFrame{ID: 1, Payload: []byte("late")}, &wire.EOFFrame{ID: 1},
				&wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: 1}, &wire.CancelFrame{ID: 1}}
			p.send(late...)
			p.send(&wire.CallFrame{ID: 2, Name: offer.Name, Input: []byte("abc"), WindowOutput: 1})
			p.data(2, "A")
			p.next(&grant)
			p.send(late...)
			p.send(&wire.CallFrame{ID: 3, Name: offer.Name, Flags: wire.FlagInputEnd}) // beyond its slot
			p.end(3, args.FromBus, 75, args.CodeBusy)
			p.raw(longCancel)
			p.end(2, args.FromBus, 143, args.CodeCancelled)

			p.send(&wire.CallFrame{ID: 9, Name: offer.Name, Kind: args.KindJSON, Args: []byte("{}"), Flags: wire.FlagInputEnd})
			p.end(9, args.FromBus, 65, args.CodeBadInput)
			p.send(&wire.DataFrame{ID: 10})
			var fault wire.ErrorFrame
			if p.next(&fault); string(fault.Code) != args.CodeProtocol {
				t.Errorf("ERROR %q", fault.Code)
			}
			if _, stderr, status := wait(); status != 1 || !strings.HasPrefix(stderr, "offering upper\nworker: protocol: ") {
				t.Errorf("status %d, stderr %q", status, stderr)
			}
		})
	}
}

// A worker that is denied ends with 77. One that loses its node connects again, with the same instance.
func TestScriptWorkersEnd(t *testing.T) {
	for lang := range languages {
		t.Run(lang, func(t *testing.T) {
			p, wait := runAgainst(t, "worker", lang, "upper")
			p.send(nodeHello)
			p.next(&wire.OfferFrame{})
			p.send(&wire.OfferedFrame{Seq: 1, Code: []byte(args.CodeDenied), Message: []byte("not you")})
			if _, stderr, status := wait(); status != 77 || stderr != "worker: denied: not you\n" {
				t.Errorf("status %d, stderr %q", status, stderr)
			}
			n, path := start(t, node.Config{})
			lost := scriptWorker(t, lang, path, "upper")
			n.Close()
			os.Remove(path)
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			l.(*net.UnixListener).SetDeadline(time.Now().Add(patience))
			nc, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			p = &fakeNode{t: t, nc: nc}
			p.next(&wire.HelloFrame{})
			p.send(&wire.ErrorFrame{Code: []byte(args.CodeSuperseded), Message: []byte("by another")})
			if stderr, status := lost(); status != 1 || !strings.HasPrefix(stderr, "worker: draining\n") || !strings.HasSuffix(stderr, "worker: superseded: by another\n") {
				t.Errorf("status %d, stderr %q", status, stderr)
			}
		})
	}
}

// The scripts' callers send what input there is with CALL, pass both outputs on,
// grant them back and end with the status they are told.
func TestScriptCallersFrameByFrame(t *testing.T) {
	for lang := range languages {
		t.Run(lang, func(t *testing.T) {
			p, wait := runAgainst(t, "caller", lang, "f") // stdin is /dev/null
			p.send(nodeHello)
			var call wire.CallFrame
			if p.next(&call); string(call.Name) != "f" || call.Flags != wire.FlagInputEnd || call.WindowOutput != wire.InitialWindow {
				t.Errorf("call %+v", call)
			}
			p.raw(newerFrame)
			for stream := wire.Output; stream <= wire.Stderr; stream++ {
				p.send(&wire.DataFrame{ID: call.ID, Stream: stream, Payload: []byte{'0' + byte(stream)}})
				var grant wire.GrantFrame
				if p.next(&grant); grant.ID != call.ID || grant.Stream != stream || grant.Bytes != 1 {
					t.Errorf("grant %+v", grant)
				}
			}
			p.send(&wire.EndFrame{ID: call.ID, Source: args.FromSignal, Status: 137, Code: []byte("SIGKILL"), Output: []byte("!")})
			if stdout, stderr, status := wait(); status != 137 || stdout != "1!" || stderr != "2" {
				t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
			}

			p, wait = runAgainst(t, "caller", lang, "f")
			p.send(&wire.HelloFrame{Major: 2, Network: nodeHello.Network, Instance: nodeHello.Instance, Name: nodeHello.Name})
			var fault wire.ErrorFrame
			if p.next(&fault); string(fault.Code) != args.CodeVersion {
				t.Errorf("ERROR %q", fault.Code)
			}
			if _, stderr, status := wait(); status != 255 || !strings.HasPrefix(stderr, "caller: version: ") {
				t.Errorf("status %d, stderr %q", status, stderr)
			}
		})
	}
}
