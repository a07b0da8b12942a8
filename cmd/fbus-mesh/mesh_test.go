package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/cmd/testbus"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

func TestMain(m *testing.M) {
	testbus.Main(m, map[string]func(){
		"fbus-mesh": func() {
			if d, err := time.ParseDuration(os.Getenv("TEST_HELLO_EVERY")); err == nil {
				helloEvery = d
			}
			main()
		},
		"nats-server": natsServer,
	})
}

// natsServer is a NATS server with the configuration in the file that its argument names.
func natsServer() {
	o, err := server.ProcessConfigFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s, err := server.NewServer(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.Start()
	s.WaitForShutdown()
}

// TestScripts runs fbus mesh as its users do.
func TestScripts(t *testing.T) { testbus.Scripts(t, nil) }

// site is a node, and its mesh.
type site struct {
	t        testing.TB
	name     string
	node     *node.Node
	path     string
	urls     string
	drain    time.Duration // of the mesh
	context  string        // file of a NATS context
	services []string      // globs of functions for clients of NATS
	notes    *notices      // of the mesh; nil: none are kept
	network  string        // default t
	ticket   *trust.Ticket // for other nodes; nil: none
	kill     func()        // stops the node
	stop     func()        // stops the mesh, and waits for that
}

// sites starts nodes a, b, … and a mesh beside each.
func sites(t testing.TB, count int) ([]*site, *server.Server) {
	t.Helper()
	s, err := startServer("127.0.0.1:0", &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopServer(s) })
	var list []*site
	for i := range count {
		list = append(list, newSite(t, string(rune('a'+i)), s.ClientURL()))
	}
	return list, s
}

// newSite starts a node and its mesh.
func newSite(t testing.TB, name, urls string, services ...string) *site {
	t.Helper()
	x := &site{t: t, name: name, urls: urls, services: services}
	x.begin()
	return x
}

func (x *site) begin() {
	x.t.Helper()
	x.path = filepath.Join(testbus.Dir(x.t), "s")
	x.startNode()
	x.join()
}

func (x *site) startNode() {
	x.t.Helper()
	n := testbus.Start(x.t, node.Config{Network: x.network, Name: x.name, Address: x.path})
	x.node, x.kill = n.Node, n.Stop
}

// join starts the mesh.
func (x *site) join() {
	x.t.Helper()
	o := options{contextFile: x.context, cfg: config{
		Share: []string{"*"}, Accept: []string{"*"}, Place: find.Place{Addr: bus.Unix(x.path)}, Drain: x.drain, NATSService: x.services,
		Note: func(format string, a ...any) {
			if x.notes != nil {
				x.notes.note(format, a...)
			}
			x.t.Logf(x.name+": "+format, a...)
		},
	}}
	if o.cfg.Ticket = x.ticket; x.ticket != nil {
		o.cfg.shown = &credentials{ticket: x.ticket, net: x.network}
	}
	nc, err := o.connect(x.urls)
	if err != nil {
		x.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		if err := run(ctx, &o.cfg, nc); err != nil {
			x.t.Errorf("mesh %s: %v", x.name, err)
		}
	}()
	x.stop = func() {
		cancel()
		<-ended
		nc.Close()
	}
	x.t.Cleanup(func() { x.stop() })
}

// dial connects to the node.
func (x *site) dial() *bus.Client {
	x.t.Helper()
	c, err := bus.Dial(context.Background(), bus.Unix(x.path), &bus.Options{Name: "w" + x.name})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { c.Close() })
	return c
}

// offer offers a function at the node.
func (x *site) offer(name string, slots int, h bus.Handler) *bus.Client {
	x.t.Helper()
	c := x.dial()
	if _, err := c.Offer(context.Background(), bus.Offer{Name: name, Slots: slots}, h); err != nil {
		x.t.Fatal(err)
	}
	return c
}

// await waits until the node knows slots elsewhere of a function.
func (x *site) await(name string, slots int) {
	x.t.Helper()
	for until := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		list := x.node.Functions(name)
		if len(list) == 1 && list[0].Elsewhere == slots || slots == 0 && (len(list) == 0 || list[0].Elsewhere == 0) {
			return
		}
		if time.Now().After(until) {
			x.t.Fatalf("node %s does not learn of %d slots of %s elsewhere: %+v; its mesh: %+v", x.name, slots, name, list, *x.info())
		}
	}
}

func call(c *bus.Client, r *bus.Request) (string, bus.Result, error) {
	var out bytes.Buffer
	if r.Stdout == nil {
		r.Stdout = &out
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	res, err := c.Call(ctx, r)
	return out.String(), res, err
}

// code returns the code of an error of fbus.
func code(err error) string {
	var e *args.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

// A function that is only elsewhere behaves as a local one.
func TestCallsElsewhere(t *testing.T) {
	list, _ := sites(t, 3)
	a, b, c := list[0], list[1], list[2]
	done := make(chan error, 1)
	b.offer("f", 4, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		switch string(inv.Args) {
		case "\x91\xa4wait":
			inv.Progress(bus.Progress{Done: 1, Total: 2, Text: "half"})
			<-ctx.Done()
			done <- context.Cause(ctx)
			return bus.Fail(context.Cause(ctx))
		case "\x91\xa3who":
			fmt.Fprint(inv.Stdout, inv.Caller, " ", inv.Call, " ", inv.Trace)
			return bus.Exit(0)
		}
		fmt.Fprint(inv.Stderr, "to stderr")
		io.Copy(inv.Stdout, inv.Input)
		return bus.Exit(3)
	})
	a.await("f", 4)
	c.await("f", 4)
	client := a.dial()

	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, input := range [][]byte{nil, []byte("x"), big} {
		var stderr bytes.Buffer
		out, res, err := call(client, &bus.Request{Function: "f", Input: bytes.NewReader(input), Stderr: &stderr})
		if out != string(input) || res.Status != 3 || stderr.String() != "to stderr" {
			t.Errorf("%d bytes: got %d, status %d, stderr %q, %v", len(input), len(out), res.Status, &stderr, err)
		}
		if res.Worker != "@b" {
			t.Errorf("worker is %q, want @b", res.Worker)
		}
	}

	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	out, res, err := call(client, &bus.Request{Function: "f", Args: args.List("who"), Trace: trace})
	if want := fmt.Sprintf("uid:%d/@a/uid:%d %s %s", os.Getuid(), os.Getuid(), res.Call, trace); out != want || err != nil {
		t.Errorf("the function sees %q, %v, want %q", out, err, want)
	}

	progress := make(chan bus.Progress, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-progress
		cancel()
	}()
	_, err = client.Call(ctx, &bus.Request{Function: "f", Args: args.List("wait"), Progress: func(p bus.Progress) { progress <- p }})
	if err != context.Canceled {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, bus.ErrCancelled) {
		t.Errorf("the function ends with %v", err)
	}
	_, _, err = call(client, &bus.Request{Function: "f", Args: args.List("wait"), Timeout: 50 * time.Millisecond})
	if code(err) != args.CodeDeadline {
		t.Error(err)
	}
	<-done
	if _, _, err := call(client, &bus.Request{Function: "f", On: "@b"}); code(err) != "exit 3" && !errors.As(err, new(*bus.ExitError)) {
		t.Errorf("on @b: %v", err)
	}
	if _, _, err := call(client, &bus.Request{Function: "f", On: "@c"}); code(err) != args.CodeNoFunction {
		t.Errorf("on @c: %v", err)
	}
}

// Calls that a node has no slot for run on others; each runs once.
func TestOverflow(t *testing.T) {
	list, _ := sites(t, 3)
	ran := make(chan string, 1000)
	for _, x := range list {
		x.offer("f", 2, func(context.Context, *bus.Invocation) bus.Result {
			time.Sleep(2 * time.Millisecond)
			ran <- x.name
			return bus.Exit(0)
		})
	}
	for _, x := range list {
		x.await("f", 4)
	}
	client := list[0].dial()
	const calls = 300
	ends := make(chan error, calls)
	for range calls {
		go func() {
			_, _, err := call(client, &bus.Request{Function: "f"})
			ends <- err
		}()
	}
	for range calls {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	count := map[string]int{}
	for range calls {
		count[<-ran]++
	}
	if len(ran) > 0 || len(count) != 3 {
		t.Errorf("calls ran at %v, and %d twice", count, len(ran))
	}
}

// What dies takes its calls with it, and nothing else.
func TestLosses(t *testing.T) {
	list, s := sites(t, 2)
	a, b := list[0], list[1]
	began, ended := make(chan string, 10), make(chan string, 10)
	wait := func(ctx context.Context, inv *bus.Invocation) bus.Result {
		began <- ""
		<-ctx.Done()
		ended <- ""
		return bus.Fail(context.Cause(ctx))
	}
	worker := b.offer("f", 2, wait)
	a.await("f", 2)
	client := a.dial()
	begin := func() chan error {
		end := make(chan error, 1)
		go func() {
			_, _, err := call(client, &bus.Request{Function: "f"})
			end <- err
		}()
		<-began
		return end
	}
	lost := func(what string, end chan error) {
		t.Helper()
		at := time.Now()
		if err := <-end; code(err) != args.CodeWorkerLost {
			t.Errorf("%s: the call ends with %v", what, err)
		}
		if d := time.Since(at); d > 3*time.Second {
			t.Errorf("%s: the call ends after %v", what, d)
		}
		<-ended
	}

	end := begin()
	worker.Close()
	lost("worker", end)
	a.await("f", 0)
	b.offer("f", 2, wait)
	a.await("f", 2)

	end = begin()
	a.stop()
	lost("the own mesh", end)
	a.join()
	a.await("f", 2)

	end = begin()
	b.kill()
	lost("the other node", end)
	a.await("f", 0)
	b.startNode()
	b.offer("f", 2, wait)
	a.await("f", 2)

	// The own node: what it had runs on nowhere.
	end = begin()
	a.kill()
	if err := <-end; code(err) != args.CodeNodeLost {
		t.Errorf("the own node: the call ends with %v", err)
	}
	<-ended
	a.startNode()
	a.await("f", 2)
	client = a.dial()

	// NATS: what runs goes on, and it is found again.
	end = begin()
	port := s.Addr().String()
	stopServer(s)
	select {
	case err := <-end:
		t.Fatalf("the call ends with NATS: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	s, err := startServer(port, &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer stopServer(s)
	begin()
	select {
	case err := <-end:
		t.Errorf("the call ends with NATS: %v", err)
	default:
	}
	client.Close()
	<-ended
	<-ended
}

// A mesh that is ended lets calls finish.
func TestDrain(t *testing.T) {
	list, _ := sites(t, 2)
	a, b := list[0], list[1]
	a.stop()
	a.drain = 20 * time.Second
	a.join()
	began, release := make(chan string), make(chan string)
	b.offer("f", 1, func(context.Context, *bus.Invocation) bus.Result {
		began <- ""
		<-release
		return bus.Exit(5)
	})
	a.await("f", 1)
	client := a.dial()
	end := make(chan int)
	go func() {
		_, res, _ := call(client, &bus.Request{Function: "f"})
		end <- res.Status
	}()
	<-began
	stopped := make(chan string)
	go func() {
		a.stop()
		close(stopped)
	}()
	a.await("f", 0)
	select {
	case <-stopped:
		t.Error("the mesh does not wait for its call")
	default:
	}
	release <- ""
	if status := <-end; status != 5 {
		t.Errorf("the call ends with %d", status)
	}
	<-stopped
}

// Callers that are told apart here are told apart elsewhere.
func TestCallerAt(t *testing.T) {
	long := strings.Repeat("x", 120)
	for _, c := range [][2]string{{"uid:0", "@a/uid:0"}, {"ticket:" + long, "@a/sha256:"}} {
		got := callerAt("a", c[0])
		if !strings.HasPrefix(got, c[1]) || len(got) > maxCaller || got == callerAt("a", c[0]+"y") {
			t.Errorf("%s is %s", c[0], got)
		}
	}
	for _, host := range []string{"a", "a b", "-x", "", "ä", long} {
		if name := asName(host); !validName.MatchString(name) {
			t.Errorf("host %q is node %q", host, name)
		}
	}
}

// A peer that has no slot after all is asked no more than others.
func TestRefused(t *testing.T) {
	list, _ := sites(t, 2)
	a, b := list[0], list[1]
	release := make(chan struct{})
	began := make(chan string, 10)
	b.offer("f", 1, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		began <- inv.Caller
		<-release
		return bus.Exit(0)
	})
	a.await("f", 1)
	near, far := b.dial(), a.dial()
	ends := make(chan error, 2)
	start := func(c *bus.Client, on string) {
		_, _, err := call(c, &bus.Request{Function: "f", On: on})
		ends <- err
	}
	go start(near, "")
	<-began
	go start(far, "")
	go start(far, "@b")
	for a.node.Functions("f")[0].Queued < 2 {
		time.Sleep(time.Millisecond)
	}
	for range 2 {
		release <- struct{}{}
		if who := <-began; !strings.Contains(who, "/@a/") {
			t.Errorf("the next call is of %s", who)
		}
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	release <- struct{}{}
	if err := <-ends; err != nil {
		t.Error(err)
	}
}

// Neither the server nor a peer can make a mesh fall over with what it sends.
func TestMalformedMessages(t *testing.T) {
	list, s := sites(t, 2)
	a, b := list[0], list[1]
	b.offer("f", 1, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
	a.await("f", 1)
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	id := a.node.Info().Instance
	for _, subject := range []string{"hello", "bye", "take.f", "free.f", "take.", "names." + id, "node." + id} {
		for _, text := range []string{"", "{", "[]", `{"slots":-1}`, `{"from":"y","slots":1000000000}`, `{"id":"x","version":1,"names":1}`, `{"return":"f","slots":-5}`} {
			nc.PublishRequest("fbus.t."+subject, nats.NewInbox(), []byte(text))
			nc.PublishMsg(&nats.Msg{Subject: "fbus.t." + subject, Header: nats.Header{kind: {"hello"}}, Data: []byte(text)})
		}
	}
	nc.Flush()
	if _, _, err := call(a.dial(), &bus.Request{Function: "f", WaitSlot: bus.WaitFor(10 * time.Second)}); err != nil {
		t.Error(err)
	}
}

// The file of the node may have the table of its mesh. The command line wins.
func TestConfigFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fbus.toml")
	for text, want := range map[string]string{
		"[node]\nqueue = 5\n[mesh]\nshare = [\"a*\"]\naccept = []\nname = \"b\"\nadvertise = [\"h:1\"]\n[functions.f]\ncommand = \"x\"\n": "[a*] [] c [h:1]",
		"[node]\nqueue = 5\n":        "[*] [*] c []",
		"[mesh]\nshares = [\"a\"]\n": "mesh: unknown key shares",
		"[mesh]\nshare = \"a\"\n":    "share must be an array of strings",
		"[mesh\n":                    "expected",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := config{Share: []string{"*"}, Accept: []string{"*"}, Name: "c"}
		got := ""
		if err := c.read(path, func(flag string) bool { return flag == "name" }); err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprintf("%v %v %v %v", c.Share, c.Accept, c.Name, c.Advertise)
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
