package testscripts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	fbus "fbus/bus"
	"fbus/bus/args"
)

// store is a node in a process of its own, with a store of jobs that outlives it.
type store struct {
	t      testing.TB
	dir    string
	state  string // FBUS_STATE
	flags  []string
	launch func(cmd *exec.Cmd) error // starts the node

	mu   sync.Mutex // protects the fields below
	node *exec.Cmd
	said []byte // by all nodes on stderr
	runs []string
}

// newStore starts a node.
func newStore(t testing.TB, change ...func(s *store)) *store {
	t.Helper()
	s := &store{t: t, dir: t.TempDir(), launch: (*exec.Cmd).Start}
	s.state = filepath.Join(s.dir, "state")
	for _, f := range change {
		f(s)
	}
	t.Cleanup(func() {
		s.end(syscall.SIGTERM, syscall.SIGTERM)
		if t.Failed() {
			t.Logf("the nodes said: %.4000s", s.stderr())
		}
	})
	s.start()
	return s
}

func (s *store) socket() string { return filepath.Join(s.dir, "bus.sock") }

// jobs is the directory of the store.
func (s *store) jobs() string { return filepath.Join(s.state, "jobs", "jobs") }

// command is fbus in the node's environment.
func (s *store) command(args ...string) *exec.Cmd {
	cmd := exec.Command("fbus", args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "FBUS_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "FBUS_NODE="+s.socket(), "FBUS_HOME="+filepath.Join(s.dir, "home"), "FBUS_STATE="+s.state, "DIR="+s.dir,
		"GORACE=atexit_sleep_ms=0")
	return cmd
}

// start starts the node and waits until it answers.
func (s *store) start() {
	s.t.Helper()
	cmd := s.command(append([]string{"serve", "--no-tcp", "--network", "jobs", "--socket", s.socket()}, s.flags...)...)
	cmd.Stderr = (*storeStderr)(s)
	cmd.WaitDelay = patience
	if err := s.launch(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.node = cmd
	s.mu.Unlock()
	var c *fbus.Client
	eventually(s.t, "the node answers", func() (ok bool) {
		var err error
		c, err = s.dial("test")
		return err == nil
	})
	defer c.Close()
	run, _, _ := strings.Cut(ask(c, "fbus.nodes").res.Call, "-")
	s.mu.Lock()
	s.runs = append(s.runs, run)
	s.mu.Unlock()
}

// run is which of the nodes, from 0, has given a call its id; -1: none.
func (s *store) run(call string) int {
	prefix, _, _ := strings.Cut(call, "-")
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Index(s.runs, prefix)
}

// storeStderr takes what nodes say.
type storeStderr store

func (s *storeStderr) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, p...)
	return len(p), nil
}

func (s *store) stderr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.said)
}

// end signals the node until it has ended.
func (s *store) end(signals ...syscall.Signal) {
	s.mu.Lock()
	node := s.node
	s.node = nil
	s.mu.Unlock()
	if node == nil {
		return
	}
	done := make(chan struct{})
	go func() { // ends with the node
		node.Wait()
		close(done)
	}()
	for _, sig := range signals {
		node.Process.Signal(sig)
		select {
		case <-done:
			return
		case <-time.After(100 * time.Millisecond): // a signal that is sent twice at once is one
		}
	}
	select {
	case <-done:
	case <-time.After(2 * patience):
		node.Process.Kill()
		s.t.Errorf("the node did not end")
		<-done
	}
}

// kill is kill -9.
func (s *store) kill() { s.end(syscall.SIGKILL) }

// eventually waits for an event.
func eventually(t testing.TB, what string, test func() bool) {
	t.Helper()
	if !comes(test) {
		t.Fatalf("never came: %s", what)
	}
}

// eventually waits for an event, and shows the jobs if it does not come.
func (s *store) eventually(what string, test func() bool) {
	s.t.Helper()
	if !comes(test) {
		s.t.Fatalf("never came: %s; the jobs: %s", what, s.overview())
	}
}

func comes(test func() bool) bool {
	for end := time.Now().Add(6 * patience); !test(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// overview lists the jobs for a message, as fbus.jobs does.
func (s *store) overview() string {
	c, err := s.dial("overview")
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out bytes.Buffer
	if _, err := c.Call(ctx, &fbus.Request{Function: "fbus.jobs", Args: args.JSON([]byte(`{}`)), Stdout: &out}); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("\n%.20000s", out.String())
}

func (s *store) dial(name string) (*fbus.Client, error) {
	return fbus.Dial(context.Background(), fbus.Unix(s.socket()), &fbus.Options{Name: name})
}

// client is a connection until the test ends.
func (s *store) client(name string) *fbus.Client {
	s.t.Helper()
	c, err := s.dial(name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// answer is how a call of the node's own functions went.
type answer struct {
	out, err string
	res      fbus.Result
}

// ok says that the function did what was asked.
func (a *answer) ok() bool { return a.res.Code == "exit" && a.res.Status == 0 }

// ask makes a call with words and returns how it ended, whatever that is.
func ask(c *fbus.Client, function string, words ...string) answer {
	return askWith(c, function, args.List(words...), "")
}

func askWith(c *fbus.Client, function string, given args.Args, input string) answer {
	var out, stderr bytes.Buffer
	req := &fbus.Request{Function: function, Args: given, Stdout: &out, Stderr: &stderr}
	if input != "" {
		req.Input = strings.NewReader(input)
	}
	res, err := c.Call(context.Background(), req)
	var be *args.Error
	if errors.As(err, &be) && res.Code == "" {
		res.Source, res.Code, res.Status, res.Message = args.FromBus, be.Code, args.StatusOf(be.Code), be.Message
	}
	return answer{out.String(), stderr.String(), res}
}

// post posts, and returns the id that was printed, or "".
func post(c *fbus.Client, function, options, input string) (id string, a answer) {
	a = askWith(c, "fbus.post", args.List(function, options), input)
	if a.ok() {
		id = strings.TrimSpace(a.out)
	}
	return id, a
}

// list asks fbus.jobs.
func (s *store) list(c *fbus.Client, query string) (list []fbus.JobInfo) {
	s.t.Helper()
	a := askWith(c, "fbus.jobs", args.JSON([]byte(query)), "")
	if !a.ok() {
		s.t.Fatalf("fbus.jobs %s: %+v", query, a.res)
	}
	dec := json.NewDecoder(strings.NewReader(a.out))
	for dec.More() {
		var i fbus.JobInfo
		if err := dec.Decode(&i); err != nil {
			s.t.Fatal(err)
		}
		list = append(list, i)
	}
	return list[:len(list)-1] // less the total
}

// worker offers a function to each node that comes, until the test ends.
func (s *store) worker(name, function string, slots int, h fbus.Handler) {
	s.t.Helper()
	w := &fbus.Worker{Options: &fbus.Options{Node: s.socket(), Name: name}}
	w.Add(fbus.Offer{Name: function, Slots: slots}, h)
	if err := w.Start(context.Background()); err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with the test
		w.Run(ctx)
		close(done)
	}()
	s.t.Cleanup(func() {
		stop()
		<-done
		w.Close()
	})
}
