package testscripts

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	fbus "fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// guest is the hostile holder of a ticket. Its frames are its own.
type guest struct {
	addr   string
	ticket *trust.Ticket
}

// guestConn is one of its connections; nc is nil if the node has refused it.
type guestConn struct {
	nc  net.Conn
	id  uint64
	buf []byte
}

const (
	// attackTime is how long one attack goes on.
	attackTime = time.Second
	// anyAttack is the kind of a flood that does one after the other, at random.
	anyAttack = "any"
)

// attacks are what guests have stopped a node with. Each takes about attackTime.
var attacks = map[string]func(g *guest){
	// Waiting calls with long arguments.
	"long": func(g *guest) {
		long := args.List(strings.Repeat("x", 1<<19)).Data()
		g.each(4, func(c *guestConn) { c.call("slow", long, func(f *wire.CallFrame) { f.WaitFunction = wire.Forever }) })
	},
	// Waiting calls without a byte, on many connections.
	"many": func(g *guest) {
		g.each(50, func(c *guestConn) { c.call("nobody", nil, func(f *wire.CallFrame) { f.WaitFunction = wire.Forever }) })
	},
	// As many connections as there may be, with a few calls on each.
	"crowd": func(g *guest) {
		var list []*guestConn
		for end := time.Now().Add(5 * attackTime); time.Now().Before(end) && len(list) < 1000; {
			c := g.connect()
			for range 8 {
				c.call("nobody", nil, func(f *wire.CallFrame) { f.WaitFunction = wire.Forever })
			}
			c.flush()
			list = append(list, c)
		}
		for _, c := range list {
			c.close()
		}
	},
	// Calls of a name that nobody offers.
	"nobody": func(g *guest) { g.each(10, func(c *guestConn) { c.call("nobody", nil, nil) }) },
	// Calls for workers that are not there.
	"nosuch": func(g *guest) {
		g.each(2, func(c *guestConn) {
			c.call("echo", nil, func(f *wire.CallFrame) { f.On, f.WaitFunction = []byte("nosuch"), wire.Forever })
		})
	},
	// Offers in a loop, while calls wait for expensive globs.
	"offers": func(g *guest) {
		caller := g.connect()
		for i := range 1000 {
			caller.call("f", nil, func(f *wire.CallFrame) {
				f.On, f.WaitFunction = fmt.Appendf(nil, "%s%d", strings.Repeat("*a", 120), i%30), wire.Forever
			})
		}
		caller.flush()
		g.each(10, func(c *guestConn) {
			c.send(&wire.OfferFrame{Seq: 1, Name: []byte("f"), Slots: 1, Description: make([]byte, 100)}, &wire.OfferFrame{Seq: 2, Name: []byte("f")})
		})
		caller.close()
	},
	// Many functions with a lot of text.
	"texts": func(g *guest) {
		i := 0
		text := bytes.Repeat([]byte("\x1b[2J\nfbus: hint: x"), 200)
		g.each(4, func(c *guestConn) {
			i++
			c.send(&wire.OfferFrame{Seq: 1, Name: fmt.Appendf(nil, "f%d", i), Slots: 1, Description: text})
		})
	},
	// The node's own functions, with as many names as fit, whose answers are not read.
	"functions": func(g *guest) {
		var names []string
		for i := range 900 {
			names = append(names, fmt.Sprint("f", i))
		}
		list := args.List(names...).Data()
		g.each(10, func(c *guestConn) { c.call("fbus.functions", list, nil) })
	},
	// The same, with inputs that never end and without credit for the output.
	"own": func(g *guest) {
		names := []string{"fbus.cancel", "fbus.post", "fbus.result", "fbus.jobs", "fbus.calls", "fbus.nodes", "fbus.purge"}
		g.each(3, func(c *guestConn) {
			c.call(names[c.id%uint64(len(names))], nil, func(f *wire.CallFrame) { f.Flags, f.WindowOutput, f.WindowStderr = 0, 0, 0 })
		})
	},
	// Jobs, and looks at all of them.
	"jobs": func(g *guest) {
		post := args.List("slow", "{}", strings.Repeat("x", 2000)).Data()
		g.each(4, func(c *guestConn) {
			c.call("fbus.post", post, nil)
			c.call("fbus.jobs", nil, nil)
		})
	},
	// Calls that are cancelled at once.
	"cancels": func(g *guest) {
		g.each(4, func(c *guestConn) {
			c.call("echo", nil, nil)
			c.send(&wire.CancelFrame{ID: c.id})
		})
	},
	// Frames that are none, again and again.
	"garbage": func(g *guest) {
		g.each(4, func(c *guestConn) {
			c.buf = append(c.buf, 0, 0, 0, 5, 0x94, 0xc1, 0xff, 0xff, 0xff)
			c.flush()
			c.close()
			*c = *g.connect()
		})
	},
	// Connections that come and go.
	"churn": func(g *guest) {
		g.each(8, func(c *guestConn) {
			c.close()
			*c = *g.connect()
		})
	},
}

// each lets several connections do f again and again for attackTime, many times between two writes.
func (g *guest) each(conns int, f func(c *guestConn)) {
	end := time.Now().Add(attackTime)
	var all sync.WaitGroup
	for range conns {
		all.Go(func() {
			c := g.connect()
			defer func() { c.close() }()
			for time.Now().Before(end) {
				for len(c.buf) < 1<<16 && time.Now().Before(end) {
					before := len(c.buf)
					if f(c); c.nc == nil || len(c.buf) <= before {
						break
					}
				}
				if !c.flush() {
					c.close()
					time.Sleep(10 * time.Millisecond)
					c = g.connect()
				}
			}
		})
	}
	all.Wait()
}

// connect enters. What the node sends is read, and dropped.
func (g *guest) connect() *guestConn {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}, Timeout: attackTime}
	nc, err := dialer.Dial("tcp", g.addr)
	if err != nil {
		return &guestConn{}
	}
	tc := tls.Client(nc, g.ticket.ClientConfig(nil))
	tc.SetDeadline(time.Now().Add(10 * attackTime))
	if tc.Handshake() != nil {
		nc.Close()
		return &guestConn{}
	}
	c := &guestConn{nc: tc}
	c.send(&wire.HelloFrame{Major: wire.Major, Minor: wire.Minor, Name: []byte("a")})
	go io.Copy(io.Discard, tc) // ends with the connection
	return c
}

func (c *guestConn) close() {
	if c.nc != nil {
		c.nc.Close()
		c.nc = nil
	}
}

func (c *guestConn) send(frames ...wire.Frame) {
	for _, f := range frames {
		c.buf = wire.Append(c.buf, f)
	}
}

// flush writes what was sent. It reports whether the connection stands.
func (c *guestConn) flush() bool {
	if c.nc == nil {
		return false
	}
	_, err := c.nc.Write(c.buf)
	c.buf = c.buf[:0]
	return err == nil
}

// call begins a call, which change may change.
func (c *guestConn) call(name string, list []byte, change func(*wire.CallFrame)) {
	c.id++
	f := &wire.CallFrame{
		ID: c.id, Name: []byte(name), Flags: wire.FlagInputEnd, WaitSlot: wire.Forever, WindowOutput: wire.InitialWindow, WindowStderr: wire.InitialWindow,
	}
	if list != nil {
		f.Kind, f.Args = args.KindList, list
	}
	if change != nil {
		change(f)
	}
	c.send(f)
}

// TestHostileGuests: whatever guests do at the same time, others call, post and map, lose nothing and
// get nothing wrong; the node's own user cancels, looks and revokes within a second, and the node's memory
// is bounded. FBUS_SOAK=1 does it for ten minutes.
func TestHostileGuests(t *testing.T) {
	long(t)
	hostile, d := 2, 5*time.Second
	if soak() {
		hostile, d = 8, 10*time.Minute
	}
	s := newHostileBus(t)
	over := make(chan struct{})
	var all sync.WaitGroup
	for i := range hostile {
		name := fmt.Sprint("bad", i)
		s.invite(name, "--call", "*", "--offer", "f*")
		all.Go(func() { s.attack(name, over) })
	}
	for i := range 2 {
		name := fmt.Sprint("good", i)
		s.invite(name, "--call", "*")
		all.Go(func() { s.honest(name, over) })
	}
	all.Go(func() { s.control(over) })
	time.Sleep(d)
	close(over)
	all.Wait()
	t.Logf("%d rounds of honest work; slowest commands of the owner %v; the node had at most %.0f MB", s.rounds, s.slowest, s.memory())
	if limit := 128.0 + 128.0/9*float64(hostile-1); s.memory() > limit {
		t.Errorf("the node had %.0f MB, more than %.0f", s.memory(), limit)
	}
	for name, d := range s.slowest {
		if d > time.Second && soak() {
			t.Errorf("%s of the owner took %v", name, d)
		}
	}
	if s.rounds == 0 {
		t.Error("no honest work was done")
	}
}

// hostileBus is a node with an honest worker, and guests.
type hostileBus struct {
	*testing.T
	*bus
	addr string

	mu      sync.Mutex // protects the fields below
	rounds  int
	slowest map[string]time.Duration // command of the owner
}

func newHostileBus(t *testing.T) *hostileBus {
	s := &hostileBus{T: t, slowest: map[string]time.Duration{}, bus: &bus{b: t, fbus: "fbus", socket: filepath.Join(t.TempDir(), "bus.sock")}}
	s.node = s.command("serve", "--socket", s.socket, "--listen", "127.0.0.1:0", "--network", "bench", "--max-jobs", "20000")
	s.addr = regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(until(t, s.node, "holders only"))
	s.background("offering", "offer", "echo", "--slots", "4", "--", "cat")
	s.background("offering", "offer", "slow", "--slots", "1", "--", "sleep", "100")
	return s
}

// invite makes a reusable ticket.
func (s *hostileBus) invite(name string, rights ...string) {
	s.Helper()
	cmd := s.command(append([]string{"invite", "-q", "--name", name, "--reusable", "--address", s.addr, "-o", s.ticket(name)}, rights...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("%v: %s", err, out)
	}
}

func (s *hostileBus) ticket(name string) string { return filepath.Join(filepath.Dir(s.socket), name) }

// attack runs floods of a ticket's holder, each for a minute at most, until it is over.
func (s *hostileBus) attack(name string, over <-chan struct{}) {
	for {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "FBUS_BENCH_ROLE=flood "+strings.Join([]string{anyAttack, s.addr, s.ticket(name)}, " "))
		if err := cmd.Start(); err != nil {
			s.Error(err)
			return
		}
		ended := make(chan struct{})
		go func() { // ends with the process
			cmd.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-over:
			cmd.Process.Kill()
			<-ended
			return
		}
	}
}

// as runs a command with a ticket.
func (s *hostileBus) as(name, stdin string, words ...string) (string, error) {
	cmd := s.command(words...)
	cmd.Env = append(cmd.Env, "FBUS_NODE=", "FBUS_TICKET="+s.ticket(name))
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	return string(out), err
}

// honest calls, posts and maps until it is over. A command that is told that something is busy is
// repeated.
func (s *hostileBus) honest(name string, over <-chan struct{}) {
	retried := func(stdin string, words ...string) string {
		for {
			out, err := s.as(name, stdin, words...)
			if err == nil {
				return out
			}
			var e *exec.ExitError
			if e, _ = err.(*exec.ExitError); e == nil || e.ExitCode() != 75 {
				s.Errorf("fbus %v: %v: %s", words, err, out)
				return ""
			}
			select {
			case <-over:
				return ""
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	for k := 0; ; k++ {
		text := fmt.Sprintf("%s %d", name, k)
		if got := retried(text, "call", "echo"); got != text && got != "" {
			s.Errorf("call: %q, not %q", got, text)
		}
		if id := strings.TrimSpace(retried(text, "post", "echo")); id != "" {
			if got := retried("", "result", id); got != text && got != "" {
				s.Errorf("result: %q, not %q", got, text)
			}
		}
		lines := strings.Repeat(text+"\n", 20)
		if got := retried(lines, "map", "-j4", "--each", "raw", "--retries", "20", "echo"); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(lines), " ") && got != "" {
			s.Errorf("map: %q", got)
		}
		select {
		case <-over:
			return
		default:
			s.mu.Lock()
			s.rounds++
			s.mu.Unlock()
		}
	}
}

// control does what an administrator does, and notes the longest time.
func (s *hostileBus) control(over <-chan struct{}) {
	c, err := fbus.Dial(context.Background(), fbus.Unix(s.socket), nil)
	if err != nil {
		s.Error(err)
		return
	}
	defer c.Close()
	for k := 0; ; k++ {
		s.invite(fmt.Sprint("leaked", k), "--call", "*")
		for _, req := range []fbus.Request{
			{Function: "fbus.nodes"}, {Function: "fbus.calls"}, {Function: "fbus.functions"}, {Function: "fbus.tickets"}, {Function: "fbus.metrics"},
			{Function: "fbus.revoke", Args: args.List(fmt.Sprint("leaked", k))}, {Function: "fbus.purge", Args: args.List(`{"state":"dead"}`)},
		} {
			began := time.Now()
			if _, err := c.Call(context.Background(), &req); err != nil {
				s.Errorf("%s: %v", req.Function, err)
			}
			s.mu.Lock()
			s.slowest[req.Function] = max(s.slowest[req.Function], time.Since(began))
			s.mu.Unlock()
		}
		select {
		case <-over:
			return
		default:
		}
	}
}
