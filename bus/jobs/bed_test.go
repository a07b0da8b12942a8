package jobs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/trust"

	"go.uber.org/goleak"
)

// patience bounds every wait for an event: a test that reaches it has failed.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "16") // they wait far more than they compute
	goleak.VerifyTestMain(m)
}

// eventually polls what no event tells of.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(500 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
		runtime.Gosched()
	}
}

// await waits for a channel to be closed or to deliver.
func await[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("never came: %s", what)
		panic("unreachable")
	}
}

func bg() context.Context { return context.Background() }

// bed is a node with a store of jobs, in this process, and peers of it.
type bed struct {
	t     testing.TB
	cfg   jobs.Config
	clock *clock
	auth  *trust.Authority // nil: there are no tickets
	node  node.Config

	m *jobs.Manager
	n *node.Node

	mu      sync.Mutex // protects the fields below
	said    []string   // warnings
	closing []func()
}

// newBed opens a store and a node. Nothing is synced unless the configuration is
// changed so.
func newBed(t testing.TB, change ...func(b *bed)) *bed {
	t.Helper()
	b := &bed{t: t, clock: newClock()}
	b.cfg = jobs.Config{Dir: filepath.Join(t.TempDir(), "jobs"), Volatile: true, Clock: b.clock.Clock(), Warn: b.warn}
	for _, f := range change {
		f(b)
	}
	t.Cleanup(func() {
		b.close()
		if t.Failed() {
			t.Logf("the store has said: %q", b.warnings())
		}
	})
	b.open()
	return b
}

func (b *bed) warn(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.said = append(b.said, fmt.Sprintf(format, args...))
}

// warnings is all that the operator was told.
func (b *bed) warnings() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.said, "\n")
}

func (b *bed) open() {
	b.t.Helper()
	m, err := jobs.Open(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	cfg := b.node
	cfg.Network, cfg.Jobs = "test", m
	if b.auth != nil {
		cfg.Gate, cfg.Authority = b.auth, b.auth
	}
	n, err := node.New(cfg)
	if err != nil {
		m.Close()
		b.t.Fatal(err)
	}
	b.m, b.n = m, n
}

// close ends the node in an orderly way, its clients first.
func (b *bed) close() {
	b.mu.Lock()
	closing := b.closing
	b.closing = nil
	b.mu.Unlock()
	for i := len(closing) - 1; i >= 0; i-- {
		closing[i]()
	}
	if b.n != nil {
		b.n.Close()
		b.m.Close()
		b.n, b.m = nil, nil
	}
}

// restart is close and open; the clients are gone.
func (b *bed) restart() {
	b.t.Helper()
	b.close()
	b.open()
}

// dial connects with a name, as the node's own user.
func (b *bed) dial(name string) *bus.Client {
	b.t.Helper()
	return b.dialAs(name, node.Peer{Caller: "uid:0"})
}

// dialAs connects as whom the peer is.
func (b *bed) dialAs(name string, p node.Peer) *bus.Client {
	b.t.Helper()
	near, far := net.Pipe()
	served := make(chan struct{})
	n := b.n
	go func() { // ends with the connection
		defer close(served)
		n.ServeConn(far, p)
	}()
	c, err := bus.NewClient(bg(), near, &bus.Options{Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	b.closing = append(b.closing, func() {
		c.Close()
		<-served
	})
	b.mu.Unlock()
	return c
}

// offer puts a function on the bus over a client.
func (b *bed) offer(c *bus.Client, name string, slots int, h bus.Handler) {
	b.t.Helper()
	if _, err := c.Offer(bg(), bus.Offer{Name: name, Slots: slots}, h); err != nil {
		b.t.Fatal(err)
	}
}

// ended is how a call of the node's own functions went.
type ended struct {
	out, err string
	res      bus.Result
}

// call makes a call and returns how it ended, whatever that is.
func call(c *bus.Client, function string, given args.Args, input string) ended {
	ctx, stop := context.WithTimeout(bg(), patience)
	defer stop()
	var out, stderr bytes.Buffer
	req := &bus.Request{Function: function, Args: given, Stdout: &out, Stderr: &stderr}
	if input != "" {
		req.Input = strings.NewReader(input)
	}
	res, err := c.Call(ctx, req)
	var be *args.Error
	if errors.As(err, &be) && res.Code == "" {
		res.Source, res.Code, res.Status, res.Message = args.FromBus, be.Code, args.StatusOf(be.Code), be.Message
	}
	return ended{out.String(), stderr.String(), res}
}

// post posts with options and arguments, and returns the id.
func (b *bed) post(c *bus.Client, function, options, input string, words ...string) string {
	b.t.Helper()
	e := call(c, "fbus.post", args.List(append([]string{function, options}, words...)...), input)
	if e.res.Status != 0 {
		b.t.Fatalf("post to %s: %+v", function, e.res)
	}
	return strings.TrimSpace(e.out)
}

// refused is a post that has to end with that status and words of the message.
func (b *bed) refused(c *bus.Client, function, options, input string, status int, words string) {
	b.t.Helper()
	e := call(c, "fbus.post", args.List(function, options), input)
	if e.out != "" || e.res.Status != status || e.res.Source != args.FromBus || !strings.Contains(e.res.Message, words) {
		b.t.Errorf("post to %s: %q, %+v; want status %d: %s", function, e.out, e.res, status, words)
	}
}

// result waits for a job's end.
func (b *bed) result(c *bus.Client, id string) ended {
	return call(c, "fbus.result", args.List(id), "")
}

// list asks fbus.jobs.
func (b *bed) list(c *bus.Client, query string) (list []bus.JobInfo, total int) {
	b.t.Helper()
	e := call(c, "fbus.jobs", args.JSON([]byte(query)), "")
	if e.res.Status != 0 {
		b.t.Fatalf("fbus.jobs %s: %+v", query, e.res)
	}
	lines := strings.Split(strings.TrimSuffix(e.out, "\n"), "\n")
	for _, line := range lines[:len(lines)-1] {
		var i bus.JobInfo
		if err := json.Unmarshal([]byte(line), &i); err != nil {
			b.t.Fatalf("%v: %s", err, line)
		}
		list = append(list, i)
	}
	var last bus.JobTotal
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		b.t.Fatal(err)
	}
	return list, last.Total
}

// job is one job with its history.
func (b *bed) job(c *bus.Client, id string) bus.JobInfo {
	b.t.Helper()
	list, _ := b.list(c, `{"ids":["`+id+`"]}`)
	return list[0]
}

// becomes waits until a job is in a state, and returns it.
func (b *bed) becomes(c *bus.Client, id string, state jobs.State) (i bus.JobInfo) {
	b.t.Helper()
	eventually(b.t, fmt.Sprintf("job %s is %s", id, state), func() bool {
		i = b.job(c, id)
		return i.State == state
	})
	return i
}

// exit is how a program ends.
func exit(status int) bus.Result { return bus.Exit(status) }

// saying is exit with output.
func saying(out string) bus.Result { return bus.Result{Output: []byte(out)} }

// gate is a handler that tells of each call and holds it until it is let go.
type gate struct {
	started chan *bus.Invocation
	release chan bus.Result
}

func newGate() *gate {
	return &gate{started: make(chan *bus.Invocation, 10000), release: make(chan bus.Result, 10000)}
}

func (g *gate) handle(ctx context.Context, inv *bus.Invocation) bus.Result {
	g.started <- inv
	select {
	case r := <-g.release:
		return r
	case <-ctx.Done():
		return bus.Result{End: bus.End{Source: args.FromSignal, Status: 143, Code: "SIGTERM"}}
	}
}

// clock is a machine's clocks, which go by the real ones and are moved by the test.
type clock struct {
	mu    sync.Mutex // protects the fields below
	began time.Time
	wall  time.Time     // at began
	boot  time.Duration // at began
	id    int
}

func newClock() *clock { return &clock{began: time.Now(), wall: time.Now(), boot: time.Hour, id: 1} }

// Clock gives what a Config takes; after a reboot it is to be taken anew.
func (c *clock) Clock() jobs.Clock {
	c.mu.Lock()
	defer c.mu.Unlock()
	return jobs.Clock{
		Wall: func() time.Time {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.wall.Add(time.Since(c.began))
		},
		Boot: func() time.Duration {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.boot + time.Since(c.began)
		},
		BootID: fmt.Sprint(c.id),
	}
}

// pass lets time go by.
func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.boot = c.wall.Add(d), c.boot+d
}

// set moves the date alone.
func (c *clock) set(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = c.wall.Add(d)
}

// reboot starts the machine anew; the date stands d further than it did.
func (c *clock) reboot(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.boot, c.id = c.wall.Add(d), -time.Since(c.began), c.id+1
}
