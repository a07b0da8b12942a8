package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// watched is the lines of one call of fbus.watch.
type watched struct {
	t     testing.TB
	lines chan map[string]any
	stop  context.CancelFunc
}

// watch calls fbus.watch. It is cancelled at the end of the test.
func watch(t testing.TB, c *bus.Client, options string) *watched {
	ctx, stop := context.WithCancel(bg())
	r, to := io.Pipe()
	w := &watched{t, make(chan map[string]any, 10000), stop}
	req := &bus.Request{Function: "fbus.watch", Stdout: to}
	if options != "" {
		req.Args = args.JSON([]byte(options))
	}
	ended := make(chan struct{})
	go func() { // ends with the call
		defer close(ended)
		_, err := c.Call(ctx, req)
		to.CloseWithError(err)
	}()
	go func() { // ends with the call
		for scan := bufio.NewScanner(r); scan.Scan(); {
			var line map[string]any
			if err := json.Unmarshal(scan.Bytes(), &line); err != nil {
				t.Errorf("%v: %s", err, scan.Bytes())
			}
			w.lines <- line
		}
		close(w.lines)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	return w
}

// until waits for a line with these fields.
func (w *watched) until(fields string) map[string]any {
	w.t.Helper()
	var want map[string]any
	if err := json.Unmarshal([]byte(fields), &want); err != nil {
		w.t.Fatal(err)
	}
	for {
		line := await(w.t, fields, w.lines)
		if line == nil {
			w.t.Fatalf("the call has ended without %s", fields)
		}
		fits := true
		for name, v := range want {
			fits = fits && fmt.Sprint(line[name]) == fmt.Sprint(v)
		}
		if fits {
			return line
		}
	}
}

// TestWatch: a snapshot, and then each change of functions, workers and calls.
func TestWatch(t *testing.T) {
	_, path := start(t, node.Config{})
	g := newGate()
	worker := dial(t, path)
	offer := offerFunc(t, worker, "hold", 1, g.handle)
	caller := dial(t, path)
	first := post(bg(), caller, bus.Request{Function: "hold"})
	await(t, "the call has begun", g.started)

	w := watch(t, dial(t, path), "")
	line := w.until(`{"type":"function","name":"hold","slots":1,"busy":1,"free":0}`)
	if _, ok := line["workers"]; ok {
		t.Errorf("the line of a function has its workers: %v", line)
	}
	w.until(`{"type":"worker","function":"hold","slots":1}`)
	w.until(`{"type":"call","function":"hold","state":"running"}`)

	second := post(bg(), caller, bus.Request{Function: "hold", On: "*"})
	w.until(`{"type":"function","name":"hold","queued":1,"on":{"*":1}}`)
	w.until(`{"type":"call","function":"hold","state":"queued"}`)
	g.release <- struct{}{}
	await(t, "the first", first)
	await(t, "the second has begun", g.started)
	if line := w.until(`{"type":"call","gone":true,"state":"ended"}`); line["worker"] == "" || line["ran"] == 0. {
		t.Errorf("no worker or time in %v", line)
	}
	g.release <- struct{}{}
	await(t, "the second", second)
	w.until(`{"type":"function","name":"hold","queued":0,"busy":0,"free":1,"done":2}`)
	if err := offer.SetSlots(bg(), 3); err != nil {
		t.Fatal(err)
	}
	w.until(`{"type":"worker","function":"hold","slots":3}`)
	worker.Close()
	w.until(`{"type":"function","name":"hold","slots":0,"gone":true}`)
	w.until(`{"type":"worker","function":"hold","gone":true}`)
}

// TestWatchJobs: each state of a job, and that it was deleted.
func TestWatchJobs(t *testing.T) {
	m, err := jobs.Open(jobs.Config{Dir: t.TempDir(), Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	_, path := start(t, node.Config{Jobs: m})
	c := dial(t, path)
	before := word(t, c, "fbus.post", "f")
	w := watch(t, dial(t, path), `{"types":["job","function"]}`)
	w.until(`{"type":"job","id":"` + before + `","state":"queued","note":"no worker offers it"}`)
	after := word(t, c, "fbus.post", "f", `{"delay":3600}`)
	w.until(`{"type":"job","id":"` + after + `","state":"delayed"}`)
	g := newGate()
	offerFunc(t, dial(t, path), "f", 1, g.handle)
	w.until(`{"type":"job","id":"` + before + `","state":"running"}`)
	g.release <- struct{}{}
	w.until(`{"type":"job","id":"` + before + `","state":"done","status":0}`)
	word(t, c, "fbus.cancel", after)
	w.until(`{"type":"job","id":"` + after + `","state":"cancelled"}`)
	o := await(t, "purge", post(bg(), c, bus.Request{Function: "fbus.purge", Args: args.JSON([]byte(`{"ids":["` + before + `"]}`))}))
	if o.err != nil {
		t.Fatal(o.err)
	}
	w.until(`{"type":"job","id":"` + before + `","gone":true}`)
}

// word calls one of the node's own functions, and returns its answer without white space around it.
func word(t testing.TB, c *bus.Client, function string, words ...string) string {
	t.Helper()
	o := await(t, function, post(bg(), c, bus.Request{Function: function, Args: args.List(words...)}))
	if o.err != nil {
		t.Fatal(o.err)
	}
	return strings.TrimSpace(o.out)
}

// TestWatchOfGuests: a guest is shown what the lists show to it, and no tickets.
func TestWatchOfGuests(t *testing.T) {
	g := newGuests(t)
	owner := dial(t, g.path)
	release := newGate()
	offerFunc(t, owner, "mine", 2, release.handle)
	offerFunc(t, owner, "other", 2, release.handle)
	guest := g.guest("call:mine")
	guest.send(callFrame(1, "fbus.watch", ""))
	admin := watch(t, owner, "")
	admin.until(`{"type":"ticket","name":"guest"}`)
	done := post(bg(), owner, bus.Request{Function: "other"})
	await(t, "a call of somebody else", release.started)
	theirs := post(bg(), owner, bus.Request{Function: "mine"})
	await(t, "another", release.started)
	guest.send(callFrame(2, "mine", "x"))
	await(t, "the guest's call", release.started)
	var text string
	for !strings.Contains(text, `"type":"call"`) {
		text += string(want[*wire.DataFrame](guest).Payload)
	}
	if strings.Contains(text, "other") || strings.Contains(text, "ticket\"") || !strings.Contains(text, `"name":"mine"`) || strings.Contains(text, `"caller":"uid:`) {
		t.Errorf("a guest was shown %s", text)
	}
	for range 3 {
		release.release <- struct{}{}
	}
	await(t, "the call", done)
	await(t, "the call", theirs)
	g.ticket("late", "call:x")
	word(t, owner, "fbus.revoke", "guest")
	admin.until(`{"type":"ticket","name":"late"}`)
}

// TestWatchPace: only relays may be told of changes more often than 20 times a second.
func TestWatchPace(t *testing.T) {
	g := newGuests(t)
	guest := g.guest("call:mine")
	for i, every := range []string{"1", "49", "0", "-1", "60001"} {
		call := callFrame(uint64(i+1), "fbus.watch", "")
		call.Kind, call.Args = args.KindJSON, []byte(`{"every":`+every+`}`)
		guest.send(call)
		if end := want[*wire.EndFrame](guest); string(end.Code) != args.CodeUsage {
			t.Errorf("every %s: a guest gets %s", every, end.Code)
		}
	}
	owner := dial(t, g.path)
	w := watch(t, owner, `{"types":["function"],"every":1}`)
	offerFunc(t, owner, "mine", 2, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
	w.until(`{"name":"mine"}`)

	// A relay hears of a change at once, unless there was one just before.
	w = watch(t, owner, `{"types":["function"],"every":49}`)
	w.until(`{"name":"mine"}`)
	least := time.Hour
	for i := range 8 {
		time.Sleep(60 * time.Millisecond)
		at := time.Now()
		offerFunc(t, owner, "mine", 3+i, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
		w.until(fmt.Sprintf(`{"name":"mine","slots":%d}`, 3+i))
		least = min(least, time.Since(at))
	}
	if least > 25*time.Millisecond {
		t.Errorf("a relay hears of a change after %v", least)
	}
}

// TestWatchTooSlow: a reader that has missed changes gets a new snapshot, and holds little of the
// node meanwhile.
func TestWatchTooSlow(t *testing.T) {
	n, path := start(t, node.Config{})
	worker := rawUnix(t, nil, path).greet()
	slow := rawUnix(t, nil, path).greet()
	f := callFrame(1, "fbus.watch", "")
	f.WindowOutput = 100
	slow.send(f)
	for i := range 2 * node.MaxRecent { // no credit: it waits with what it has
		worker.write(encode(&wire.OfferFrame{Seq: uint64(2 * i), Name: []byte("f" + strconv.Itoa(i)), Slots: 1}, &wire.OfferFrame{Seq: uint64(2*i + 1), Name: []byte("f" + strconv.Itoa(i))}))
		want[*wire.OfferedFrame](worker)
		want[*wire.OfferedFrame](worker)
	}
	if got := n.Books(); got.Budget > 4<<20 {
		t.Errorf("the node holds %d bytes", got.Budget)
	}
	slow.write(encode(&wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: 1 << 20}))
	var text []byte
	for !bytes.Contains(text, []byte(`{"type":"resync"}`)) {
		text = append(text, want[*wire.DataFrame](slow).Payload...)
		slow.write(encode(&wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: 1 << 16}))
	}
	slow.write(encode(&wire.CancelFrame{ID: 1}))
}

// TestWatchHolds: what is held is a change of functions and of workers.
func TestWatchHolds(t *testing.T) {
	m, path := startWithJobs(t, node.Config{}, jobs.Config{Volatile: true})
	c := dial(t, path)
	offerFunc(t, c, "f", 1, echo)
	w := watch(t, dial(t, path), "")
	w.until(`{"type":"worker","function":"f"}`)
	ask := func(function, doc string) {
		t.Helper()
		if _, err := c.Call(bg(), &bus.Request{Function: function, Args: args.JSON([]byte(doc))}); err != nil {
			t.Error(err)
		}
	}
	ask("fbus.hold", `{"functions":["f"]}`)
	w.until(`{"type":"function","name":"f","held":true}`)
	ask("fbus.hold", `{"on":"*"}`)
	w.until(`{"type":"function","name":"f","free":0}`)
	w.until(`{"type":"worker","function":"f","held":true}`)
	id, err := tryPost(c, "f", "", "")
	if err != nil {
		t.Fatal(err)
	}
	w.until(`{"type":"job","id":"` + id + `","note":"its jobs are held: fbus release f"}`)
	ask("fbus.release", `{"functions":["f"]}`)
	w.until(`{"type":"function","name":"f","held":null}`)
	id, err = tryPost(c, "f", "", "")
	if err != nil {
		t.Fatal(err)
	}
	w.until(`{"type":"job","id":"` + id + `","note":"all its workers are held: fbus release --on '*'"}`)
	ask("fbus.release", `{"on":"*"}`)
	w.until(`{"type":"function","name":"f","free":1}`)
	w.until(`{"type":"job","id":"` + id + `","state":"done"}`)
	if h := m.Holds(); len(h.Functions)+len(h.On) != 0 {
		t.Errorf("%+v", h)
	}
}

// TestWatchersOfOneGuest: however many calls of fbus.watch a guest makes and does not read, another
// one's answers wait for one of them at a time.
func TestWatchersOfOneGuest(t *testing.T) {
	g := newGuests(t)
	bad, good := g.enter(g.ticket("bad", "call:a")), g.enter(g.ticket("good", "call:a"))
	for id := range uint64(500) {
		f := callFrame(id+1, "fbus.watch", "")
		f.WindowOutput = 1
		bad.send(f)
	}
	want[*wire.DataFrame](bad)
	restore := g.n.HoldAnswer("ticket:bad") // one of them computes for ever
	defer restore()
	for id := range uint64(5) {
		if got := good.says(wordsFrame(id+1, "fbus.nodes")); !strings.Contains(got, `"caller":"ticket:good"`) {
			t.Errorf("fbus.nodes: %q", got)
		}
	}
}
