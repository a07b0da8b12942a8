package calllog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/calllog"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// warnings collects a log's warnings.
type warnings struct {
	mu   sync.Mutex
	list []string
}

func (w *warnings) warn(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, fmt.Sprintf(format, args...))
}

func (w *warnings) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list)
}

func (w *warnings) count(part string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.list {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}

func open(t testing.TB, o calllog.Options) (*calllog.Log, *warnings) {
	t.Helper()
	w := &warnings{}
	o.Warn = w.warn
	l, err := calllog.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, w
}

func call(function string) *bus.LogEntry {
	return &bus.LogEntry{
		Event: calllog.EventCall, Call: "a-1", Caller: "uid:1000", Function: function, Worker: "here",
		Waited: 0.25, Ran: 1.5, In: 5, Out: 7, Source: "program", Code: "exit",
	}
}

func read(t testing.TB, l *calllog.Log, q calllog.Query) ([]bus.LogEntry, uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	list, next, err := l.Read(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	return list, next
}

// readAll reads all pages.
func readAll(t testing.TB, l *calllog.Log, q calllog.Query) []bus.LogEntry {
	t.Helper()
	var all []bus.LogEntry
	for {
		list, next := read(t, l, q)
		if len(list) == 0 {
			return all
		}
		all = append(all, list...)
		q.After, q.Last = next, 0
	}
}

func TestEntriesComeBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "log")
	l, _ := open(t, calllog.Options{Dir: dir})
	want := *call("wc")
	want.Time = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.FixedZone("", 3600))
	l.Append(&want)
	refused := bus.LogEntry{Event: calllog.EventRefused, From: "10.0.0.5:1234", Code: "revoked", Name: "ci", Serial: "ab"}
	l.Append(&refused)
	list, next := read(t, l, calllog.Query{})
	if len(list) != 2 || next != 2 {
		t.Fatalf("%d entries, next %d", len(list), next)
	}
	want.Seq, want.Time = 1, want.Time.UTC()
	if list[0] != want {
		t.Errorf("got  %+v\nwant %+v", list[0], want)
	}
	refused.Seq, refused.Time = 2, list[1].Time
	if list[1] != refused || time.Since(list[1].Time).Abs() > time.Minute {
		t.Errorf("got  %+v\nwant %+v", list[1], refused)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "log.jsonl"): 0o600, filepath.Join(dir, "lock"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
}

func TestLineIsJSON(t *testing.T) {
	e := call("wc")
	e.Seq, e.Time = 7, time.Unix(1, 5000)
	const want = `{"seq":7,"time":"1970-01-01T00:00:01.000005Z","event":"call","call":"a-1","caller":"uid:1000","function":"wc","worker":"here",` +
		`"waited":0.25,"ran":1.5,"in":5,"out":7,"source":"program","status":0,"code":"exit"}` + "\n"
	if got := string(calllog.AppendLine(nil, e)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestSeqGoesOnAfterRestart(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		l, _ := open(t, calllog.Options{Dir: dir})
		l.Append(call("f"))
		if list, next := read(t, l, calllog.Query{}); len(list) != i+1 || next != uint64(i+1) || list[i].Seq != next {
			t.Fatalf("start %d: %d entries, next %d", i, len(list), next)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTextsAreBoundedAndClean(t *testing.T) {
	l, _ := open(t, calllog.Options{Dir: t.TempDir()})
	e := call(strings.Repeat("é", calllog.MaxText))
	e.Message = "\xff\x1b[31m \"quoted\" \\ \u009b\u2028 end"
	e.Worker = strings.Repeat("\x00", 10*calllog.MaxText)
	e.Waited = -1
	l.Append(e)
	list, _ := read(t, l, calllog.Query{Function: e.Function[:calllog.MaxText]})
	if len(list) != 1 {
		t.Fatal("the entry is missing")
	}
	secret := call("secret")
	secret.Message = "x: -----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----"
	l.Append(secret)
	if shown, _ := read(t, l, calllog.Query{Function: "secret"}); len(shown) != 1 || strings.Contains(shown[0].Message, "MC4") {
		t.Errorf("%+v", shown)
	}
	got := list[0]
	if got.Message != strings.ToValidUTF8(e.Message, "\ufffd") || len(got.Function) > calllog.MaxText || !utf8.ValidString(got.Function) || got.Waited != 0 {
		t.Errorf("got %+v", got)
	}
	line := calllog.AppendLine(nil, &got)
	if len(line) > calllog.MaxLine {
		t.Errorf("a line of %d bytes", len(line))
	}
	for _, r := range string(line[:len(line)-1]) {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			t.Errorf("%q stands in the line", r)
		}
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	o := calllog.Options{Dir: dir, MaxBytes: 4096, Files: 3}
	l, w := open(t, o)
	for range 500 {
		l.Append(call("f"))
	}
	check := func() {
		t.Helper()
		list, next := read(t, l, calllog.Query{})
		if next != 500 || len(list) < 30 || len(list) > 100 {
			t.Fatalf("%d entries, next %d", len(list), next)
		}
		for i, e := range list {
			if e.Seq != uint64(500-len(list)+i+1) {
				t.Fatalf("entry %d of %d has seq %d", i, len(list), e.Seq)
			}
		}
	}
	check()
	names, _ := filepath.Glob(filepath.Join(dir, "log*.jsonl"))
	for _, name := range names {
		if st, _ := os.Stat(name); st.Size() > 4096 {
			t.Errorf("%s has %d bytes", name, st.Size())
		}
	}
	if len(names) != 3 {
		t.Errorf("files: %q", names)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, _ = open(t, o)
	check()
	l.Close()
	if len(w.all()) > 0 {
		t.Errorf("warnings: %q", w.all())
	}
}

func TestQueries(t *testing.T) {
	l, _ := open(t, calllog.Options{Dir: t.TempDir(), MaxBytes: 16 << 10, Files: 100})
	for i := range 3000 {
		e := call([]string{"resize", "wc", "resize.big"}[i%3])
		if i%10 == 0 {
			e.Event = calllog.EventRefused
		}
		e.Caller = fmt.Sprintf("ticket:t%d", i%7)
		l.Append(e)
	}
	seqs := func(q calllog.Query) (s []uint64) {
		for _, e := range readAll(t, l, q) {
			s = append(s, e.Seq)
		}
		return s
	}
	for _, c := range []struct {
		q     calllog.Query
		n     int
		first uint64
	}{
		{calllog.Query{}, 3000, 1},
		{calllog.Query{After: 2990}, 10, 2991},
		{calllog.Query{After: 1234}, 1766, 1235},
		{calllog.Query{After: 3000}, 0, 0},
		{calllog.Query{Last: 4}, 4, 2997},
		{calllog.Query{Last: 2000}, 2000, 1001},
		{calllog.Query{Last: 5000}, 3000, 1},
		{calllog.Query{Last: 5, After: 2998}, 2, 2999},
		{calllog.Query{Function: "wc"}, 1000, 2},
		{calllog.Query{Function: "wc", Last: 2}, 2, 2996},
		{calllog.Query{Function: "resize*"}, 2000, 1},
		{calllog.Query{Function: "resiz"}, 0, 0},
		{calllog.Query{Event: "refused"}, 300, 1},
		{calllog.Query{Caller: "ticket:t3", Event: "call", Function: "resize", Last: 1}, 1, 2986 - 21*3},
	} {
		got := seqs(c.q)
		if c.q.Caller != "" && len(got) == 1 {
			c.first = got[0] // its number does not matter here
		}
		if len(got) != c.n || c.n > 0 && got[0] != c.first {
			t.Errorf("%+v: %d entries, the first %v, want %d from %d", c.q, len(got), got[:min(1, len(got))], c.n, c.first)
		}
		for i := 1; i < len(got); i++ {
			if got[i] <= got[i-1] {
				t.Fatalf("%+v: %d after %d", c.q, got[i], got[i-1])
			}
		}
	}
	if _, _, err := l.Read(context.Background(), calllog.Query{Function: "[a"}); err == nil {
		t.Error("a malformed glob is taken")
	}
}

func TestWait(t *testing.T) {
	l, _ := open(t, calllog.Options{Dir: t.TempDir()})
	l.Append(call("other"))
	type answer struct {
		list []bus.LogEntry
		next uint64
	}
	came := make(chan answer)
	go func() { // ends with the entry
		list, next := read(t, l, calllog.Query{After: 1, Function: "mine", Wait: time.Hour})
		came <- answer{list, next}
	}()
	l.Append(call("other"))
	l.Append(call("mine"))
	if a := <-came; len(a.list) != 1 || a.next != 3 || a.list[0].Seq != 3 {
		t.Errorf("got %+v", a)
	}
	if list, next := read(t, l, calllog.Query{After: 3, Wait: time.Millisecond}); len(list) != 0 || next != 3 {
		t.Errorf("got %v, next %d", list, next)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := l.Read(ctx, calllog.Query{After: 3, Wait: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// A log that has begun again reports it at once.
	if list, next := read(t, l, calllog.Query{After: 99, Wait: time.Hour}); len(list) != 0 || next != 3 {
		t.Errorf("got %v, next %d", list, next)
	}
	ended := make(chan error)
	go func() { // ends with the journal
		_, _, err := l.Read(context.Background(), calllog.Query{After: 3, Wait: time.Hour})
		ended <- err
	}()
	l.Close()
	if err := <-ended; !errors.Is(err, calllog.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, calllog.Options{Dir: dir})
	if _, err := calllog.Open(calllog.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("the second: %v", err)
	}
	l.Close()
	open(t, calllog.Options{Dir: dir})
}

// TestFullDisk checks that entries lost on a full disk are counted once the disk has
// room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	l, w := open(t, calllog.Options{Dir: dir})
	var full atomic.Bool
	l.FailWrites(func() error {
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	})
	l.Append(call("before"))
	read(t, l, calllog.Query{})
	full.Store(true)
	const n = 5000
	for range n {
		l.Append(call("f"))
		l.Append(&bus.LogEntry{Event: calllog.EventInvited})
	}
	read(t, l, calllog.Query{})
	if w.count("no space left") != 1 {
		t.Errorf("warnings: %q", w.all())
	}
	full.Store(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if w.count("entries are missing") != 1 {
		t.Errorf("warnings: %q", w.all())
	}
	l, _ = open(t, calllog.Options{Dir: dir})
	l.Append(call("after"))
	all := readAll(t, l, calllog.Query{})
	var dropped uint64
	for _, e := range all {
		dropped += e.Dropped
	}
	if first, last := all[0], all[len(all)-1]; first.Function != "before" || last.Function != "after" || int(dropped)+len(all)-3 != 2*n {
		t.Errorf("%d entries and %d dropped, from %+v to %+v", len(all), dropped, first, last)
	}
}

func TestDiskStaysFull(t *testing.T) {
	l, _ := open(t, calllog.Options{Dir: t.TempDir()})
	l.FailWrites(func() error { return syscall.EIO })
	l.Append(call("f"))
	if err := l.Close(); err == nil || !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "1 entries") {
		t.Errorf("close: %v", err)
	}
}

// TestTooFast stops the writer, so that the queue fills up.
func TestTooFast(t *testing.T) {
	l, w := open(t, calllog.Options{Dir: t.TempDir()})
	held, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	l.FailWrites(func() error {
		once.Do(func() { close(held) })
		<-free
		return nil
	})
	l.Append(call("f"))
	<-held
	for range calllog.MaxQueue + 100 {
		l.Append(call("f"))
	}
	close(free)
	list := readAll(t, l, calllog.Query{Event: calllog.EventDropped})
	if len(list) != 1 || list[0].Dropped != 100 || list[0].Seq != calllog.MaxQueue+2 {
		t.Errorf("got %+v", list)
	}
	if w.count("100 entries are missing") != 1 {
		t.Errorf("warnings: %q", w.all())
	}
}

// TestRelayedQueries: entries of a relay's callers are selected by their own name, or by the relay's.
func TestRelayedQueries(t *testing.T) {
	l, _ := open(t, calllog.Options{Dir: t.TempDir()})
	for _, caller := range []string{"ticket:gw", "ticket:gw/alice", `ticket:gw/ticket:a/"bob"`, "ticket:gw2", "uid:0/ticket:gw", "ticket:gw/token:ci", "ticket:b/@a/uid:0/token:ci", "ticket:c/token:cd/mcp:x"} {
		e := call("f")
		e.Caller = caller
		l.Append(e)
	}
	for query, want := range map[string]string{
		"token:ci": "6 7", "token:*": "6 7 8", "token:c": "", "token:cd": "8", "ticket:c/token:cd": "8", "ticket:c/*/mcp:x": "8", "mcp:x": "",
		"ticket:gw": "1 2 3 6", "ticket:gw/alice": "2", "ticket:gw/*": "2 6", "ticket:*": "1 2 3 4 6 7 8", "alice": "", `ticket:gw/*/"bob"`: "3", "uid:0": "5",
	} {
		var got []string
		for _, e := range readAll(t, l, calllog.Query{Caller: query}) {
			got = append(got, fmt.Sprint(e.Seq))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s, not %s", query, s, want)
		}
	}
}

// TestRelayFolds: refusals of a relay's callers are counted as those of one caller, however many names the
// relay invents. Others have entries of their own.
func TestRelayFolds(t *testing.T) {
	l, _ := open(t, calllog.Options{Dir: t.TempDir()})
	for i := range 2000 {
		l.Append(&bus.LogEntry{Event: calllog.EventRefused, Caller: fmt.Sprint("ticket:gw/", i), Code: "denied"})
	}
	l.Append(&bus.LogEntry{Event: calllog.EventRefused, Caller: "ticket:other", Code: "denied"})
	if got := readAll(t, l, calllog.Query{}); len(got) != 51 || got[50].Caller != "ticket:other" {
		t.Errorf("%d entries, the last of %s", len(got), got[len(got)-1].Caller)
	}
}

// TestReadsBesideWrites reads and rotates concurrently. The result has gaps only at its
// start, and no duplicates.
func TestReadsBesideWrites(t *testing.T) {
	l, w := open(t, calllog.Options{Dir: t.TempDir(), MaxBytes: 32 << 10, Files: 4})
	const n = 20000
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for after := uint64(0); after < n; {
				list, next := read(t, l, calllog.Query{After: after, Wait: time.Minute})
				for i := range list {
					if list[i].Seq <= after || i > 0 && list[i].Seq != list[i-1].Seq+1 {
						t.Errorf("seq %d after %d", list[i].Seq, after)
						return
					}
				}
				after = next
			}
		})
	}
	for i := range n {
		l.Append(call("f"))
		if i%200 == 199 {
			read(t, l, calllog.Query{Last: 3})
		}
	}
	wg.Wait()
	if len(w.all()) > 0 {
		t.Errorf("warnings: %q", w.all())
	}
}

// TestCallsKeepSecurityEvents checks that a flood of calls evicts only calls.
func TestCallsKeepSecurityEvents(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, calllog.Options{Dir: dir, MaxBytes: 4096, Files: 2})
	for i := range 2000 {
		if i%500 == 250 {
			l.Append(&bus.LogEntry{Event: calllog.EventRefused, Caller: "ticket:x"})
		}
		l.Append(call("f"))
	}
	list := readAll(t, l, calllog.Query{})
	seqs := []uint64{}
	for i, e := range list {
		if e.Event == calllog.EventRefused {
			seqs = append(seqs, e.Seq)
		}
		if i > 0 && e.Seq <= list[i-1].Seq {
			t.Fatalf("seq %d after %d", e.Seq, list[i-1].Seq)
		}
	}
	if want := []uint64{251, 752, 1253, 1754}; !slices.Equal(seqs, want) || len(list) > 100 {
		t.Errorf("%d entries, refused %v, want %v", len(list), seqs, want)
	}
	if got := readAll(t, l, calllog.Query{Event: "refused", Last: 2}); len(got) != 2 || got[0].Seq != 1253 {
		t.Errorf("the last two: %+v", got)
	}
	if got := readAll(t, l, calllog.Query{Caller: "ticket:x", After: 752}); len(got) != 2 || got[0].Seq != 1253 {
		t.Errorf("after 752: %+v", got)
	}
}

// TestFloodsFold checks that a caller's floods of calls that never ran, and of refusals, are
// counted, and evict nothing else.
func TestFloodsFold(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, calllog.Options{Dir: dir, MaxBytes: 64 << 10, Files: 2})
	l.Append(call("real"))
	l.Append(&bus.LogEntry{Event: calllog.EventInvited, Name: "ci"})
	l.Append(&bus.LogEntry{Event: calllog.EventRevoked, Name: "ci"})
	const n = 150000
	for i := range n {
		l.Append(&bus.LogEntry{Event: calllog.EventCall, Caller: "ticket:bad", Function: "nosuch", Source: "fbus", Code: "no_function", Status: 69})
		if i%10 == 0 {
			l.Append(&bus.LogEntry{Event: calllog.EventRefused, Caller: "ticket:bad", Code: "denied"})
		}
		if i%1000 == 0 { // one name after the other does not help
			l.Append(&bus.LogEntry{Event: calllog.EventCall, Caller: "ticket:bad", Function: fmt.Sprint("x", i), Source: "fbus", Code: "no_function", Status: 69})
			l.Append(call("real"))
		}
	}
	l.Append(&bus.LogEntry{Event: calllog.EventRefused, Caller: "ticket:other", Code: "denied"})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, w := open(t, calllog.Options{Dir: dir, MaxBytes: 64 << 10, Files: 2})
	single, more := map[string]int{}, map[string]uint64{}
	for _, e := range readAll(t, l, calllog.Query{}) {
		what := strings.Join(strings.Fields(fmt.Sprint(e.Event, " ", e.Caller, " ", e.Function, " ", e.Code)), " ")
		if single[what]++; e.More > 0 {
			more[what] += e.More
			if e.Message != fmt.Sprintf("and %d more", e.More) {
				t.Errorf("message %q", e.Message)
			}
		}
	}
	for what, want := range map[string]int{"invited": 1, "revoked": 1, "refused ticket:other denied": 1, "call uid:1000 real exit": n/1000 + 1} {
		if single[what] != want {
			t.Errorf("%s: %d entries, want %d", what, single[what], want)
		}
	}
	if n := more["call ticket:bad nosuch no_function"] + more["refused ticket:bad denied"]; n < 1.1*150000-100 || len(single) > 20 {
		t.Errorf("%d were counted, in entries %v", n, single)
	}
	if len(w.all()) > 0 {
		t.Errorf("warnings: %q", w.all())
	}
}

// TestFoldedCount checks that the count comes while the log is open, and in the copy.
func TestFoldedCount(t *testing.T) {
	defer calllog.SetFoldTime(20 * time.Millisecond)()
	path := filepath.Join(t.TempDir(), "copy")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	l, _ := open(t, calllog.Options{Dir: t.TempDir(), Copy: f})
	for range 1000 {
		l.Append(&bus.LogEntry{Event: calllog.EventCall, Caller: "uid:7", Function: "f", Source: "fbus", Code: "busy", Status: 75})
	}
	var sum uint64
	for after := uint64(0); sum < 1000; {
		list, next := read(t, l, calllog.Query{After: after, Wait: time.Minute})
		for _, e := range list {
			sum += max(1, e.More)
		}
		after = next
	}
	l.Close()
	data, err := os.ReadFile(path)
	if err != nil || sum != 1000 || !bytes.Contains(data, []byte(`"status":75,"code":"busy","message":"and 950 more","more":950}`)) {
		t.Errorf("%d entries, copied %s", sum, data)
	}
}

// TestCopy checks that a copy has a line for each call, with every field that --log
// promises, in the file that its path leads to.
func TestCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calls.jsonl")
	f, err := calllog.OpenFile(path, func() (*os.File, error) {
		return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	l, w := open(t, calllog.Options{Copy: f})
	lines := func(path string, n int) []byte {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			data, _ := os.ReadFile(path)
			if bytes.Count(data, []byte{'\n'}) == n {
				return data
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s has never %d lines: %s", path, n, data)
			}
		}
	}
	l.Append(&bus.LogEntry{Event: calllog.EventRefused})
	l.Append(&bus.LogEntry{Event: calllog.EventCall, Call: "a-1", Function: "f", Time: time.Unix(1, 0), Source: "fbus", Status: 69, Code: "no_function"})
	const want = `{"seq":2,"time":"1970-01-01T00:00:01.000000Z","event":"call","id":"a-1","caller":"","function":"f","worker":"",` +
		`"waited":0,"ran":0,"in":0,"out":0,"source":"fbus","status":69,"code":"no_function"}` + "\n"
	if got := string(lines(path, 1)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.Append(call("f"))
	lines(path, 1)
	lines(path+".1", 1)
	os.Remove(path)
	l.Append(call("f"))
	lines(path, 1)
	if len(w.all()) > 0 {
		t.Errorf("warnings: %q", w.all())
	}
}

// TestCopyHangs checks that a stuck reader of --log delays neither the log nor its end.
func TestCopyHangs(t *testing.T) {
	r, pipe := io.Pipe()
	l, w := open(t, calllog.Options{Dir: t.TempDir(), Copy: pipe})
	e := call("f")
	e.Message = strings.Repeat("m", 200)
	const n = 20000
	for i := range n {
		l.Append(e)
		if i%1000 == 0 {
			read(t, l, calllog.Query{Last: 1})
		}
	}
	if got, _ := read(t, l, calllog.Query{Last: 1}); len(got) != 1 || got[0].Seq != n {
		t.Errorf("the last entry: %+v", got)
	}
	go func() { // ends with the pipe
		time.Sleep(10 * time.Millisecond)
		io.Copy(io.Discard, r)
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if w.count("--log is too slow") == 0 {
		t.Errorf("warnings: %q", w.all())
	}
}
