//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/cmd/mcp"
	"fbus/cmd/testbus"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sys/unix"
)

// place is a node with the program hold, which has descendants and runs until it is ended.
type place struct {
	t   *testing.T
	dir string
	up  *os.File // a FIFO that all processes of hold have open

	node, worker *exec.Cmd
}

func newPlace(t *testing.T) *place {
	p := &place{t: t, dir: testbus.Dir(t)}
	for name, value := range map[string]string{"FBUS_HOME": p.dir + "/home", "FBUS_STATE": p.dir + "/state", "FBUS_NODE": p.dir + "/s", "FBUS_TICKET": "", "TMPDIR": p.dir} {
		t.Setenv(name, value)
	}
	p.node = start(t, "fbus", "serve", "--socket", p.dir+"/s", "--network", "ends", "--listen", "127.0.0.1:0")
	if err := unix.Mkfifo(p.dir+"/up", 0o600); err != nil {
		t.Fatal(err)
	}
	p.worker = p.offer("hold", `exec 8>"$0"; setsid sleep 600 & (trap '' TERM HUP INT; sleep 600) & echo started >&8; wait`, p.dir+"/up")
	return p
}

// offer offers a shell script as a tool, and waits until it can be called.
func (p *place) offer(name, script string, words ...string) *exec.Cmd {
	p.t.Helper()
	client, err := bus.Connect(p.t.Context(), &bus.Options{Wait: bus.WaitFor(20 * time.Second)})
	if err != nil {
		p.t.Fatal(err)
	}
	defer client.Close()
	worker := start(p.t, "fbus", append([]string{"offer", name, "--attr", "tool", "--grace", "100ms", "--", "sh", "-c", script}, words...)...)
	testbus.Until(p.t, name, func() bool {
		var out bytes.Buffer
		_, err := client.Call(p.t.Context(), &bus.Request{Function: "fbus.functions", Args: bus.List(name), Stdout: &out})
		return err == nil && out.Len() > 0
	})
	return worker
}

// begun waits until hold runs.
func (p *place) begun() {
	p.t.Helper()
	opened := make(chan error, 1)
	go func() { // ends when a process has the FIFO open
		var err error
		p.up, err = os.Open(p.dir + "/up")
		opened <- err
	}()
	if err := testbus.Await(p.t, "a process of hold", opened); err != nil {
		p.t.Fatal(err)
	}
	line := make([]byte, len("started\n"))
	if _, err := io.ReadFull(p.up, line); err != nil {
		p.t.Fatal(err)
	}
}

// gone waits until no process of hold is left.
func (p *place) gone() {
	p.t.Helper()
	ended := make(chan error, 1)
	go func() { // ends with the last process
		_, err := io.Copy(io.Discard, p.up)
		ended <- err
	}()
	if err := testbus.Await(p.t, "the end of all processes of hold", ended); err != nil {
		p.t.Error(err)
	}
	p.up.Close()
}

// agent is a client of fbus mcp that shows what is on the wire.
type agent struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Reader
}

// startAgent starts fbus mcp. It ends with the test.
func startAgent(t testing.TB, words ...string) *agent {
	t.Helper()
	a := &agent{t: t, cmd: exec.Command("fbus-mcp", words...)}
	a.cmd.Stderr = os.Stderr
	var err error
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.lines = bufio.NewReader(out)
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.cmd.Process.Kill()
		a.cmd.Wait()
	})
	a.send(`"id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"a test","version":"1"}}`)
	a.send(`"method":"notifications/initialized"`)
	a.answer(0)
	return a
}

func (a *agent) send(rest string) {
	a.t.Helper()
	if _, err := io.WriteString(a.in, `{"jsonrpc":"2.0",`+rest+"}\n"); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) call(id int, tool string) {
	a.t.Helper()
	a.send(fmt.Sprintf(`"id":%d,"method":"tools/call","params":{"name":%q,"arguments":{}}`, id, tool))
}

// answer reads the next message with an id, which must be this one.
func (a *agent) answer(id int) string {
	a.t.Helper()
	answers := make(chan string, 1)
	go func() { // ends with the line, or with fbus mcp
		for {
			line, err := a.lines.ReadString('\n')
			var msg struct{ ID *int }
			if json.Unmarshal([]byte(line), &msg); err != nil || msg.ID != nil {
				if err != nil || *msg.ID != id {
					line = fmt.Sprintf("%s%v instead of an answer to %d", line, err, id)
				}
				answers <- line
				return
			}
		}
	}()
	return testbus.Await(a.t, "an answer", answers)
}

// status waits for the end of fbus mcp, and returns how it ended.
func (a *agent) status() syscall.WaitStatus {
	a.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- a.cmd.Wait() }()
	testbus.Await(a.t, "the end of fbus mcp", ended)
	return a.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// TestSignalsEndTheCalls: HUP, INT and TERM end fbus mcp and what it has called, and are its status.
func TestSignalsEndTheCalls(t *testing.T) {
	p := newPlace(t)
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		a := startAgent(t)
		a.call(1, "hold")
		p.begun()
		a.cmd.Process.Signal(s)
		p.gone()
		if status := a.status(); !status.Signaled() || status.Signal() != s {
			t.Errorf("%s: it ended with %#x", s, status)
		}
	}
}

// TestSecondSignalDoesNotWait: the first one waits for the node, which does not answer.
func TestSecondSignalDoesNotWait(t *testing.T) {
	p := newPlace(t)
	a := startAgent(t)
	a.call(1, "hold")
	p.begun()
	p.node.Process.Signal(syscall.SIGSTOP)
	defer p.node.Process.Signal(syscall.SIGCONT)
	begun, ended := time.Now(), make(chan syscall.WaitStatus, 1)
	go func() { ended <- a.status() }() // ends with fbus mcp
	var status syscall.WaitStatus
	testbus.Until(t, "the end of fbus mcp", func() bool {
		a.cmd.Process.Signal(syscall.SIGTERM) // the first of them is seen at some time, and then the next one
		select {
		case status = <-ended:
			return true
		default:
			return false
		}
	})
	if !status.Signaled() || status.Signal() != syscall.SIGTERM || time.Since(begun) > 20*time.Second {
		t.Errorf("after %s it ended with %#x", time.Since(begun), status)
	}
	p.worker.Process.Kill() // the node may not have been told to end the call
	p.gone()
}

// TestTicketNamesTheCaller: with a plain ticket a function sees the ticket's name, whatever the client says.
func TestTicketNamesTheCaller(t *testing.T) {
	p := newPlace(t)
	p.offer("who", `echo "$FBUS_CALLER"`)
	ticket, err := exec.Command("fbus", "invite", "--call", "who", "--name", "ci", "--reusable").Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("FBUS_NODE", "")
	t.Setenv("FBUS_HOME", p.dir+"/other")
	t.Setenv("FBUS_TICKET", string(ticket))
	a := startAgent(t)
	a.call(1, "who")
	if got := a.answer(1); !strings.Contains(got, `"text":"ticket:ci\n"`) {
		t.Error(got)
	}
	a.call(2, "hold")
	if got := a.answer(2); !strings.Contains(got, `"isError":true`) && !strings.Contains(got, `"error"`) {
		t.Errorf("it called what the ticket does not allow: %s", got)
	}
}

// TestClientsOverHTTPThatGo: a closed request ends its call, and the DELETE of an older session its calls.
func TestClientsOverHTTPThatGo(t *testing.T) {
	p := newPlace(t)
	client, err := bus.Connect(t.Context(), &bus.Options{Relay: true})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	catalog := &mcp.Catalog{Connect: func(context.Context) (*bus.Client, error) { return client, nil }, Note: t.Logf}
	followed := make(chan struct{})
	go func() { // ends with ctx
		defer close(followed)
		catalog.Run(ctx)
	}()
	defer func() { cancel(); <-followed }()
	h := mcp.NewHandler(catalog, func(*http.Request) (mcp.Access, error) { return mcp.Access{Key: "a"}, nil }, false)
	s := httptest.NewServer(h)
	defer func() {
		s.CloseClientConnections()
		s.Close()
		h.Close()
	}()
	for _, version := range []string{"2026-07-28", "2025-11-25"} {
		web := &http.Transport{}
		session, err := sdk.NewClient(&sdk.Implementation{Name: "a test"}, nil).Connect(t.Context(),
			&sdk.StreamableClientTransport{Endpoint: s.URL, HTTPClient: &http.Client{Transport: closable{web}}, DisableStandaloneSSE: true}, &sdk.ClientSessionOptions{ProtocolVersion: version})
		if err != nil {
			t.Fatal(version, err)
		}
		testbus.Until(t, "the tool", func() bool {
			for tool, err := range session.Tools(t.Context(), nil) {
				if err == nil && tool.Name == "hold" {
					return true
				}
			}
			return false
		})
		call, hangUp := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() { // ends with call, or the session
			_, err := session.CallTool(context.WithValue(t.Context(), hangUpKey{}, call), &sdk.CallToolParams{Name: "hold"})
			failed <- err
		}()
		p.begun()
		if version == "2026-07-28" {
			hangUp() // the connection is closed; nothing is said
		} else {
			req, _ := http.NewRequest("DELETE", s.URL, nil)
			req.Header = http.Header{"Mcp-Session-Id": {session.ID()}, "Mcp-Protocol-Version": {version}}
			res, err := web.RoundTrip(req)
			if err != nil || res.StatusCode != http.StatusNoContent {
				t.Fatal(res, err)
			}
		}
		p.gone()
		hangUp()
		if err := testbus.Await(t, "the end of the call", failed); err == nil {
			t.Errorf("%s: the call has a result", version)
		}
		session.Close()
	}
}

// hangUpKey is where the context of a call has one that closes its connection.
type hangUpKey struct{}

// closable closes the connection of a request without a message of the protocol.
type closable struct{ http.RoundTripper }

func (c closable) RoundTrip(r *http.Request) (*http.Response, error) {
	if call, ok := r.Context().Value(hangUpKey{}).(context.Context); ok {
		r = r.WithContext(call)
	}
	return c.RoundTripper.RoundTrip(r)
}

// TestMuchOutput: a tool that prints a gigabyte takes neither memory nor the agent's context. FBUS_SOAK=1 has it
// print all of that.
func TestMuchOutput(t *testing.T) {
	size := 32 << 20
	if os.Getenv("FBUS_SOAK") == "1" {
		size = 1 << 30
	}
	p := newPlace(t)
	p.offer("much", `yes | head -c "$0"`, fmt.Sprint(size))
	a := startAgent(t)
	a.call(1, "much")
	got := a.answer(1)
	if len(got) > 250_000 || !strings.Contains(got, fmt.Sprintf("The output has %d bytes; this is its beginning.", size)) || strings.Contains(got, `"isError"`) {
		t.Errorf("%d bytes: %.100s … %s", len(got), got, got[max(0, len(got)-1000):])
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var most int
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &most); n == 1 && most > 100<<10 {
			t.Errorf("it has used %d kB of memory", most)
		}
	}
}

// BenchmarkFirstList is how long a client waits for its tools from the start of fbus mcp: at most 150 ms.
func BenchmarkFirstList(b *testing.B) {
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprint("f", i))
	}
	n := startNode(b, "", names...)
	for b.Loop() {
		a := startAgent(b, "--node", n.Path)
		a.send(`"id":1,"method":"tools/list"`)
		if list := a.answer(1); !strings.Contains(list, `"f39"`) {
			b.Fatalf("%.200s", list)
		}
		a.in.Close()
		a.cmd.Wait()
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N)/150, "of-limit")
}
