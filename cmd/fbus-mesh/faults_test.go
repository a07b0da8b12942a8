package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// notices collects what a mesh notes.
type notices struct {
	mu   sync.Mutex // protects list
	list []string
}

func (n *notices) note(format string, a ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, fmt.Sprintf(format, a...))
}

// count returns how many notices have a text.
func (n *notices) count(text string) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, line := range n.list {
		if strings.Contains(line, text) {
			count++
		}
	}
	return count
}

// await waits for a notice.
func (n *notices) await(t *testing.T, text string) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); n.count(text) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("no notice has %q: %q", text, n.list)
		}
	}
}

// info asks the mesh of a node what it knows.
func (x *site) info() *bus.MeshInfo {
	x.t.Helper()
	i, c := &bus.MeshInfo{}, x.dial()
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		text, err := output(context.Background(), c, bus.MeshFunction, bus.Args{})
		if err == nil {
			err = json.Unmarshal(text, i)
		}
		if err == nil {
			break
		}
		if code(err) != args.CodeNoFunction || time.Now().After(until) { // it may begin just now
			x.t.Fatal(err)
		}
	}
	return i
}

// A mesh without NATS says why, and that it is in the mesh only when it is.
func TestNoNATS(t *testing.T) {
	s, err := startServer("127.0.0.1:0", &server.Options{Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	addr := s.Addr().String()
	x := &site{t: t, name: "a", urls: s.ClientURL(), notes: &notices{}}
	x.begin()
	const entered = "is in the mesh"
	expect := func(why string) {
		t.Helper()
		x.notes.await(t, why)
		for until := time.Now().Add(20 * time.Second); !strings.Contains(x.info().NATSError, why); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("status has %q, not %q", x.info().NATSError, why)
			}
		}
		if x.notes.count(entered) > 0 {
			t.Errorf("without NATS: %q", x.notes.list)
		}
	}
	expect("Authorization Violation: the server does not admit this mesh")
	stopServer(s)
	expect(addr + ": connection refused")
	if s, err = startServer(addr, &server.Options{}); err != nil {
		t.Fatal(err)
	}
	defer stopServer(s)
	x.notes.await(t, entered)
	if i := x.info(); i.NATS == "" || i.NATSError != "" {
		t.Errorf("when it is connected: %+v", i)
	}
}

// The other nodes are heard for the last time before a dead connection is noticed, and then a call waits
// for no longer than after one that was closed.
func TestSilentNATS(t *testing.T) {
	for err, before := range map[error]time.Duration{
		io.EOF: 0, nats.ErrStaleConnection: 2 * pingEvery, &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}: 2 * pingEvery,
	} {
		h := &hub{note: t.Logf, said: map[string]time.Time{}}
		at := time.Now().Add(-before)
		h.lost(&nats.Conn{}, err)
		if _, since := h.offline(); since.Before(at) || time.Since(since) < before {
			t.Errorf("%v: lost %v before", err, time.Since(since))
		}
	}
}

// A refusal names the credentials that were used.
func TestRefusedCredentials(t *testing.T) {
	for want, o := range map[string]options{
		"this mesh; its ticket may be revoked": {cfg: config{shown: &credentials{}}},
		"this mesh without credentials":        {},
		"this mesh with --creds c":             {creds: "c"},
		"this mesh with --nkey k":              {nkey: "k"},
		"this mesh with --tls-cert t":          {cert: "t"},
		"this mesh with the context x":         {contextFile: "x"},
	} {
		h := &hub{shown: o.given("nats://h")}
		if got := h.reason(&nats.Conn{}, nats.ErrAuthorization); !strings.Contains(got, "does not admit "+want) {
			t.Error(got)
		}
	}
	if got := (&options{}).given("nats://u:p@h"); !strings.Contains(got, "URL") {
		t.Error(got)
	}
}

// A reason is not repeated, and different ones are limited.
func TestRefusedOften(t *testing.T) {
	var n notices
	h := &hub{note: n.note, said: map[string]time.Time{}}
	nc := &nats.Conn{}
	for range 100 {
		h.refused(nc, nats.ErrAuthorization)
	}
	if len(n.list) != 1 {
		t.Errorf("%q", n.list)
	}
	for i := range 1000 {
		h.refused(nc, fmt.Errorf("error %d", i))
	}
	if len(n.list) > 60 {
		t.Errorf("%d notices", len(n.list))
	}
}

// What cannot work is refused before anything is waited for.
func TestMeshUsage(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(junk, []byte("junk\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FBUS_NODE", filepath.Join(dir, "none"))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // of one that waits for a node
	defer cancel()
	for words, want := range map[string]string{
		"foo://x:1":                             "foo://x:1 is not the URL of a NATS server",
		"nats://":                               "nats:// is not the URL of a NATS server",
		"nats://a:1,foo://x:1":                  "foo://x:1 is not the URL of a NATS server",
		"nats://127.0.0.1:1 --creds " + junk:    "--creds " + junk + ": ",
		"nats://127.0.0.1:1 --creds none":       "--creds none: none: no such file",
		"nats://127.0.0.1:1 --nkey " + junk:     "--nkey " + junk + ": ",
		"nats://127.0.0.1:1 --tls-ca " + junk:   "--tls-ca " + junk + ": ",
		"nats://127.0.0.1:1 --tls-cert " + junk: "--tls-cert and --tls-key go together",
		"nats://127.0.0.1:1 --tls-key " + junk + " --tls-cert " + junk: "--tls-cert " + junk + ": ",
		"server extra":                            "fbus mesh server takes no operand, and got extra",
		"config extra":                            "fbus mesh config takes no operand, and got extra",
		"config --listen x:y":                     "--listen x:y: it must be HOST:PORT, with a number as PORT",
		"server --listen x:y":                     "--listen x:y: it must be HOST:PORT, with a number as PORT",
		"config --listen x":                       "--listen x: it must be HOST:PORT, with a number as PORT",
		"demo extra":                              "fbus mesh demo takes no operand, and got extra",
		"nats://127.0.0.1:1 --drain -1s":          "--drain must not be negative",
		"nats://127.0.0.1:1 --advertise foo":      "--advertise foo: it must be HOST:PORT",
		"nats://127.0.0.1:1 --advertise foo:bar":  "--advertise foo:bar: it must be HOST:PORT",
		"nats://127.0.0.1:1 --advertise :1":       "--advertise :1: it must be HOST:PORT",
		"nats://127.0.0.1:1 --advertise [::1]:99": "",
	} {
		if want == "" {
			if err := checkAddress(strings.Fields(words)[2]); err != nil {
				t.Error(err)
			}
			continue
		}
		err := command(ctx, strings.Fields(words), io.Discard, io.Discard)
		if code(err) != args.CodeUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", words, err, want)
		}
	}
}

// What is wrong in [mesh] has its place, and the rule; a file that others may change is not used.
func TestMeshFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.toml")
	for text, want := range map[string]string{
		"[mesh]\nshare = \"x\"\n":                 ":2:9: mesh: share must be an array of strings",
		"[mesh]\nadvertise = [1]\n":               ":2:14: mesh: advertise must be an array of strings",
		"[mesh]\nname = 1\n":                      ":2:8: mesh: name must be a string",
		"mesh = 1\n":                              ":1:8: mesh must be a table",
		"[functions.f]\n[mesh]\n  shares = []\n":  ":3:3: mesh: unknown key shares",
		"[mesh\n":                                 ":1:6: ",
		"[mesh]\nadvertise = [\"nonsense:port\"]": ": mesh: advertise nonsense:port: it must be HOST:PORT",
		"[mesh]\nname = \"a b\"":                  ": mesh: name a b: it must be 1 to 64 of",
		"[mesh]\naccept = [\"[x\"]":               ": mesh: accept: ",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := command(context.Background(), []string{"-c", path, "foo://x"}, io.Discard, io.Discard)
		if code(err) != args.CodeUsage || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "struct") {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if err := errors.Join(os.WriteFile(path, []byte("[mesh]\n"), 0o600), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	err := command(context.Background(), []string{"-c", path, "foo://x"}, io.Discard, io.Discard)
	if code(err) != args.CodeDenied || !strings.Contains(args.AsError(err, "").Hint, "--trust-owner") {
		t.Errorf("a file that everybody may change: %v", err)
	}
}

// Of two meshes beside one node the second waits for the end of the first. Nothing is there twice.
func TestTwoMeshes(t *testing.T) {
	list, s := sites(t, 2)
	a, b := list[0], list[1]
	b.offer("f", 2, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
	a.await("f", 2)
	second := &site{t: t, name: "second", urls: s.ClientURL(), path: a.path, node: a.node, notes: &notices{}}
	second.join()
	second.notes.await(t, "another mesh runs for this node")
	if f := a.node.Functions("f"); len(f) != 1 || len(f[0].Workers) != 1 {
		t.Errorf("beside two meshes f is %+v", f)
	}
	a.stop()
	second.notes.await(t, "is in the mesh")
	a.await("f", 2)

	// Two that start together do not both wait, nor both begin.
	second.stop()
	a.notes, second.notes = &notices{}, &notices{}
	a.join()
	second.join()
	const waits, in = "another mesh runs for this node", "is in the mesh"
	for until := time.Now().Add(20 * time.Second); a.notes.count(waits)*second.notes.count(in)+second.notes.count(waits)*a.notes.count(in) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%q and %q", a.notes.list, second.notes.list)
		}
	}
	if k := a.notes.count(in) + second.notes.count(in); k != 1 {
		t.Errorf("%d meshes are in the mesh", k)
	}
}

// Two nodes with one name are noted by both, and shown. One that was started again is not another.
func TestTwins(t *testing.T) {
	every := helloEvery
	t.Cleanup(func() { helloEvery = every }) // after the meshes have ended
	helloEvery = 200 * time.Millisecond
	s, err := startServer("127.0.0.1:0", &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopServer(s) })
	var list []*site
	for range 2 {
		x := &site{t: t, name: "a", urls: s.ClientURL(), notes: &notices{}}
		x.begin()
		list = append(list, x)
	}
	const twins = "more than one node of the mesh is called a: "
	for _, x := range list {
		x.notes.await(t, twins)
		if i := x.info(); len(i.Peers) != 1 || !i.Peers[0].Twin {
			t.Errorf("%+v", i)
		}
	}

	c := &site{t: t, name: "c", urls: s.ClientURL(), notes: &notices{}}
	c.begin()
	c.notes.await(t, twins)
}

// A node that was started again is not another one with its name.
func TestTwinOfItself(t *testing.T) {
	now := time.Now()
	was := &peer{name: "@c", first: now.Add(-time.Hour), heard: now.Add(-time.Second)}
	is := &peer{name: "@c", first: now, heard: now.Add(time.Second)}
	m := &mesh{peers: map[string]*peer{"1": was, "2": is}, self: hello{Node: "x"}}
	if m.twin(was)+m.twin(is) != "" {
		t.Error("it is taken for another")
	}
	was.heard = now.Add(2 * time.Second)
	if m.twin(was) != "c" || m.twin(is) != "c" {
		t.Error("another is taken for it")
	}
}

// Of a node of another machine that does not listen on TCP the reason is known at once.
func TestPeerWithoutTCP(t *testing.T) {
	p := &peer{mesh: &mesh{machine: "here"}, hello: hello{ID: "x", Socket: "/none", Machine: "there"}}
	if _, _, err := p.connect(context.Background()); err == nil || err.Error() != "its node does not listen on TCP" {
		t.Error(err)
	}
}

// When the own node has ended, the mesh does not say so of others.
func TestOwnNodeEnds(t *testing.T) {
	s, err := startServer("127.0.0.1:0", &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer stopServer(s)
	a := &site{t: t, name: "a", urls: s.ClientURL(), notes: &notices{}}
	a.begin()
	newSite(t, "b", s.ClientURL())
	a.notes.await(t, "node @b is reached by")
	a.kill()
	a.notes.await(t, "looking for the node")
	a.stop()
	if a.notes.count("not reached") > 0 {
		t.Errorf("%q", a.notes.list)
	}
}

// Without NATS, functions that are only elsewhere go when nobody was heard for three times as long as
// between two words, and calls that wait for them end then.
func TestSilence(t *testing.T) {
	every := helloEvery
	t.Cleanup(func() { helloEvery = every }) // after the meshes have ended
	helloEvery = 400 * time.Millisecond
	list, s := sites(t, 2)
	list[1].offer("f", 1, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
	list[0].await("f", 1)
	client := list[0].dial()
	stopServer(s)
	began := time.Now()
	_, _, err := call(client, &bus.Request{Function: "f"})
	if took := time.Since(began); code(err) != args.CodeNoFunction || took < 1100*time.Millisecond || took > 5*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	list[0].await("f", 0)
}
