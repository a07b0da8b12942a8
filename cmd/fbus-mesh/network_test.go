package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// network is three sites with a network between them that can fail. Each site is a network
// namespace with a node, its mesh, and a NATS server: a's is the hub, the others are its leaf nodes.
// A fourth namespace routes between them. Nothing of it can be seen from outside the test.
type network struct {
	*processes
	brief   bool
	pids    map[string]int // of the processes that keep the namespaces
	servers map[string]*exec.Cmd
}

var siteNumbers = map[string]int{"a": 1, "b": 2, "c": 3}

const router = "router"

func ipOf(site string) string { return fmt.Sprintf("10.9.%d.2", siteNumbers[site]) }

func newNetwork(t *testing.T) *network {
	switch {
	case os.Getenv("FBUS_SOAK") == "":
		t.Skip("takes long: FBUS_SOAK=brief and FBUS_SOAK=1 run it")
	case os.Getuid() != 0:
		t.Skip("needs root, to make network namespaces")
	}
	for _, tool := range []string{"ip", "nft", "tc", "nsenter", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	w := &network{brief: os.Getenv("FBUS_SOAK") == "brief", pids: map[string]int{}, servers: map[string]*exec.Cmd{}}
	hello := "5s"
	if w.brief {
		hello = "300ms"
	}
	w.processes = newNodes(t, "nats://127.0.0.1:4222")
	// Each command runs in the namespace of its user.
	w.fbus = filepath.Join(w.dir, "enter")
	if err := os.WriteFile(w.fbus, []byte("#!/bin/sh\nread pid <\"$FBUS_HOME.pid\"\nexport TEST_HELLO_EVERY="+hello+"\nexec nsenter --net=/proc/$pid/ns/net fbus \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.namespace(router)
	w.in(router, `
		echo 1 >/proc/sys/net/ipv4/ip_forward
		nft add table ip t
		nft add chain ip t f '{ type filter hook forward priority 0; }'`)
	for name, i := range siteNumbers {
		w.namespace(name)
		w.in(router, fmt.Sprintf("ip link add v%s type veth peer name eth0 netns %d; ip addr add 10.9.%d.1/24 dev v%[1]s; ip link set v%[1]s up", name, w.pids[name], i))
		w.in(name, fmt.Sprintf("ip link set lo up; ip addr add %s/24 dev eth0; ip link set eth0 up; ip route add default via 10.9.%d.1", ipOf(name), i))
	}
	for _, name := range []string{"a", "b", "c"} {
		w.natsServer(name)
		w.site(name)
	}
	return w
}

// namespace makes a network namespace. It lasts until the test ends, however that is.
func (w *network) namespace(name string) {
	w.t.Helper()
	cmd := exec.Command("unshare", "--net", "sh", "-c", "echo ready; exec cat")
	input, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		input.Close()
		cmd.Wait()
	})
	if _, err := io.ReadFull(output, make([]byte, len("ready\n"))); err != nil {
		w.t.Skipf("network namespaces cannot be made here: %v", err)
	}
	w.pids[name] = cmd.Process.Pid
	if err := os.WriteFile(filepath.Join(w.dir, name+".pid"), fmt.Appendln(nil, cmd.Process.Pid), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// in runs a shell script in a namespace.
func (w *network) in(name, script string) {
	w.t.Helper()
	if out, err := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", w.pids[name]), "sh", "-ec", script).CombinedOutput(); err != nil {
		w.t.Fatalf("%s in %s: %v: %s", script, name, err, out)
	}
}

// drop has the router drop what matches rules of nft, and nothing else.
func (w *network) drop(rules ...string) {
	w.t.Helper()
	script := "flush chain ip t f\n"
	for _, r := range rules {
		script += "add rule ip t f " + r + " drop\n"
	}
	w.in(router, "nft -f - <<'EOF'\n"+script+"EOF")
}

// cut is rules that drop all between sites.
func cut(one string, others ...string) (rules []string) {
	for _, other := range others {
		rules = append(rules, fmt.Sprintf("ip saddr %s ip daddr %s", ipOf(one), ipOf(other)), fmt.Sprintf("ip saddr %s ip daddr %s", ipOf(other), ipOf(one)))
	}
	return rules
}

// natsServer starts the NATS server of a site.
func (w *network) natsServer(name string) {
	leaf := fmt.Sprintf("leafnodes { listen: %q }", ipOf("a")+":7422")
	if name != "a" {
		leaf = fmt.Sprintf("leafnodes { reconnect: 1, remotes: [ { url: %q } ] }", "nats://"+ipOf("a")+":7422")
	}
	path := filepath.Join(w.dir, name+".conf")
	text := fmt.Sprintf("server_name: %s\nlisten: 127.0.0.1:4222\nping_interval: 5s\nping_max: 2\n%s\n", name, leaf)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	cmd := w.command(name, path)
	var err error
	if cmd.Path, err = exec.LookPath("nsenter"); err != nil {
		w.t.Fatal(err)
	}
	cmd.Args = []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", w.pids[name]), "nats-server", path}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.running = append(w.running, cmd)
	w.servers[name] = cmd
}

// site starts the node and the mesh of a site, and a worker with functions of its own: NAME is a
// program, and tree.NAME one that runs until the file go is there.
func (w *network) site(name string) {
	w.t.Helper()
	if name != "a" {
		ticket := filepath.Join(w.dir, name+".ticket")
		w.must("a", "invite", "-q", "--for-node", "--name", name, "-o", ticket)
		w.must(name, "join", "-q", ticket)
	}
	socket := filepath.Join(w.dir, name+".sock")
	w.serves[name] = w.begin(name, "serve", "-q", "--network", "demo", "--socket", socket, "--listen", ipOf(name)+":10101", "--keepalive", "3s")
	w.sockets[name] = socket
	w.client(name)
	w.mesh(name)
	w.begin(name, "offer", "-q", "--slots", "4", name, "--", "cat")
	w.begin(name, "offer", "-q", "--slots", "1", "--grace", "200ms", "tree."+name, "--", "sh", "-c", w.tree("tree."+name))
	w.begin(name, "offer", "-q", "--slots", "2", "all", "--", "true")
}

func (w *network) mesh(name string) {
	w.meshes[name] = w.begin(name, "mesh", "-q", "--name", name, "--keepalive", "3s", "--advertise", ipOf(name)+":10101", w.nats)
}

func (w *network) must(name string, words ...string) string {
	w.t.Helper()
	var out bytes.Buffer
	if err := w.run(name, &out, words...); err != nil {
		w.t.Fatal(err)
	}
	return out.String()
}

// whole waits until each site can call all functions, and returns when that was.
func (w *network) whole(within time.Duration) {
	w.t.Helper()
	began := time.Now()
	for at := range siteNumbers {
		for of := range siteNumbers {
			if of == at {
				w.knows(at, "all", 4, within-time.Since(began))
			} else {
				w.knows(at, of, 4, within-time.Since(began))
			}
		}
	}
	for at := range siteNumbers {
		for of := range siteNumbers {
			if out := w.calls(at, of); out != "" {
				w.t.Errorf("%s at %s: %s", of, at, out)
			}
		}
	}
	w.t.Logf("whole after %v", time.Since(began).Round(time.Millisecond))
}

// knows waits until a site knows of slots elsewhere.
func (w *network) knows(at, function string, elsewhere int, within time.Duration) {
	w.t.Helper()
	c := w.client(at)
	defer c.Close()
	is := 0
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		var info bus.FunctionInfo
		text, err := output(w.ctx, c, "fbus.functions", args.List(function))
		if err == nil && len(text) > 0 {
			err = json.Unmarshal(text, &info)
		}
		if is = info.Elsewhere; err == nil && is == elsewhere {
			return
		}
		if time.Since(began) > within {
			w.t.Fatalf("after %v site %s knows of %d slots of %s elsewhere, not of %d\n%s", within, at, is, function, elsewhere, w.must(at, "status"))
		}
	}
}

// calls calls a function with some input, and returns what is wrong.
func (w *network) calls(at, function string) string {
	input := strings.Repeat("0123456789abcdef", 1+rand.IntN(10_000))
	cmd := w.command(at, "call", "-t", "20s", "-w", "10s", function)
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Sprint(err, " ", &stderr)
	}
	if out.String() != input {
		return fmt.Sprintf("%d bytes of %d", out.Len(), len(input))
	}
	return ""
}

// reach waits until a site reaches another in some way, or does not for some reason.
func (w *network) reach(at, other, how string, within time.Duration) {
	w.t.Helper()
	text := ""
	for began := time.Now(); !strings.Contains(text, "@"+other+" "+how); time.Sleep(20 * time.Millisecond) {
		if text = w.must(at, "status"); time.Since(began) > within {
			w.t.Fatalf("after %v site %s does not say of %s: %s\n%s", within, at, other, how, text)
		}
	}
}

// silence is after how long without a word a node is gone.
func (w *network) silence() time.Duration {
	if w.brief {
		return 3 * 300 * time.Millisecond
	}
	return 15 * time.Second
}

// TestNetwork: what is promised for a network that fails.
func TestNetwork(t *testing.T) {
	t.Parallel()
	w := newNetwork(t)
	w.whole(20 * time.Second)
	const healed = 15 * time.Second
	tree := func(at, of string) *ending {
		t.Helper()
		e := w.fbusRuns(at, "call", "-n", "-w", "20s", "tree."+of)
		w.file("tree." + of)
		return e
	}
	runs := func(what string, e *ending) {
		t.Helper()
		select {
		case <-e.ended:
			t.Fatalf("%s: %v has ended: %s", what, e.cmd.Args, &e.out)
		default:
		}
	}

	t.Log("NATS is cut, the nodes reach each other: what runs goes on")
	long := tree("a", "c")
	at := time.Now()
	w.drop("tcp dport 7422", "tcp sport 7422")
	w.ends("local", w.fbusRuns("a", "call", "-n", "all"), 0, at, 0)
	w.knows("a", "c", 0, w.silence()+5*time.Second)
	if took := time.Since(at); took < w.silence()*2/3 {
		t.Errorf("c is gone after %v", took)
	}
	w.ends("elsewhere", w.fbusRuns("a", "call", "-n", "c"), 69, at, 0)
	w.ends("elsewhere", w.fbusRuns("a", "call", "-n", "-w", "300ms", "c"), 69, at, 0)
	waiting := w.fbusRuns("a", "call", "-n", "-w", "60s", "c")
	runs("NATS", long)
	w.drop()
	w.whole(healed)
	w.ends("what waited", waiting, 0, at, 0)
	runs("NATS", long)

	t.Log("a link is dead in the middle of a call: 74 within --keepalive")
	at = time.Now()
	w.drop(cut("a", "c")...)
	w.ends("dead link", long, 74, at, 3*time.Second+soon)
	w.gone("dead link", "tree.c")
	w.ends("others", w.fbusRuns("a", "call", "-n", "-t", "5s", "b"), 0, at, 0)
	w.drop()
	w.whole(healed)

	t.Log("a cannot connect to b: b connects to it")
	w.drop("ip saddr " + ipOf("a") + " ip daddr " + ipOf("b") + " tcp dport 10101 tcp flags & (syn|ack) == syn")
	w.kill(w.meshes["a"])
	w.mesh("a")
	w.reach("a", "b", "by a connection that it has made", 20*time.Second)
	w.whole(healed)

	t.Log("nothing of a's arrives at b's node: it is left out, and it is said why")
	w.drop("ip saddr "+ipOf("a")+" ip daddr "+ipOf("b")+" tcp dport 10101", "ip saddr "+ipOf("a")+" ip daddr "+ipOf("b")+" tcp sport 10101")
	w.reach("a", "b", "not reached", 30*time.Second)
	w.knows("a", "b", 0, time.Second)
	w.ends("left out", w.fbusRuns("a", "call", "-n", "b"), 69, at, 0)
	w.reach("a", "b", "not reached: "+ipOf("b")+":10101: no answer; nor does it reach this node", 30*time.Second)
	w.reach("b", "a", "not reached", 30*time.Second)
	for _, x := range [][2]string{{"a", "c"}, {"b", "c"}, {"c", "a"}, {"c", "b"}} {
		if out := w.calls(x[0], x[1]); out != "" {
			t.Errorf("%s at %s: %s", x[1], x[0], out)
		}
	}
	w.drop()
	w.whole(40 * time.Second) // the last pause between tries is 30 seconds
}

// TestNetworkPartition: a site loses the two others, again and again. Each side works with its
// nodes, and when it is over all is as before.
func TestNetworkPartition(t *testing.T) {
	t.Parallel()
	w := newNetwork(t)
	w.whole(20 * time.Second)
	times := number("TEST_CUTS", 100)
	if w.brief {
		times = 2
	}
	for i := range times {
		alone, two, three := "c", "a", "b"
		if i%3 == 2 {
			alone, two, three = "a", "b", "c" // NATS' hub: each is alone
		}
		w.drop(cut(alone, two, three)...)
		if rand.IntN(2) == 0 || w.brief { // else it is over before anybody notices, or in the middle of that
			w.knows(alone, "all", 0, w.silence()+10*time.Second)
			w.knows(two, alone, 0, w.silence()+10*time.Second)
			for _, name := range []string{alone, two, three} {
				if out := w.calls(name, name); out != "" {
					t.Errorf("%s by itself: %s", name, out)
				}
			}
			if alone != "a" {
				w.knows(two, "all", 2, w.silence()+10*time.Second)
				if out := w.calls(two, three) + w.calls(three, two); out != "" {
					t.Errorf("%s and %s by themselves: %s", two, three, out)
				}
			}
		} else {
			time.Sleep(rand.N(2 * w.silence()))
		}
		w.drop()
		w.whole(15 * time.Second)
	}
}

// TestNetworkNarrow: while bulk fills a link of 10 Mbit, small calls and what the meshes say to
// each other get through.
func TestNetworkNarrow(t *testing.T) {
	t.Parallel()
	w := newNetwork(t)
	w.whole(20 * time.Second)
	w.in(router, "tc qdisc add dev vb root tbf rate 10mbit burst 32kbit latency 100ms")
	w.in("b", "tc qdisc add dev eth0 root tbf rate 10mbit burst 32kbit latency 100ms")
	size := 30 << 20
	if w.brief {
		size = 6 << 20
	}
	began := time.Now()
	var bulk []*exec.Cmd
	ends := make(chan error, 2)
	for range 2 {
		cmd := w.command("a", "call", "b")
		cmd.Stdin = io.LimitReader(rand.NewChaCha8([32]byte{}), int64(size))
		bulk = append(bulk, cmd)
		go func() { ends <- cmd.Run() }() // ends with the command
	}
	a := w.client("a")
	var times []time.Duration
	for over := 0; over < len(bulk); {
		at := time.Now()
		if _, _, err := call(a, &bus.Request{Function: "b", Input: strings.NewReader("x")}); err != nil {
			t.Error(err)
		}
		times = append(times, time.Since(at))
		select {
		case err := <-ends:
			if over++; err != nil {
				t.Error(err)
			}
		default:
		}
	}
	took, most := time.Since(began), percentile(times, 1)
	if most > soon { // the link delays each message by 100 ms, and a call takes some
		t.Errorf("a small call beside bulk takes %v", most)
	}
	t.Logf("bulk of 2 calls at once at %.1f Mbit/s each way, small calls beside it: %d, median %v, p99 %v, most %v",
		float64(2*8*size)/1e6/took.Seconds(), len(times), percentile(times, 0.5), percentile(times, 0.99), most)
	w.whole(5 * time.Second)
}
