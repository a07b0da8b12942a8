package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/cmd/testbus"
)

// newProcessSite starts a node as a process of its own, and a gateway. The site has no authority.
func newProcessSite(t *testing.T) (x *site, node *os.Process) {
	t.Helper()
	dir := testbus.Dir(t)
	socket := filepath.Join(dir, "node")
	cmd := exec.Command("fbus", "serve", "-q", "--no-tcp", "--socket", socket)
	cmd.Env = append(os.Environ(), "FBUS_HOME="+filepath.Join(dir, "home"), "FBUS_STATE="+filepath.Join(dir, "state"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	testbus.Until(t, "the node listens", func() bool { return listens("unix", socket) })
	own, err := bus.Dial(t.Context(), bus.Unix(socket), &bus.Options{Name: "w"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close() })
	x = &site{t: t, dir: dir, own: own}
	cfg := defaults()
	cfg.Node, cfg.Socket, cfg.Drain = socket, filepath.Join(dir, "gateway"), 5*time.Second
	x.startGateway(cfg)
	return x, cmd.Process
}

// stop stops a process that this one has started.
func stop(t *testing.T, p *os.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(p.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatal(err, status)
	}
}

// TestStoppedNode: while the node is stopped each request is answered, and none that may have run says that it has not.
// What has begun to run or may wait for ever goes on when the node does, and so does the gateway.
func TestStoppedNode(t *testing.T) {
	t.Parallel()
	x, node := newProcessSite(t)
	var mu sync.Mutex
	var ran []string // the input of each call
	x.offer(bus.Offer{Name: "echo", Slots: 9}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		in, _ := io.ReadAll(inv.Input)
		mu.Lock()
		defer mu.Unlock()
		ran = append(ran, string(in))
		return bus.Result{Output: in}
	})
	began, release := make(chan bool, 9), make(chan bool)
	x.offer(bus.Offer{Name: "hold"}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		first := make([]byte, 1)
		inv.Input.Read(first)
		began <- true
		select {
		case <-release:
			return bus.Result{Output: first}
		case <-ctx.Done():
			return bus.Exit(1)
		}
	})
	type end struct {
		name, want string
		*reply
	}
	ends := make(chan end)
	ask := func(name, want, method, path string, body any, headers ...string) {
		go func() { // ends with the answer
			ends <- end{name, want, x.do(method, x.local+path, body, append(headers, "Accept", "application/problem+json")...)}
		}()
	}
	// answered checks the answers to n requests.
	answered := func(n int) {
		t.Helper()
		for range n {
			e := testbus.Await(t, "an answer", ends)
			code := strings.TrimSpace(fmt.Sprint(e.StatusCode, " ", e.Header.Get("Fbus-Code")))
			want, says, _ := strings.Cut(e.want, ": ")
			if code != want || !strings.Contains(e.body, says) || (e.StatusCode == 503) != (e.Header.Get("Retry-After") != "") {
				t.Errorf("%s: %s %s, expected %s", e.name, code, e.body, e.want)
			}
			if strings.HasSuffix(want, "no_node") && strings.Contains(e.body, "may") || e.StatusCode == 503 && !strings.Contains(e.body, `"status":503`) {
				t.Errorf("%s: %s", e.name, e.body)
			}
		}
	}
	job := x.do("POST", x.local+"/jobs/echo?delay=1h", "a job").id(t)
	more, body := io.Pipe()
	defer body.Close()
	ask("running", "200 exit: r", "POST", "/call/hold", more, "Fbus-Wait", "1ms")
	io.WriteString(body, "r")
	<-began
	ask("waiting", "200 exit: w", "POST", "/call/hold", "w", "Fbus-Wait", "forever")
	testbus.Until(t, "a call waits", func() bool {
		return strings.Contains(x.do("GET", x.local+"/calls", nil).body, `"queued"`)
	})

	stop(t, node)
	ask("a call", "503 node_lost: the call may have run", "POST", "/call/echo", "made", "Fbus-Wait", "1s")
	ask("no time", "504 deadline", "POST", "/call/echo", "made too", "Fbus-Timeout", "500ms")
	ask("a post", "503 node_lost: the job may have been posted", "POST", "/jobs/echo?delay=1h", "posted")
	ask("a large post", "503 node_lost: the job may have been posted", "POST", "/jobs/echo?delay=1h", strings.Repeat("x", 2<<20))
	paths := []string{
		"GET /jobs", "GET /jobs/" + job, "GET /jobs/" + job + "?wait=1h", "GET /jobs/" + job + "/output", "GET /jobs/" + job + "/output?wait=1h",
		"DELETE /jobs/" + job, "POST /jobs/" + job + "/retry", "GET /functions", "GET /functions/echo", "GET /calls", "GET /openapi.json",
	}
	for _, path := range paths {
		method, path, _ := strings.Cut(path, " ")
		ask(method+" "+path, "503 no_node: the node does not answer", method, path, nil)
	}
	ask("DELETE /calls/x", "503 node_lost: it may do later what was asked", "DELETE", "/calls/x", nil)
	ask("/metrics", "200", "GET", "/metrics", nil)
	answered(len(paths) + 6)

	// Now it is known. Nothing is sent to the node.
	ask("a late call", "503 no_node: the node does not answer", "POST", "/call/echo", "never made", "Fbus-Wait", "1ms")
	ask("no time", "504 deadline", "POST", "/call/echo", "never made", "Fbus-Timeout", "1ms")
	ask("a late post", "503 no_node: the node does not answer", "POST", "/jobs/echo", "never made")
	answered(3)
	ask("held", "200 exit: kept", "POST", "/call/echo", "kept", "Fbus-Wait", "forever")
	ask("held for a while", "200 exit: kept", "POST", "/call/echo", "kept", "Fbus-Wait", "1m", "Fbus-Timeout", "1m")

	node.Signal(syscall.SIGCONT)
	answered(2)
	close(release)
	answered(2)
	ask("the functions", "200", "GET", "/functions", nil)
	ask("the job", "200", "GET", "/jobs/"+job, nil)
	ask("its node", "200", "GET", "/readyz", nil)
	ask("a call again", "200 exit: again", "POST", "/call/echo", "again")
	answered(4)
	mu.Lock()
	defer mu.Unlock()
	if slices.Contains(ran, "never made") {
		t.Error("a call has run that was said not to be made")
	}
}

// TestLongCall: a call that takes longer than Fbus-Wait is not ended, as long as its node answers.
func TestLongCall(t *testing.T) {
	t.Parallel()
	x := newSite(t)
	x.offer(bus.Offer{Name: "sleep"}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		select {
		case <-time.After(lateTime + 4*quietTime):
			return bus.Exit(0)
		case <-ctx.Done():
			return bus.Exit(1)
		}
	})
	if r := x.do("POST", x.local+"/call/sleep", "", "Fbus-Wait", "1ms"); r.StatusCode != http.StatusOK {
		t.Error(r.Status, r.body)
	}
}
