package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// cable passes connections on to an address, and can be cut.
type cable struct {
	net.Listener
	mu    sync.Mutex // protects the fields below
	cut   bool
	conns []net.Conn
}

func newCable(t *testing.T, to string) *cable {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{Listener: l}
	t.Cleanup(func() {
		l.Close()
		c.set(true)
	})
	go func() { // ends with the listener
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			c.mu.Lock()
			far, err := net.Dial("tcp", to)
			if c.cut || err != nil {
				near.Close()
			} else {
				c.conns = append(c.conns, near, far)
				go func() { io.Copy(near, far); near.Close(); far.Close() }() // these end with the connections
				go func() { io.Copy(far, near); near.Close(); far.Close() }()
			}
			c.mu.Unlock()
		}
	}()
	return c
}

func (c *cable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut = cut; cut {
		for _, conn := range c.conns {
			conn.Close()
		}
		c.conns = nil
	}
}

// member starts a server of a cluster. It connects to route, unless that is empty.
func member(t *testing.T, listen, route string) *server.Server {
	t.Helper()
	o := &server.Options{Cluster: server.ClusterOpts{Name: "t", Host: "127.0.0.1", Port: server.RANDOM_PORT, NoAdvertise: true}}
	if route != "" {
		o.Routes = server.RoutesFromStr("nats://" + route)
	}
	s, err := startServer(listen, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopServer(s) })
	return s
}

// TestPartition: two of three nodes lose the third, as their NATS servers lose each other. Each side
// works with its nodes, and when it is over all is as it was.
func TestPartition(t *testing.T) {
	every := helloEvery
	t.Cleanup(func() { helloEvery = every }) // after the meshes have ended
	helloEvery = 200 * time.Millisecond
	one := member(t, "127.0.0.1:0", "")
	between := newCable(t, one.ClusterAddr().String())
	two := member(t, "127.0.0.1:0", between.Addr().String())
	var list []*site
	for i, s := range []*server.Server{one, two, two} {
		x := &site{t: t, name: string(rune('a' + i)), urls: s.ClientURL(), path: filepath.Join(t.TempDir(), "s")}
		x.startNode()
		x.join()
		list = append(list, x)
		x.offer("f"+x.name, 1, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
		x.offer("g", 1, func(context.Context, *bus.Invocation) bus.Result {
			time.Sleep(10 * time.Millisecond)
			return bus.Exit(0)
		})
	}
	a, b, c := list[0], list[1], list[2]
	ok := func(x *site, functions ...string) {
		t.Helper()
		client := x.dial()
		defer client.Close()
		for _, f := range functions {
			if _, _, err := call(client, &bus.Request{Function: f}); err != nil {
				t.Errorf("%s at %s: %v", f, x.name, err)
			}
		}
	}
	whole := func() {
		t.Helper()
		for _, x := range list {
			x.await("g", 2)
		}
		ok(a, "fa", "fb", "fc")
		ok(b, "fa", "fb", "fc")
		ok(c, "fa", "fb", "fc")
	}
	whole()
	between.set(true)
	a.await("g", 0)
	b.await("g", 1)
	c.await("g", 1)
	ok(a, "fa", "g")
	ok(b, "fb", "fc", "g")
	ok(c, "fb", "fc", "g")
	client := a.dial()
	if _, _, err := call(client, &bus.Request{Function: "fb"}); code(err) != args.CodeNoFunction {
		t.Errorf("fb at a: %v", err)
	}
	end := make(chan error, 1)
	go func() {
		_, _, err := call(client, &bus.Request{Function: "fb", WaitFunction: bus.WaitFor(20 * time.Second)})
		end <- err
	}()
	between.set(false)
	if err := <-end; err != nil {
		t.Errorf("what waited for fb at a: %v", err)
	}
	whole()
}

// TestOwnHello: what a mesh says about itself can come back to it, from a server that it has left. Only
// that of another mesh for the same node is an error.
func TestOwnHello(t *testing.T) {
	var notes []string
	m := &mesh{
		cfg: &config{Note: func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }}, said: map[string]bool{},
		self: hello{Version: namesVersion, Node: "a", ID: "1", Mesh: "2"},
	}
	m.heard(m.encode(m.self))
	if len(notes) > 0 {
		t.Errorf("its own hello: %q", notes)
	}
	other := m.self
	other.Mesh = "3"
	m.heard(m.encode(other))
	if len(notes) != 1 {
		t.Errorf("another mesh for its node: %q", notes)
	}
}

// TestDuplicates: messages of NATS come twice, and late, and so in another order. Each call runs
// once, at one place, and ends once.
func TestDuplicates(t *testing.T) {
	list, s := sites(t, 3)
	again, err := nats.Connect(s.ClientURL(), nats.NoEcho())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Subscribe("fbus.t.>", func(m *nats.Msg) {
		time.AfterFunc(rand.N(20*time.Millisecond), func() { // ends by itself
			again.PublishMsg(&nats.Msg{Subject: m.Subject, Reply: m.Reply, Header: m.Header, Data: m.Data})
		})
	}); err != nil {
		t.Fatal(err)
	}
	again.Flush()
	var mu sync.Mutex // protects runs
	runs := map[string]int{}
	const slots = 2
	var busy [3]int
	for i, x := range list {
		x.offer("f", slots, func(_ context.Context, inv *bus.Invocation) bus.Result {
			mu.Lock()
			runs[string(inv.Args)]++
			if busy[i]++; busy[i] > slots {
				t.Errorf("%d calls at %s at once", busy[i], x.name)
			}
			mu.Unlock()
			time.Sleep(rand.N(4 * time.Millisecond))
			mu.Lock()
			busy[i]--
			mu.Unlock()
			inv.Stdout.Write(inv.Args)
			return bus.Exit(0)
		})
	}
	for _, x := range list {
		x.await("f", 2*slots)
	}
	const calls = 200
	ends := make(chan error, 2*calls)
	for i, x := range list[:2] {
		client := x.dial()
		for j := range calls {
			go func() {
				a := args.List(fmt.Sprint(i, " ", j))
				out, _, err := call(client, &bus.Request{Function: "f", Args: a})
				if err == nil && out != string(a.Data()) {
					err = fmt.Errorf("call %d of %s gets %q", j, x.name, out)
				}
				ends <- err
			}()
		}
	}
	for range 2 * calls {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for a, n := range runs {
		if n != 1 {
			t.Errorf("%q ran %d times", a, n)
		}
	}
	if len(runs) != 2*calls {
		t.Errorf("%d of %d calls ran", len(runs), 2*calls)
	}
}

// TestRevoked: a node that is revoked can use no other node of the network, nor they it: at once
// not the network's first one, and the others within five seconds.
func TestRevoked(t *testing.T) {
	addr, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	d := newNodes(t, "tls://"+addr)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		must(d.site(name))
		must(d.start(name, "offer", "-q", "--slots", "1", "f"+name, "--", "echo", name))
	}
	for _, name := range []string{"a", "b", "c"} {
		for _, other := range []string{"a", "b", "c"} {
			if other != name {
				must(d.await(name, "f"+other, 0, 1))
				must(d.run(name, nil, "call", "-n", "f"+other))
			}
		}
	}
	must(d.run("a", nil, "revoke", "-q", "b"))
	at := time.Now()
	for _, x := range []struct{ name, function string }{{"a", "fb"}, {"b", "fa"}, {"c", "fb"}, {"b", "fc"}} {
		must(d.await(x.name, x.function, 0, 0))
		t.Logf("%s is gone from node %s after %v", x.function, x.name, time.Since(at))
		if d.run(x.name, nil, "call", "-n", x.function) == nil {
			t.Errorf("%s can still be called at %s", x.function, x.name)
		}
	}
	must(d.run("a", nil, "call", "-n", "fc"))
	must(d.run("c", nil, "call", "-n", "fa"))
	must(d.run("b", nil, "call", "-n", "fb"))
}
