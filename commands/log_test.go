package commands

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/calllog"
	"fbus/bus/node"
)

func entryLine(e *bus.LogEntry) logEntry {
	return logEntry{calllog.AppendLine(nil, e), *e}
}

func TestLogRows(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.Local)
	for want, e := range map[string]*bus.LogEntry{
		"uid:7 wc here 1.500 exit 0":                              {Event: "call", Caller: "uid:7", Function: "wc", Worker: "here", Ran: 1.5, Source: "program", Code: "exit"},
		"uid:7 wc here 0.000 exit 3":                              {Event: "call", Caller: "uid:7", Function: "wc", Worker: "here", Source: "program", Code: "exit", Status: 3},
		"ticket:ci wc here 2.000 signal KILL":                     {Event: "call", Caller: "ticket:ci", From: "10.0.0.5", Function: "wc", Worker: "here", Ran: 2, Source: "signal", Code: "SIGKILL", Status: 137},
		"uid:7 wc - - busy":                                       {Event: "call", Caller: "uid:7", Function: "wc", Source: "fbus", Code: "busy", Status: 75},
		"uid:7 wc - - busy: wc: no slot":                          {Event: "call", Caller: "uid:7", Function: "wc", Source: "fbus", Code: "busy", Status: 75, Message: "wc: no slot"},
		"- - - - refused: revoked: ticket ci (ab) from 10.0.0.5":  {Event: "refused", From: "10.0.0.5", Code: "revoked", Name: "ci", Serial: "ab"},
		"- - - - refused: expired: serial ab":                     {Event: "refused", Code: "expired", Serial: "ab"},
		"- - - - refused: bad_hello: from 10.0.0.5: it spoke ftp": {Event: "refused", From: "10.0.0.5", Code: "bad_hello", Message: "it spoke ftp"},
		"- - - - 7 entries are missing":                           {Event: "dropped", Dropped: 7, Message: "7 entries are missing"},
		"- - - - ticket: ticket ci: issued":                       {Event: "ticket", Name: "ci", Message: "issued"},
		"u x ?[31m y z 0.000 exit 0":                              {Event: "call", Caller: "u\tx", Function: "\x1b[31m\ny", Worker: "z", Source: "program"},
	} {
		e.Time = at
		row := logRow(e)
		if got := strings.Join(row[1:], " "); got != want || row[0] != "2026-03-01 12:00:00.123" {
			t.Errorf("got  %s %s\nwant %s", row[0], got, want)
		}
	}
}

func TestLogColumns(t *testing.T) {
	a := entryLine(&bus.LogEntry{Event: "call", Caller: "uid:7", Function: "a", Worker: "w", Source: "program"})
	b := entryLine(&bus.LogEntry{Event: "call", Caller: "ticket:a-long-name", Function: "bbbbbbbbbbbbbbbbbbbbb", Worker: "w", Source: "program"})
	for _, follow := range []bool{false, true} {
		var out bytes.Buffer
		p := &logPrinter{w: &out, follow: follow}
		p.print([]logEntry{b, a})
		p.print([]logEntry{a})
		lines := strings.Split(out.String(), "\n")
		if len(lines) != 5 || !strings.HasPrefix(lines[0], "TIME ") {
			t.Fatalf("got\n%s", &out)
		}
		for _, l := range lines[1:3] {
			if strings.Index(l, "exit 0") != strings.Index(lines[1], "exit 0") {
				t.Errorf("not aligned:\n%s", &out)
			}
		}
		if follow && strings.Index(lines[3], "exit 0") != strings.Index(lines[1], "exit 0") {
			t.Errorf("not aligned:\n%s", &out)
		}
	}
	// A newer node's fields are passed on.
	var out bytes.Buffer
	(&logPrinter{w: &out, json: true}).print([]logEntry{{text: []byte(`{"seq":1,"new":true}` + "\n")}, {text: []byte(`{"seq":2}`)}})
	if out.String() != "{\"seq\":1,\"new\":true}\n{\"seq\":2}\n" {
		t.Errorf("got %q", &out)
	}
}

// logNode is a node with a log, under a name that peers may offer.
type logNode struct {
	node   *node.Node
	client *bus.Client
	log    *calllog.Log
	l      *node.Listener
	served chan struct{}
}

func startLogNode(t *testing.T, socket, dir string) *logNode {
	t.Helper()
	n := &logNode{served: make(chan struct{})}
	var err error
	if n.log, err = calllog.Open(calllog.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if n.node, err = node.New(node.Config{Network: "test", Log: n.log}); err != nil {
		t.Fatal(err)
	}
	if n.l, err = node.Listen(socket, true); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the listener
		defer close(n.served)
		n.node.Serve(n.l)
	}()
	if n.client, err = bus.Dial(context.Background(), bus.Unix(socket), &bus.Options{}); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *logNode) stop() {
	n.l.Close()
	<-n.served
	n.node.Close()
	n.client.Close()
	n.log.Close()
}

func (n *logNode) add(functions ...string) {
	for _, f := range functions {
		n.log.Append(&bus.LogEntry{Event: "call", Caller: "uid:7", Function: f, Source: "program", Code: "exit"})
	}
}

func logFlags(socket string) *logOptions {
	o := &logOptions{last: 50, function: "fbus.log"}
	o.node, o.json = socket, true
	return o
}

var seqs = regexp.MustCompile(`"seq":(\d+),`)

func seqsOf(out string) string {
	var list []string
	for _, m := range seqs.FindAllStringSubmatch(out, -1) {
		list = append(list, m[1])
	}
	return strings.Join(list, " ")
}

func TestLogLast(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus.sock")
	n := startLogNode(t, socket, t.TempDir())
	defer n.stop()
	for i := range 3000 {
		n.add([]string{"a", "b", "resize.big"}[i%3])
	}
	for _, c := range []struct {
		last int
		name string
		want string
	}{
		{3, "", "2998 2999 3000"},
		{2, "b", "2996 2999"},
		{2, "re*", "2997 3000"},
		{2, "none", ""},
		{0, "", ""},
	} {
		o := logFlags(socket)
		o.last = c.last
		var out bytes.Buffer
		if err := showLog(context.Background(), o, c.name, &out, io.Discard); err != nil || seqsOf(out.String()) != c.want {
			t.Errorf("%+v: %s, %v", c, seqsOf(out.String()), err)
		}
	}
	o := logFlags(socket)
	o.last = 2500 // several pages
	var out bytes.Buffer
	if err := showLog(context.Background(), o, "", &out, io.Discard); err != nil || strings.Count(out.String(), "\n") != 2500 {
		t.Errorf("%d lines, %v", strings.Count(out.String(), "\n"), err)
	}
	o.function = "nosuch"
	if err := showLog(context.Background(), o, "", &out, io.Discard); err == nil || !strings.Contains(err.Error(), "keeps no log") {
		t.Errorf("without a log: %v", err)
	}
}

// lineWaiter lets a test wait for what is written.
type lineWaiter struct {
	mu   sync.Mutex
	out  bytes.Buffer
	more chan struct{} // has room for one
}

func (l *lineWaiter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.out.Write(p)
}

// await waits until the numbers of all entries so far are these.
func (l *lineWaiter) await(t *testing.T, want string) {
	t.Helper()
	for deadline := time.After(60 * time.Second); ; {
		l.mu.Lock()
		got := seqsOf(l.out.String())
		l.mu.Unlock()
		if got == want {
			return
		}
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("never came: %s; got %s", want, got)
		}
	}
}

func TestLogFollow(t *testing.T) {
	socket, dir := filepath.Join(t.TempDir(), "bus.sock"), t.TempDir()
	n := startLogNode(t, socket, dir)
	n.add("a", "b", "a")
	o := logFlags(socket)
	o.follow, o.last = true, 2
	out, errs := &lineWaiter{more: make(chan struct{}, 1)}, &lineWaiter{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- showLog(ctx, o, "", out, errs) }() // ends with ctx
	out.await(t, "2 3")
	n.add("c")
	out.await(t, "2 3 4")

	// over a restart, with what came meanwhile
	n.stop()
	n = startLogNode(t, socket, dir)
	n.add("d")
	out.await(t, "2 3 4 5")

	// and when the journal begins anew
	n.stop()
	n = startLogNode(t, socket, t.TempDir())
	n.add("e")
	out.await(t, "2 3 4 5 1")
	n.add("f")
	out.await(t, "2 3 4 5 1 2")
	cancel()
	if err := <-ended; err == nil {
		t.Error("it ended well")
	}
	n.stop()
	for _, want := range []string{"waiting for the node to come back", "started again"} {
		if !strings.Contains(errs.out.String(), want) {
			t.Errorf("stderr lacks %q: %s", want, &errs.out)
		}
	}
}

func TestLogCommand(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus.sock")
	cmd := logCommand()
	for words, want := range map[string]string{
		"a b":       "takes one NAME",
		"--last=-1": "must not be negative",
		"--follow":  "no such file",
	} {
		list, err := normalize("log", cmd.Flags, interleaved, append(strings.Fields(words), "--node="+socket))
		if err == nil {
			app := newApp(nil, io.Discard, io.Discard)
			app.Commands = append(app.Commands, logCommand())
			err = execute(app, append([]string{"log"}, list...))
		}
		if err == nil || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: %v", words, err)
		}
	}
}
