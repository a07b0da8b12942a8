package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// mute is a test without the notes of its meshes.
type mute struct{ testing.TB }

func (mute) Logf(string, ...any) {}

// number returns a number of the environment.
func number(name string, or int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return or
}

const scaleWorkers, scaleFunctions = 10, 10 // of a node, and of a worker

func scaleName(node, worker, function int) string {
	return fmt.Sprintf("f.%d.%d.%d", node, worker, function)
}

// scaled is a part of the nodes of TestScale, in a process of its own.
type scaled struct {
	From, To, All int
	Dir, URL      string

	cmd   *exec.Cmd
	input io.WriteCloser
	lines *bufio.Reader
}

// line is the next that the process prints.
func (s *scaled) line(t *testing.T, v any) {
	t.Helper()
	for {
		text, err := s.lines.ReadBytes('\n')
		if err != nil {
			t.Fatalf("nodes %d to %d: %v", s.From, s.To, err)
		}
		if rest, ok := bytes.CutPrefix(text, []byte("scaled ")); ok {
			if err := json.Unmarshal(rest, v); err != nil {
				t.Fatal(err)
			}
			return
		}
		t.Logf("%s", bytes.TrimSpace(text))
	}
}

// TestScaled is the process: nodes, each with its mesh and workers.
func TestScaled(t *testing.T) {
	var s scaled
	if json.Unmarshal([]byte(os.Getenv("TEST_SCALED")), &s) != nil {
		t.Skip("a part of TestScale")
	}
	say := func(v any) {
		text, _ := json.Marshal(v)
		fmt.Printf("scaled %s\n", text)
	}
	var mu sync.Mutex // protects ran
	ran := map[string]int{}
	work := func(_ context.Context, inv *bus.Invocation) bus.Result {
		mu.Lock()
		defer mu.Unlock()
		ran[string(inv.Args)]++
		return bus.Exit(0)
	}
	var list []*site
	for i := s.From; i < s.To; i++ {
		x := &site{t: mute{t}, name: fmt.Sprint("n", i), urls: s.URL, path: filepath.Join(s.Dir, fmt.Sprint("n", i))}
		x.startNode()
		x.join()
		list = append(list, x)
	}
	say("nodes")
	for i, x := range list {
		for w := range scaleWorkers {
			c := x.dial()
			for f := range scaleFunctions {
				if _, err := c.Offer(context.Background(), bus.Offer{Name: scaleName(s.From+i, w, f), Slots: 1}, work); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	say("offers")
	for i, x := range list {
		for j := range s.All {
			if j != s.From+i {
				x.await(scaleName(j, scaleWorkers-1, scaleFunctions-1), 1)
			}
		}
	}
	say("known")
	// To collect the garbage of so many nodes at once takes longer than that of one node, in a process of
	// its own. So it comes before the calls.
	runtime.GC()
	debug.SetGCPercent(1000)
	for in := bufio.NewReader(os.Stdin); ; {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		left := 0
		for _, x := range list {
			for _, f := range x.node.Functions() {
				left += f.Busy + f.Queued
			}
		}
		mu.Lock()
		say(map[string]any{"ran": ran, "left": left})
		mu.Unlock()
	}
}

// process returns the processor time of a process, its memory, and how much of that is of files, as
// its program is.
func process(t *testing.T, pid int) (busy time.Duration, rss, file float64) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')'):]))
	for _, i := range []int{12, 13} { // utime and stime, in hundredths of a second: proc(5)
		n, _ := strconv.Atoi(fields[i])
		busy += time.Duration(n) * 10 * time.Millisecond
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmRSS:":
			fmt.Sscan(f[1], &rss)
		case "RssFile:":
			fmt.Sscan(f[1], &file)
		}
	}
	return busy, rss / 1000, file / 1000
}

// TestScale: 100 nodes, each with its mesh, with 1,000 workers and 10,000 functions, and one NATS
// server. Between them are 40,000 descriptors of connections: so the nodes are in as many processes as
// the limit of open files makes necessary, and one more has nothing but a mesh. TEST_NODES changes
// the number of nodes, and the others with it.
func TestScale(t *testing.T) {
	soak(t)
	nodes := number("TEST_NODES", 100)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// Of each node and each other: two ends here of a connection to the own node, and one each of
	// two to the other.
	each := 4*nodes + 3*scaleWorkers + 10
	parts := (nodes*each + int(limit.Cur)/2 - 1) / (int(limit.Cur) / 2)
	t.Logf("%d files may be open in a process: %d processes have the nodes", limit.Cur, parts)
	natsServer, err := startServer("127.0.0.1:0", &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer stopServer(natsServer)
	dir, err := os.MkdirTemp("", "mesh")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)

	began := time.Now()
	var list []*scaled
	for i := range parts {
		s := &scaled{From: i * nodes / parts, To: (i + 1) * nodes / parts, All: nodes, Dir: dir, URL: natsServer.ClientURL()}
		text, _ := json.Marshal(s)
		s.cmd = exec.Command(os.Args[0], "-test.run", "^TestScaled$", "-test.v")
		s.cmd.Env = append(os.Environ(), "TEST_SCALED="+string(text))
		s.cmd.Stderr = os.Stderr
		if s.input, err = s.cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		output, err := s.cmd.StdoutPipe()
		if err == nil {
			err = s.cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		s.lines = bufio.NewReader(output)
		defer s.cmd.Wait()
		defer io.Copy(io.Discard, s.lines)
		defer s.input.Close()
		list = append(list, s)
	}
	took := map[string]time.Duration{}
	for range 3 {
		word := ""
		for _, s := range list {
			s.line(t, &word)
		}
		took[word] = time.Since(began).Round(time.Millisecond)
	}
	t.Logf("%d nodes and meshes, %d workers, %d functions: all known everywhere after %v: nodes %v, offers %v (limit 60 s)",
		nodes, nodes*scaleWorkers, nodes*scaleWorkers*scaleFunctions, took["known"], took["nodes"], took["offers"])
	if took["known"] > time.Minute {
		t.Errorf("the start takes %v", took["known"])
	}
	d := newNodes(t, natsServer.ClientURL(), "alone")
	d.mesh("alone")
	d.slots("alone", scaleName(0, 0, 0), 0, 1)
	d.slots("alone", scaleName(nodes-1, 0, 0), 0, 1)
	time.Sleep(3 * time.Second) // all is quiet now

	all := func() (busy time.Duration) {
		for _, s := range list {
			b, _, _ := process(t, s.cmd.Process.Pid)
			busy += b
		}
		own, _, _ := process(t, os.Getpid())
		return busy + own
	}
	busy, at := all(), time.Now()
	time.Sleep(10 * time.Second)
	idle := (all() - busy).Seconds() / time.Since(at).Seconds()
	t.Logf("idle, all take %.1f %% of a processor (limit 5)", 100*idle)
	if idle > 0.05 {
		t.Error("it is not idle")
	}
	rss := 0.0
	for _, s := range list {
		_, r, _ := process(t, s.cmd.Process.Pid)
		rss += r
	}
	_, alone, file := process(t, d.meshes["alone"].Process.Pid)
	t.Logf("%.1f MB for each idle node with its mesh and workers; a mesh that is a process of its own takes %.1f MB (limit 20), and %.1f of files",
		rss/float64(nodes), alone-file, file)
	if alone-file > 20 {
		t.Error("an idle mesh takes too much")
	}

	clients := make([]*bus.Client, nodes)
	for i := range clients {
		if clients[i], err = bus.Dial(context.Background(), bus.Unix(filepath.Join(dir, fmt.Sprint("n", i))), &bus.Options{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		defer clients[i].Close()
	}
	worker, err := nats.Connect(natsServer.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close()
	if _, err := worker.Subscribe("echo", func(m *nats.Msg) { m.Respond(m.Data) }); err != nil {
		t.Fatal(err)
	}
	asker, err := nats.Connect(natsServer.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer asker.Close()
	const calls = 10_000
	var mu sync.Mutex // protects the results
	var times, trips []time.Duration
	failed := 0
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range calls {
		<-tick.C
		from, to := rand.IntN(nodes), rand.IntN(nodes)
		if from == to {
			to = (to + 1) % nodes
		}
		function := scaleName(to, rand.IntN(scaleWorkers), rand.IntN(scaleFunctions))
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			at := time.Now()
			_, err := clients[from].Call(ctx, &bus.Request{Function: function, Args: args.List(strconv.Itoa(i)), Stdout: io.Discard})
			took := time.Since(at)
			at = time.Now()
			asker.Request("echo", nil, time.Second)
			trip := time.Since(at)
			mu.Lock()
			defer mu.Unlock()
			times, trips = append(times, took), append(trips, trip)
			if err != nil {
				if failed++; failed < 10 {
					t.Errorf("%s at node %d: %v", function, from, err)
				}
			}
		})
	}
	wg.Wait()
	p99, trip := percentile(times, 0.99), percentile(trips, 0.99)
	t.Logf("overflow calls at 1,000/s: median %v, p99 %v, most %v; round trip of NATS: median %v, p99 %v; ratio of the p99s %.1f (limit 10)",
		percentile(times, 0.5), p99, percentile(times, 1), percentile(trips, 0.5), trip, float64(p99)/float64(trip))
	if p99 > 10*trip {
		t.Error("overflow calls take too long")
	}
	left, ran, doubled := 0, 0, 0
	for _, s := range list {
		fmt.Fprintln(s.input)
		var got struct {
			Ran  map[string]int
			Left int
		}
		s.line(t, &got)
		left += got.Left
		for _, n := range got.Ran {
			ran++
			if n > 1 {
				doubled++
			}
		}
	}
	t.Logf("%d calls: %d failed, %d lost, %d doubled, %d left over", calls, failed, calls-failed-ran, doubled, left)
	if doubled > 0 || left > 0 || ran != calls {
		t.Error("not each call ran once")
	}
}
