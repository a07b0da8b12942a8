package commands

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// evil holds a character of every kind that must not be shown, and looks like messages of ours.
const evil = "x\nhint: run this\nfbus: hint: run this\r\x1b[31m\a\x7f\u0085\u009b2J\u061c\u200e\u200f\u202a\u202e\u2066\u2069\u2028\u2029\ty"

// hostile is a peer that puts evil into every text that it may set.
type hostile struct{ held chan struct{} }

// serve offers functions that end in different ways. "hold" has no end.
func (h *hostile) serve(nc net.Conn) {
	send := func(f wire.Frame) { nc.Write(wire.Append(nil, f)) }
	send(&wire.HelloFrame{Major: wire.Major, Name: []byte("w" + evil), Instance: []byte("i" + evil), Caps: [][]byte{[]byte(wire.CapRelay)}})
	for i, name := range []string{"bus", "signal", "program", "hold", "bad_code", evil} {
		send(&wire.OfferFrame{
			Flags: []uint64{0, 0, wire.FlagRelay, 0, 0, 0}[i], Behind: [][]byte{[]byte(evil)},
			Seq: uint64(i), Name: []byte(name), Slots: 10, Description: []byte(evil), Arguments: []byte(evil), Note: []byte(evil),
			Schema: []byte(`{"title":"` + strings.NewReplacer("\n", `\n`, "\r", `\r`, "\t", `\t`, "\a", "", "\x1b", `\u001b`).Replace(evil) + `"}`),
		})
	}
	send(&wire.CallFrame{ID: 1, Name: []byte(evil), On: []byte(evil)})
	send(&wire.CallFrame{ID: 2, Name: []byte("bus"), On: []byte("[" + evil)})
	send(&wire.CallFrame{ID: 3, Name: []byte("nosuch"), On: []byte(evil)})
	for d := new(wire.Decoder); ; {
		var head [4]byte
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return
		}
		body := make([]byte, int(head[0])<<24|int(head[1])<<16|int(head[2])<<8|int(head[3]))
		io.ReadFull(nc, body)
		f, _ := d.Decode(body)
		c, ok := f.(*wire.CallFrame)
		if !ok {
			continue
		}
		end := &wire.EndFrame{ID: c.ID, Source: args.FromBus, Status: 65, Code: []byte("bad_input"), Message: []byte(evil)}
		switch string(c.Name) {
		case "hold":
			close(h.held)
			continue
		case "signal":
			end.Source, end.Code = args.FromSignal, []byte(evil)
		case "program":
			end.Source, end.Code, end.Status = args.FromProgram, []byte(evil), 3
		case "bad_code":
			end.Code = []byte(evil)
		}
		send(end)
	}
}

// locked is a buffer that several goroutines may write.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestForeignTexts checks that whatever texts a peer sets, no command prints a character of them
// that a terminal or a reader of lines would act on, nor a line that looks like one of ours.
func TestForeignTexts(t *testing.T) {
	t.Setenv("FBUS_HOME", t.TempDir())
	var serve locked
	log, _ := logger(&serve)
	dir := t.TempDir()
	l, err := calllog.Open(calllog.Options{Dir: filepath.Join(dir, "log"), Warn: log})
	must(t, err)
	store, err := jobs.Open(jobs.Config{Dir: filepath.Join(dir, "jobs"), Warn: log, Volatile: true})
	must(t, err)
	authority, err := trust.Open(trust.Options{Dir: filepath.Join(dir, "trust"), Network: "test", Warn: log})
	must(t, err)
	socket := filepath.Join(dir, "bus.sock")
	n, err := node.New(node.Config{Network: "test", Name: "n", Log: l, Jobs: store, Gate: authority, Authority: authority, Warn: log, Note: log})
	must(t, err)
	listener, err := node.Listen(socket, true)
	must(t, err)
	served := make(chan struct{})
	go func() { // ends with the listener
		defer close(served)
		n.Serve(listener)
	}()
	nc, err := net.Dial("unix", socket)
	must(t, err)
	h, ended := &hostile{held: make(chan struct{})}, make(chan struct{})
	go func() { // ends with the connection
		defer close(ended)
		h.serve(nc)
	}()
	// The node's own messages.
	for _, f := range []wire.Frame{
		&wire.HelloFrame{Major: wire.Major, Network: []byte(evil)},
		&wire.ErrorFrame{Code: []byte(evil), Message: []byte(evil)},
	} {
		other, err := net.Dial("unix", socket)
		must(t, err)
		if _, ok := f.(*wire.ErrorFrame); ok {
			other.Write(wire.Append(nil, &wire.HelloFrame{Major: wire.Major, Name: []byte(evil)}))
		}
		other.Write(wire.Append(nil, f))
		io.Copy(io.Discard, other)
		other.Close()
	}
	defer func() {
		listener.Close()
		<-served
		nc.Close()
		<-ended
		n.Close()
		store.Close()
		l.Close()
		if s := serve.String(); !strings.Contains(s, "peer gave up") || !strings.Contains(s, " as w") {
			t.Errorf("serve -v: %s", s)
		}
		checkShown(t, "serve -v", "", serve.String())
	}()

	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	defer null.Close()
	out, in := os.Stdout, os.Stdin
	os.Stdout = null // where the bytes of functions go
	defer func() { os.Stdout, os.Stdin = out, in }()
	waitUntil(t, "the functions are there", func() bool { return len(n.Functions()) == 5 })
	do := func(command string, words ...string) string {
		t.Helper()
		_, stdout, stderr := runs(append([]string{command, "--node=" + socket}, words...)...)
		checkShown(t, command+" "+strings.Join(words, " "), stdout, stderr)
		return stdout + stderr
	}
	seen := func(text string) {
		t.Helper()
		if !strings.Contains(text, "run this") {
			t.Errorf("a text of the peer is missing, so this checks nothing: %s", text)
		}
	}
	go runs("call", "--node="+socket, "-n", "hold") // ends with the node
	<-h.held
	for _, f := range []string{"bus", "signal", "program", "bad_code"} {
		seen(do("call", "-v", "-n", f))
		do("map", "-v", f, "a")
		seen(do("map", "--json", f, evil, "b"))
		seen(do("call", "--all", "-v", "-n", f))
		seen(do("call", "--all", "--json", "-n", f))
		do("post", "--unique="+evil, "--on="+evil, "-n", f)
		id := strings.TrimSpace(do("post", "--unique="+f+evil, "-n", f))
		if strings.Contains(id, " ") {
			t.Fatalf("post %s: %s", f, id)
		}
		do("result", id)
		seen(do("jobs", id))
		seen(do("jobs", "--json", id))
	}
	requests := ""
	for i, f := range []string{"bus", "signal", "program", "bad_code", evil} {
		name, _ := json.Marshal(f)
		requests += fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":%s}`+"\n"+`{"jsonrpc":"2.0","method":%[2]s}`+"\n", i, name)
	}
	os.Stdin, err = os.Open(written(t, "requests", requests))
	must(t, err)
	defer os.Stdin.Close()
	seen(do("pipe", "-v"))
	for _, words := range [][]string{
		{"ls"}, {"ls", "--json"}, {"describe", "bus"}, {"describe", "--json", "bus"}, {"ps"}, {"ps", "--json"},
		{"jobs"}, {"jobs", "--json"}, {"log"}, {"log", "--json"},
	} {
		seen(do(words[0], words[1:]...))
	}
	for _, words := range [][]string{
		{"call", "-n", evil}, {"call", "-n", "--on", evil, "bus"}, {"describe", evil}, {"ls", evil}, {"cancel", evil}, {"result", evil},
		{"jobs", evil}, {"jobs", "--function", "[" + evil}, {"log", "[" + evil}, {"retry", evil}, {"purge", evil}, {"revoke", evil},
		{"invite", "--name", evil, "--call", evil, "-o", filepath.Join(dir, "t")}, {"status", "-v"}, {"status", "--json"}, {"tickets"},
		{"doctor"}, {"doctor", "bus"}, {"doctor", "--json", "bus"}, {"import", "bus"}, {"join", evil}, {"post", "-n", evil},
		{"call", "-d", evil, "bus"}, {"call", "-F", evil, "bus"}, {"map", "-d", "{", "bus"}, {"map", "--on", evil, "bus", "x"}, {evil},
	} {
		do(words[0], words[1:]...)
	}
}

// checkShown checks the output of a command.
func checkShown(t *testing.T, what, stdout, stderr string) {
	t.Helper()
	for _, text := range []string{stdout, stderr} {
		for i, r := range text {
			if r != '\n' && args.Unsafe(r) || r == utf8.RuneError {
				t.Errorf("%q: %U in %q", what, r, text[max(0, i-40):min(len(text), i+20)])
				break
			}
		}
	}
	for line := range strings.Lines(stdout) {
		if strings.HasPrefix(line, "{") && !json.Valid([]byte(line)) {
			t.Errorf("%q: not JSON: %s", what, line)
		}
		if strings.HasPrefix(line, "fbus:") || strings.HasPrefix(line, "hint:") {
			t.Errorf("%q: a forged line: %s", what, line)
		}
	}
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "fbus: ") || strings.HasPrefix(line, "fbus: hint: run") || strings.HasPrefix(line, "fbus: fbus:") {
			t.Errorf("%q: a forged line: %s", what, line)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
