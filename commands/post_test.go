package commands

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
)

// storeNode is a node on which a test plays the functions that keep jobs, under
// names that peers may offer.
type storeNode struct {
	socket string
	node   *node.Node
	client *bus.Client
	l      *node.Listener
	served chan struct{}
}

func startStore(t *testing.T, socket string) *storeNode {
	t.Helper()
	n := &storeNode{socket: socket, served: make(chan struct{})}
	var err error
	if n.node, err = node.New(node.Config{Network: "test"}); err != nil {
		t.Fatal(err)
	}
	if n.l, err = node.Listen(socket, true); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the listener
		defer close(n.served)
		n.node.Serve(n.l)
	}()
	// As a relay it may end calls with the codes of a node, whose functions it plays.
	if n.client, err = bus.Dial(context.Background(), bus.Unix(socket), &bus.Options{Relay: true}); err != nil {
		t.Fatal(err)
	}
	return n
}

// offer offers a function; its invocations' Arrival is their number.
func (n *storeNode) offer(t *testing.T, name string, h bus.Handler) {
	t.Helper()
	calls := 0
	arrive := func() any {
		calls++
		return calls - 1
	}
	if _, err := n.client.Offer(context.Background(), bus.Offer{Name: name, Slots: 1000, Arrive: arrive}, h); err != nil {
		t.Fatal(err)
	}
}

func (n *storeNode) stop() {
	n.l.Close()
	<-n.served
	n.node.Close()
	n.client.Close()
}

func newStore(t *testing.T) *storeNode {
	n := startStore(t, filepath.Join(t.TempDir(), "bus.sock"))
	t.Cleanup(n.stop)
	return n
}

func exited(output string) bus.Result { return bus.Result{Output: []byte(output)} }

func refusal(status int, code, msg string) bus.Result {
	return bus.Result{End: bus.End{Source: args.FromBus, Status: status, Code: code, Message: msg}}
}

func postFlags(n *storeNode) *postOptions {
	o := &postOptions{function: "post", nodeOptions: nodeOptions{node: n.socket}}
	o.name, o.verb, o.noStdin = "f", "post", true
	itemFlags(&o.items)
	return o
}

// itemsOf makes the flags those of items, given as words.
func itemsOf(o *postOptions, items ...string) *postOptions {
	o.each, o.noStdin, o.args = true, false, items
	return o
}

func TestPostSends(t *testing.T) {
	n := newStore(t)
	file := filepath.Join(t.TempDir(), "input")
	long := strings.Repeat("long ", 100_000)
	os.WriteFile(file, []byte(long), 0o600)
	sent := make(chan []string, 1)
	n.offer(t, "post", func(_ context.Context, inv *bus.Invocation) bus.Result {
		got, _ := inv.Words()
		input := inv.Head()
		if inv.Rest() != nil {
			rest, _ := io.ReadAll(inv.Rest())
			input = append(input, rest...)
		}
		sent <- append(got, string(input))
		return exited("01ID\n")
	})
	for name, c := range map[string]struct {
		set  func(o *postOptions)
		want []string
	}{
		"nothing": {func(*postOptions) {}, []string{"f", `{"kind":"raw"}`, ""}},
		"words":   {func(o *postOptions) { o.args = []string{"a", "\xff"} }, []string{"f", `{"kind":"list"}`, "\x92\xa1a\xa1\xff", ""}},
		"fields":  {func(o *postOptions) { o.fields = []args.Field{{Name: "n", Value: "1", JSON: true}} }, []string{"f", `{"kind":"map"}`, "\x81\xa1n\xc4\x011", ""}},
		"a document": {func(o *postOptions) { o.hasData, o.data = true, `{"a": 1.50}` },
			[]string{"f", `{"kind":"json"}`, `{"a": 1.50}`, ""}},
		"an input": {func(o *postOptions) { o.noStdin, o.input = false, file }, []string{"f", `{"kind":"raw"}`, long}},
		"an input beside words": {func(o *postOptions) { o.noStdin, o.input, o.args = false, file, []string{"a"} },
			[]string{"f", `{"kind":"list","input":true}`, "\x91\xa1a", long}},
		"options": {func(o *postOptions) {
			o.job.Then, o.job.Else, o.job.Finally, o.job.Unique, o.job.On, o.job.Retries, o.job.Priority = "t", "e", "fin", "<k>", "gpu*", 5, -3
			o.delay.Set("90s")
			o.backoff.Set("300ms")
			o.keep.Set("7d")
			o.timeout.Set("1m")
		}, []string{"f", `{"kind":"raw","then":"t","else":"e","finally":"fin","delay":90,"retries":5,"backoff":0.3,"priority":-3,"unique":"<k>","keep":604800,"timeout":60,"on":"gpu*"}`, ""}},
		"a time": {func(o *postOptions) { o.at, _ = parseTime("2099-01-02T03:04:05.5+01:00", time.Now()) },
			[]string{"f", `{"kind":"raw","at":"2099-01-02T02:04:05.5Z"}`, ""}},
	} {
		var out bytes.Buffer
		o := postFlags(n)
		c.set(o)
		if err := post(o, &out, io.Discard); err != nil || out.String() != "01ID\n" {
			t.Fatalf("%s: printed %q, error %v", name, &out, err)
		}
		if got := <-sent; strings.Join(got, "|") != strings.Join(c.want, "|") {
			t.Errorf("%s: sent %.300q\nwant %.300q", name, got, c.want)
		}
	}
}

// TestPostOrder: many are on their way at once, no more than there may be. The node
// gets them in the order of the items, and ids come out in that order, whatever that
// of the answers is.
func TestPostOrder(t *testing.T) {
	n := newStore(t)
	const items = 10 * maxPosting
	var mu sync.Mutex // guards the variables below
	waiting, most := map[string]chan struct{}{}, 0
	n.offer(t, "post", func(_ context.Context, inv *bus.Invocation) bus.Result {
		words, _ := inv.Words()
		item := words[2][2:]
		ch := make(chan struct{})
		if got := fmt.Sprintf("item%04d", inv.Arrival); got != item {
			t.Errorf("%s came in the place of %s", item, got)
		}
		mu.Lock()
		waiting[item] = ch
		most = max(most, len(waiting))
		if len(waiting) == maxPosting { // all there may be: the last goes first
			for _, ch := range waiting {
				close(ch)
			}
			clear(waiting)
		}
		mu.Unlock()
		<-ch
		return exited("id-" + item + "\n")
	})
	var words, want []string
	for i := range items {
		words = append(words, fmt.Sprintf("item%04d", i))
		want = append(want, "id-"+words[i])
	}
	var out bytes.Buffer
	if err := post(itemsOf(postFlags(n), words...), &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(out.String()); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("printed %q", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if most != maxPosting {
		t.Errorf("%d at once, want %d", most, maxPosting)
	}
}

func TestPostItemsJSON(t *testing.T) {
	n := newStore(t)
	n.offer(t, "post", func(context.Context, *bus.Invocation) bus.Result { return exited("01\n") })
	o := itemsOf(postFlags(n), "a<", "\xff", "c")
	o.json, o.items.Per, o.job.Batch = true, 2, "b"
	var out bytes.Buffer
	if err := post(o, &out, io.Discard); err != nil || out.String() != `{"id":"01","item":["YTw=","/w=="],"item_encoding":"base64","batch":"b"}`+"\n"+`{"id":"01","item":["c"],"batch":"b"}`+"\n" {
		t.Errorf("printed %s, error %v", &out, err)
	}
	o = itemsOf(postFlags(n), "")
	o.json, o.job.Batch = true, "b"
	out.Reset()
	if err := post(o, &out, io.Discard); err != nil || out.String() != `{"id":"01","item":"","batch":"b"}`+"\n" {
		t.Errorf("printed %s, error %v", &out, err)
	}
}

// TestPostRefused: the first item that is not posted ends it. Jobs of later
// items that were posted are reported.
func TestPostRefused(t *testing.T) {
	n := newStore(t)
	var all sync.WaitGroup
	all.Add(5)
	n.offer(t, "post", func(_ context.Context, inv *bus.Invocation) bus.Result {
		words, _ := inv.Words()
		all.Done()
		all.Wait() // all are on their way
		if item := words[2][2:]; item == "c" || item == "d" {
			return refusal(75, "store_full", "the store is full")
		}
		return exited("id-" + words[2][2:] + "\n")
	})
	var out, errs bytes.Buffer
	refused := itemsOf(postFlags(n), "a", "b", "c", "d", "e")
	refused.job.Batch = "b"
	err := post(refused, &out, &errs)
	if status := report(&errs, err); status != args.StatusOf(args.CodeBusy) || out.String() != "id-a\nid-b\nid-e\n" {
		t.Errorf("status %d, printed %q", status, &out)
	}
	if want := "fbus: item 3, c, was not posted: the store is full; 3 jobs were posted, of which 1 for later items\nfbus: hint: "; !strings.HasPrefix(errs.String(), want) {
		t.Errorf("said %q", &errs)
	}
	// What can not be sent is refused here.
	n.offer(t, "free", func(context.Context, *bus.Invocation) bus.Result { return exited("01\n") })
	o := itemsOf(postFlags(n), "[1]", "[2", "[3]")
	o.items.Each, o.function = "json", "free"
	err = post(o, &out, &errs)
	if f := explain(err); f.Code != args.CodeBadInput || !strings.HasPrefix(f.Message, "item 2, [2, was not posted: this is not JSON: line 1, column 3: its end is missing; ") {
		t.Errorf("status %d, said %q", f.Status(), f.Message)
	}
}

// TestPostNodeLost: how many were posted is known, and how many may have been.
func TestPostNodeLost(t *testing.T) {
	n := startStore(t, filepath.Join(t.TempDir(), "bus.sock"))
	under := make(chan struct{}, maxPosting)
	n.offer(t, "post", func(ctx context.Context, inv *bus.Invocation) bus.Result {
		if words, _ := inv.Words(); words[2][2:] == "a" {
			return exited("id-a\n")
		}
		under <- struct{}{}
		<-ctx.Done()
		return exited("")
	})
	pr, pw := io.Pipe() // tells when the first id is printed
	ended := make(chan error, 1)
	go func() { ended <- post(itemsOf(postFlags(n), "a", "b", "c"), pw, io.Discard) }()
	id := make([]byte, 5)
	if _, err := io.ReadFull(pr, id); err != nil || string(id) != "id-a\n" {
		t.Fatalf("printed %q, error %v", id, err)
	}
	<-under
	<-under
	n.stop()
	if f := explain(<-ended); f.Status() != args.StatusOf(args.CodeNoNode) || !strings.HasSuffix(f.Message, "1 job was posted; the last 2 may have been") {
		t.Errorf("status %d, said %q", f.Status(), f.Message)
	}

	gone := make(chan struct{})
	m := startStore(t, filepath.Join(t.TempDir(), "bus.sock"))
	m.offer(t, "post", func(ctx context.Context, _ *bus.Invocation) bus.Result {
		close(gone)
		<-ctx.Done()
		return exited("")
	})
	go func() { ended <- post(postFlags(m), io.Discard, io.Discard) }()
	<-gone
	m.stop()
	if f := explain(<-ended); f.Status() != args.StatusOf(args.CodeNoNode) || !strings.HasSuffix(f.Message, ": the job may have been posted") {
		t.Errorf("status %d, said %q", f.Status(), f.Message)
	}
}

func TestPostUsage(t *testing.T) {
	valid := func() *postOptions {
		o := &postOptions{}
		o.name = "f"
		itemFlags(&o.items)
		return o
	}
	if err := valid().check(); err != nil {
		t.Error(err)
	}
	for want, set := range map[string]func(o *postOptions){
		`invalid function name "-f"`:                 func(o *postOptions) { o.name = "-f" },
		`--then: invalid function name "a b"`:        func(o *postOptions) { o.job.Then = "a b" },
		`--else: invalid function name "."`:          func(o *postOptions) { o.job.Else = "." },
		`--finally: invalid function name "/"`:       func(o *postOptions) { o.job.Finally = "/" },
		"--backoff must be positive":                 func(o *postOptions) { o.backoff.Set("0s") },
		"--keep must be positive":                    func(o *postOptions) { o.keep.Set("0s") },
		"-t must be positive":                        func(o *postOptions) { o.timeout.Set("0s") },
		"--delay and --at exclude each other":        func(o *postOptions) { o.delay.Set("1s"); o.at = time.Now() },
		"--retries must not be negative":             func(o *postOptions) { o.job.Retries = -1 },
		"--priority must be from -100 to 100":        func(o *postOptions) { o.job.Priority = 101 },
		"--unique needs a key":                       func(o *postOptions) { o.hasUnique = true },
		"-d, -i and -n are for one job":              func(o *postOptions) { o.each, o.noStdin = true, true },
		"--each x: must be arg, raw, json or file":   func(o *postOptions) { o.each, o.items.Each = true, "x" },
		"items are given in two ways: as words and":  func(o *postOptions) { o.each, o.items.File, o.args = true, "list", []string{"a"} },
		"arguments are given in two ways: words, -f": func(o *postOptions) { o.hasData, o.args = true, []string{"a"} },
	} {
		o := valid()
		set(o)
		if err := o.check(); err == nil || explain(err).Code != args.CodeUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestParseTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err)
	}
	now := time.Date(2026, 11, 26, 6, 30, 15, 500, berlin)
	day := func(d, h, m, s int) time.Time { return time.Date(2026, 11, d, h, m, s, 0, berlin) }
	for text, want := range map[string]time.Time{
		"2026-11-26T07:00:00+01:00":     day(26, 7, 0, 0),
		"2026-11-26T06:00:00Z":          day(26, 7, 0, 0),
		"2026-11-26t06:00:00z":          day(26, 7, 0, 0),
		"2026-11-26T06:00:00.25Z":       day(26, 7, 0, 0).Add(250 * time.Millisecond),
		"2026-11-26 06:00:00Z":          day(26, 7, 0, 0),
		"2026-11-26T08:00+02:00":        day(26, 7, 0, 0),
		"2026-11-26 07:00":              day(26, 7, 0, 0),
		"2026-11-26T07:00":              day(26, 7, 0, 0),
		"2026-11-26 7:00:09":            day(26, 7, 0, 9),
		"2026-11-27":                    day(27, 0, 0, 0),
		"2026-11-26 06:30":              day(26, 6, 30, 0), // this minute
		"2026-11-26T06:29:30.000+01:00": day(26, 6, 29, 30),
		"07:00":                         day(26, 7, 0, 0),
		"7:00":                          day(26, 7, 0, 0),
		"06:30:16":                      day(26, 6, 30, 16),
		"06:30:15":                      day(27, 6, 30, 15), // it has just been
		"06:30":                         day(27, 6, 30, 0),
		"00:00":                         day(27, 0, 0, 0),
	} {
		if got, err := parseTime(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, error %v, want %v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                     "not a time: ",
		"noon":                 "not a time: ",
		"25:00":                "not a time: ",
		"2026-11-31 07:00":     "not a time: ",
		"2026-11-26 07:00 CET": "not a time: ",
		"1764140400":           "not a time: ",
		"5m":                   "a duration, not a time: --delay 5m",
		"2026-11-26 06:28":     "that was 2m15s ago",
		"2025-11-26T07:00:00Z": "ago",
		"1700-01-01T00:00:00Z": "that was in 1700",
		"2127-01-01":           "more than 100 years away",
	} {
		if got, err := parseTime(text, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, error %v, want %s", text, got, err, want)
		}
	}
	// On the day that has 23 hours no clock shows 02:30.
	spring := time.Date(2027, 3, 27, 12, 0, 0, 0, berlin)
	if got, err := parseTime("2027-03-28 02:30", spring); err == nil || !strings.Contains(err.Error(), "put forward") {
		t.Errorf("%v, error %v", got, err)
	}
	if got, err := parseTime("02:30", spring); err != nil || !got.Equal(time.Date(2027, 3, 29, 2, 30, 0, 0, berlin)) {
		t.Errorf("%v, error %v", got, err)
	}
	// On the day that has 25 hours clocks show 02:30 twice: the first is meant, then the second.
	first := time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC)
	for _, test := range []struct {
		text string
		now  time.Time
		want time.Time
	}{
		{"2026-10-25 02:30", first.Add(-time.Hour), first},
		{"02:30", first.Add(-time.Hour), first},
		{"2026-10-25 02:30", first.Add(30 * time.Minute), first.Add(time.Hour)},
		{"02:30", first.Add(30 * time.Minute), first.Add(time.Hour)},
		{"02:30", first.Add(time.Hour), first.Add(25 * time.Hour)},
		{"2026-10-25 02:00", first.Add(-time.Hour), first.Add(-30 * time.Minute)},
		{"2026-10-25 03:00", first.Add(-time.Hour), first.Add(90 * time.Minute)},
		{"2026-10-25 01:59", first.Add(-time.Hour), first.Add(-31 * time.Minute)},
		{"2026-10-25T02:30:00+01:00", first.Add(-time.Hour), first.Add(time.Hour)},
	} {
		if got, err := parseTime(test.text, test.now.In(berlin)); err != nil || !got.Equal(test.want) {
			t.Errorf("%s at %v: %v, error %v, want %v", test.text, test.now.In(berlin), got, err, test.want.In(berlin))
		}
	}
	// On the day that has 25 hours the next 07:00 is 25 hours away.
	eve := time.Date(2026, 10, 24, 7, 0, 0, 0, berlin)
	if got, err := parseTime("07:00", eve); err != nil || got.Sub(eve) != 25*time.Hour {
		t.Errorf("after %v: %v, error %v", eve, got, err)
	}
}
