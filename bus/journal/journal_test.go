package journal_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"fbus/bus/journal"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// warnings collects what a journal says.
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

func open(t testing.TB, o journal.Options) (*journal.Journal, *warnings) {
	t.Helper()
	w := &warnings{}
	o.Warn = w.warn
	j, err := journal.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j, w
}

func call(function string) *journal.Entry {
	return &journal.Entry{
		Event: journal.EventCall, Call: "a-1", Caller: "uid:1000", Function: function, Worker: "here",
		Waited: 0.25, Ran: 1.5, In: 5, Out: 7, Source: "program", Code: "exit",
	}
}

func read(t testing.TB, j *journal.Journal, q journal.Query) ([]journal.Entry, uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	list, next, err := j.Read(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	return list, next
}

// readAll reads page by page.
func readAll(t testing.TB, j *journal.Journal, q journal.Query) []journal.Entry {
	t.Helper()
	var all []journal.Entry
	for {
		list, next := read(t, j, q)
		if len(list) == 0 {
			return all
		}
		all = append(all, list...)
		q.After, q.Last = next, 0
	}
}

func TestEntriesComeBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "log")
	j, _ := open(t, journal.Options{Dir: dir})
	want := *call("wc")
	want.Time = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.FixedZone("", 3600))
	j.Append(&want)
	refused := journal.Entry{Event: journal.EventRefused, From: "10.0.0.5:1234", Code: "revoked", Name: "ci", Serial: "ab"}
	j.Append(&refused)
	list, next := read(t, j, journal.Query{})
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
	if got := string(journal.AppendLine(nil, e)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestSeqGoesOnAfterRestart(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		j, _ := open(t, journal.Options{Dir: dir})
		j.Append(call("f"))
		if list, next := read(t, j, journal.Query{}); len(list) != i+1 || next != uint64(i+1) || list[i].Seq != next {
			t.Fatalf("start %d: %d entries, next %d", i, len(list), next)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTextsAreBoundedAndClean(t *testing.T) {
	j, _ := open(t, journal.Options{Dir: t.TempDir()})
	e := call(strings.Repeat("é", journal.MaxText))
	e.Message = "\xff\x1b[31m \"quoted\" \\ \u009b\u2028 end"
	e.Worker = strings.Repeat("\x00", 10*journal.MaxText)
	e.Waited = -1
	j.Append(e)
	list, _ := read(t, j, journal.Query{Function: e.Function[:journal.MaxText]})
	if len(list) != 1 {
		t.Fatal("the entry is missing")
	}
	got := list[0]
	if got.Message != strings.ToValidUTF8(e.Message, "\ufffd") || len(got.Function) > journal.MaxText || !utf8.ValidString(got.Function) || got.Waited != 0 {
		t.Errorf("got %+v", got)
	}
	line := journal.AppendLine(nil, &got)
	if len(line) > journal.MaxLine {
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
	o := journal.Options{Dir: dir, MaxBytes: 4096, Files: 3}
	j, w := open(t, o)
	for range 500 {
		j.Append(call("f"))
	}
	check := func() {
		t.Helper()
		list, next := read(t, j, journal.Query{})
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
	names, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	for _, name := range names {
		if st, _ := os.Stat(name); st.Size() > 4096 {
			t.Errorf("%s has %d bytes", name, st.Size())
		}
	}
	if len(names) != 3 {
		t.Errorf("files: %q", names)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, _ = open(t, o)
	check()
	j.Close()
	o.Files = 2
	open(t, o)
	if names, _ := filepath.Glob(filepath.Join(dir, "*.jsonl")); len(names) != 2 {
		t.Errorf("files: %q", names)
	}
	if len(w.all()) > 0 {
		t.Errorf("warnings: %q", w.all())
	}
}

func TestQueries(t *testing.T) {
	j, _ := open(t, journal.Options{Dir: t.TempDir(), MaxBytes: 16 << 10, Files: 100})
	for i := range 3000 {
		e := call([]string{"resize", "wc", "resize.big"}[i%3])
		if i%10 == 0 {
			e.Event = journal.EventRefused
		}
		e.Caller = fmt.Sprintf("ticket:t%d", i%7)
		j.Append(e)
	}
	seqs := func(q journal.Query) (s []uint64) {
		for _, e := range readAll(t, j, q) {
			s = append(s, e.Seq)
		}
		return s
	}
	for _, c := range []struct {
		q     journal.Query
		n     int
		first uint64
	}{
		{journal.Query{}, 3000, 1},
		{journal.Query{After: 2990}, 10, 2991},
		{journal.Query{After: 1234}, 1766, 1235},
		{journal.Query{After: 3000}, 0, 0},
		{journal.Query{Last: 4}, 4, 2997},
		{journal.Query{Last: 2000}, 2000, 1001},
		{journal.Query{Last: 5000}, 3000, 1},
		{journal.Query{Last: 5, After: 2998}, 2, 2999},
		{journal.Query{Function: "wc"}, 1000, 2},
		{journal.Query{Function: "wc", Last: 2}, 2, 2996},
		{journal.Query{Function: "resize*"}, 2000, 1},
		{journal.Query{Function: "resiz"}, 0, 0},
		{journal.Query{Event: "refused"}, 300, 1},
		{journal.Query{Caller: "ticket:t3", Event: "call", Function: "resize", Last: 1}, 1, 2986 - 21*3},
		{journal.Query{Max: 7, MaxBytes: 1}, 3000, 1},
	} {
		got := seqs(c.q)
		if c.q.Caller != "" && len(got) == 1 {
			c.first = got[0] // which one it is, is for the fields
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
	if _, _, err := j.Read(context.Background(), journal.Query{Function: "[a"}); err == nil {
		t.Error("a malformed glob is taken")
	}
}

func TestWait(t *testing.T) {
	j, _ := open(t, journal.Options{Dir: t.TempDir()})
	j.Append(call("other"))
	type answer struct {
		list []journal.Entry
		next uint64
	}
	came := make(chan answer)
	go func() { // ends with the entry
		list, next := read(t, j, journal.Query{After: 1, Function: "mine", Wait: time.Hour})
		came <- answer{list, next}
	}()
	j.Append(call("other"))
	j.Append(call("mine"))
	if a := <-came; len(a.list) != 1 || a.next != 3 || a.list[0].Seq != 3 {
		t.Errorf("got %+v", a)
	}
	if list, next := read(t, j, journal.Query{After: 3, Wait: time.Millisecond}); len(list) != 0 || next != 3 {
		t.Errorf("got %v, next %d", list, next)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := j.Read(ctx, journal.Query{After: 3, Wait: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// A journal that has begun anew says so at once.
	if list, next := read(t, j, journal.Query{After: 99, Wait: time.Hour}); len(list) != 0 || next != 3 {
		t.Errorf("got %v, next %d", list, next)
	}
	ended := make(chan error)
	go func() { // ends with the journal
		_, _, err := j.Read(context.Background(), journal.Query{After: 3, Wait: time.Hour})
		ended <- err
	}()
	j.Close()
	if err := <-ended; !errors.Is(err, journal.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, journal.Options{Dir: dir})
	if _, err := journal.Open(journal.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("the second: %v", err)
	}
	j.Close()
	open(t, journal.Options{Dir: dir})
}

func TestUnsafePlacesAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"symbolic link": func(dir string) error { return os.Symlink("/dev/null", filepath.Join(dir, "log.jsonl")) },
		"lets others":   func(dir string) error { return os.Chmod(dir, 0o777) },
		"mode 0666": func(dir string) error {
			os.WriteFile(filepath.Join(dir, "log.1.jsonl"), nil, 0o600)
			return os.Chmod(filepath.Join(dir, "log.1.jsonl"), 0o666)
		},
		"no regular file": func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "log.jsonl"), 0o600) },
		"lock":            func(dir string) error { return os.Symlink("elsewhere", filepath.Join(dir, "lock")) },
	} {
		dir := t.TempDir()
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := journal.Open(journal.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), name) || !strings.HasPrefix(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	os.Symlink(dir, link)
	if _, err := journal.Open(journal.Options{Dir: link}); err == nil {
		t.Error("a link is taken for the directory")
	}
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	j, w := open(t, journal.Options{Dir: dir})
	var mu sync.Mutex
	full := true
	j.FailWrites(func() error {
		mu.Lock()
		defer mu.Unlock()
		if full {
			return syscall.ENOSPC
		}
		return nil
	})
	j.Append(call("f"))
	read(t, j, journal.Query{})
	e := call("f")
	e.Message = strings.Repeat("m", 200)
	const n = 5000
	for range n { // more than is kept
		j.Append(e)
	}
	list := readAll(t, j, journal.Query{Last: 10})
	if len(list) != 10 || list[9].Seq != n+1 {
		t.Fatalf("%d entries while the disk is full", len(list))
	}
	if w.count("no space left") != 1 {
		t.Errorf("warnings: %q", w.all())
	}
	mu.Lock()
	full = false
	mu.Unlock()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if w.count("entries are missing") != 1 {
		t.Errorf("warnings: %q", w.all())
	}
	j, w = open(t, journal.Options{Dir: dir})
	all := readAll(t, j, journal.Query{})
	if all[0].Event != journal.EventDropped || int(all[0].Dropped)+len(all)-1 != n+1 || all[0].Seq+1 != all[1].Seq {
		t.Errorf("%d entries, the first %+v", len(all), all[0])
	}
	if len(w.all()) > 0 {
		t.Errorf("warnings: %q", w.all())
	}
}

func TestDiskStaysFull(t *testing.T) {
	j, _ := open(t, journal.Options{Dir: t.TempDir()})
	j.FailWrites(func() error { return syscall.EIO })
	j.Append(call("f"))
	if err := j.Close(); err == nil || !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "1 entries") {
		t.Errorf("close: %v", err)
	}
}

// TestTooFast stops the writer, so that the queue fills up.
func TestTooFast(t *testing.T) {
	j, w := open(t, journal.Options{Dir: t.TempDir()})
	held, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	j.FailWrites(func() error {
		once.Do(func() { close(held) })
		<-free
		return nil
	})
	j.Append(call("f"))
	<-held
	for range journal.MaxQueue + 100 {
		j.Append(call("f"))
	}
	close(free)
	list := readAll(t, j, journal.Query{Event: journal.EventDropped})
	if len(list) != 1 || list[0].Dropped != 100 || list[0].Seq != journal.MaxQueue+2 {
		t.Errorf("got %+v", list)
	}
	if w.count("100 entries are missing") != 1 {
		t.Errorf("warnings: %q", w.all())
	}
}

// TestReadsBesideWrites reads and rotates at once: what is read has no gap but at
// its start, and nothing comes twice.
func TestReadsBesideWrites(t *testing.T) {
	j, w := open(t, journal.Options{Dir: t.TempDir(), MaxBytes: 32 << 10, Files: 4})
	const n = 20000
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for after := uint64(0); after < n; {
				list, next := read(t, j, journal.Query{After: after, Wait: time.Minute})
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
		j.Append(call("f"))
		if i%200 == 199 {
			read(t, j, journal.Query{Last: 3})
		}
	}
	wg.Wait()
	if len(w.all()) > 0 {
		t.Errorf("warnings: %q", w.all())
	}
}
