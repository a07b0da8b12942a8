package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
)

// process is a gateway as a process of its own.
type process struct {
	*exec.Cmd
	socket string
	addr   string // where a token is needed
}

// process starts a gateway beside the node of a site, and waits until it serves. The command before, if any, runs it.
func (x *site) process(before []string, flags ...string) *process {
	x.t.Helper()
	p := &process{socket: filepath.Join(x.dir, "process")}
	words := append(before, "fbus-gateway", "--node", filepath.Join(x.dir, "node"), "--socket", p.socket, "--listen", "127.0.0.1:0", "--drain", "5s")
	words = append(words, flags...)
	p.Cmd = exec.Command(words[0], words[1:]...)
	p.Env = append(os.Environ(), "FBUS_HOME="+filepath.Join(x.dir, "home"), "FBUS_STATE="+filepath.Join(x.dir, "state"))
	notes, err := p.StderrPipe()
	if err == nil {
		err = p.Start()
	}
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(p.kill)
	lines := bufio.NewScanner(notes)
	for said := ""; !strings.Contains(said, "connected to node"); {
		if !lines.Scan() {
			x.t.Fatalf("the gateway has ended: %s", said)
		}
		said += lines.Text() + "\n"
		if _, addr, ok := strings.Cut(lines.Text(), "http://"); ok {
			p.addr, _, _ = strings.Cut(addr, ",")
		}
	}
	go io.Copy(io.Discard, notes) // ends with the process
	return p
}

// kill kills the process, and waits for its end.
func (p *process) kill() {
	p.Process.Kill()
	p.Wait()
}

// client makes requests through the process's socket.
func (p *process) client(t testing.TB) *http.Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", p.socket) }, DisableCompression: true, MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// memory returns a figure of /proc/PID/status in bytes: VmRSS, or VmHWM, the most so far.
func (p *process) memory(t testing.TB, what string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), what+":")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// TestKilled: an idle gateway is small; a killed gateway ends what it has called, but no job; the next one serves at once.
func TestKilled(t *testing.T) {
	x := newSite(t)
	began, ended, release := make(chan string, 2), make(chan string, 2), make(chan bool)
	x.offer(bus.Offer{Name: "hang", Slots: 2}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		in, _ := io.ReadAll(inv.Input)
		began <- string(in)
		select {
		case <-release:
			return bus.Result{Output: []byte("done")}
		case <-ctx.Done():
			ended <- string(in)
			return bus.Exit(1)
		}
	})
	p := x.process(nil)
	if idle := p.memory(t, "VmRSS"); idle > 30<<20 && !raceEnabled {
		t.Errorf("an idle gateway uses %d MiB", idle>>20)
	} else {
		t.Logf("an idle gateway uses %d MiB", idle>>20)
	}
	go p.client(t).Post("http://x/call/hang", "", strings.NewReader("call")) // ends with the gateway
	if in := <-began; in != "call" {
		t.Error(in)
	}
	resp, err := p.client(t).Post("http://x/jobs/hang", "", strings.NewReader("job"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	<-began
	p.kill()
	if in := <-ended; in != "call" {
		t.Errorf("what ended is the %s", in)
	}
	p = x.process(nil)
	close(release)
	resp, err = p.client(t).Get("http://x" + resp.Header.Get("Location") + "/output?wait=10s")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if out, _ := io.ReadAll(resp.Body); string(out) != "done" {
		t.Errorf("%s: %q", resp.Status, out)
	}
}

// TestHalfOpen: a client that is gone without a word loses its calls within a minute, whether something is
// sent to it meanwhile or not.
func TestHalfOpen(t *testing.T) {
	switch {
	case os.Getenv("FBUS_SOAK") == "":
		t.Skip("takes long: FBUS_SOAK=brief and FBUS_SOAK=1 run it")
	case os.Getuid() != 0:
		t.Skip("needs root, to make a network namespace")
	}
	for _, tool := range []string{"unshare", "nsenter", "ip", "nft", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	if out, err := exec.Command("unshare", "--net", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("network namespaces cannot be made here: %v: %s", err, out)
	}
	x := newSite(t)
	began, ended := make(chan bool, 3), make(chan string, 3)
	x.offer(bus.Offer{Name: "hang", Slots: 3}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		what, _ := io.ReadAll(inv.Input)
		began <- true
		if string(what) == "fed" {
			for ctx.Err() == nil {
				if _, err := inv.Stdout.Write(make([]byte, 1<<10)); err != nil {
					<-ctx.Done()
				}
			}
		}
		<-ctx.Done()
		ended <- string(what)
		return bus.Exit(0)
	})
	p := x.process([]string{"unshare", "--net", "sh", "-c", `ip link set lo up; exec "$@"`, "sh"})
	within := func(words ...string) *exec.Cmd {
		cmd := exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", p.Process.Pid)}, words...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	token := x.token("ci", "*")
	for what, accept := range map[string]string{"silent": "*/*", "fed": "*/*", "events": "text/event-stream"} {
		c := within("curl", "-s", "-o", "/dev/null", "-H", "Accept: "+accept, "-H", "Authorization: Bearer "+token, "-d", what, "http://"+p.addr+"/call/hang")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
		<-began
	}
	if out, err := within("nft", "add table inet t; add chain inet t in { type filter hook input priority 0; policy drop; }").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cut := time.Now()
	for range 3 {
		select {
		case what := <-ended:
			t.Logf("%s: ended after %v", what, time.Since(cut).Round(time.Second))
		case <-time.After(time.Minute):
			t.Fatal("a call goes on")
		}
	}
}
