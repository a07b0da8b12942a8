package jobs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"fbus/bus/jobs/store"
)

// hostOf is a node whose workers are functions of the test, with any number of slots.
// What is called "never" finds no worker.
type hostOf struct {
	m     *Manager
	serve func(t *Taken, input []byte) (stdout string, status int)
	runs  sync.WaitGroup
}

func (h *hostOf) HoldWorkers([]string) {}

func (h *hostOf) WakeJobs(function string) {
	if function != "never" {
		h.runs.Go(func() { h.run(function) })
	}
}
func (h *hostOf) CancelJob(ID, string, string) {}

func (h *hostOf) JobChanged(ID) {}

func (h *hostOf) MayRun(*Poster, string) error { return nil }

func (h *hostOf) run(function string) {
	for {
		t, err := h.m.Take(function, "box", "1", nil)
		if err != nil || t == nil {
			return
		}
		h.m.Started(t, "box", "c-1")
		input := t.Input
		if t.Rest != nil {
			rest, _ := io.ReadAll(t.Rest)
			input = append(input, rest...)
		}
		out, status := h.serve(t, input)
		io.WriteString(t.Stdout, out)
		h.m.Ended(t, End{Source: "program", Status: status, Code: "exit"})
	}
}

// openWith opens the store of a directory and runs what is in it.
func openWith(t testing.TB, c Config, serve func(t *Taken, input []byte) (string, int)) (*Manager, *hostOf) {
	t.Helper()
	m, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	h := &hostOf{m: m, serve: serve}
	if err := m.Start(h); err != nil {
		t.Fatal(err)
	}
	return m, h
}

// put is a post of the test's.
func put(t testing.TB, m *Manager, function, input string, o Options) ID {
	t.Helper()
	id, err := m.Post(&Post{Function: function, Poster: Poster{Caller: "uid:0"}, Options: o, Input: strings.NewReader(input)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

const dbName = "jobs.db"

// said collects warnings.
type said struct {
	mu    sync.Mutex // protects lines
	lines []string
}

func (s *said) warn(format string, args ...any) {
	s.mu.Lock()
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
	s.mu.Unlock()
}

func (s *said) about(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.lines, func(l string) bool { return strings.Contains(l, text) })
}

func shout(_ *Taken, input []byte) (string, int) { return strings.ToUpper(string(input)), 0 }

// sampleStore fills a store with jobs in every state, and says what their results,
// or inputs, are.
func sampleStore(t *testing.T, dir string) (results, waiting map[ID]string) {
	m, _ := openWith(t, Config{Dir: dir}, func(t *Taken, input []byte) (string, int) {
		if t.Function == "fail" {
			return "no", 3
		}
		return shout(t, input)
	})
	results, waiting = map[ID]string{}, map[ID]string{}
	long := strings.Repeat("long ", 20000)
	for i := range 12 {
		text := fmt.Sprintf("small %d", i)
		if i%4 == 3 {
			text = fmt.Sprintf("%s%d", long, i)
		}
		results[put(t, m, "shout", text, Options{Batch: "ended"})] = strings.ToUpper(text)
		waiting[put(t, m, "never", text, Options{Priority: i % 3, Unique: fmt.Sprint(i), Batch: "waiting", Item: "item"})] = text
		waiting[put(t, m, "shout", text, Options{Delay: 3600})] = text
		results[put(t, m, "fail", text, Options{})] = "no"
	}
	for id := range results {
		if _, err := m.Wait(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	m.Close()
	return results, waiting
}

// damaged runs a store whose file, or a file of its spool, was changed.
type damaged struct {
	t                *testing.T
	dir              string // undamaged
	results, waiting map[ID]string
	pages            []page
}

// page is a page of the undamaged file.
type page struct {
	kind     string // of the tree: the bucket and "branch" or "leaf"; else meta, freelist or free
	at, size int
}

func newDamaged(t *testing.T) *damaged {
	d := &damaged{t: t, dir: filepath.Join(t.TempDir(), "jobs")}
	d.results, d.waiting = sampleStore(t, d.dir)
	db, err := bolt.Open(filepath.Join(d.dir, dbName), 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(b *bolt.Tx) error {
		size := db.Info().PageSize
		for id := 0; id < int(b.Size())/size; {
			info, err := b.Page(id)
			if err != nil {
				return err
			}
			d.pages = append(d.pages, page{info.Type, id * size, (1 + info.OverflowCount) * size})
			id++
			if info.Type != "free" {
				id += info.OverflowCount
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// with checks a copy whose file was changed.
func (d *damaged) with(what, file string, change func(data []byte) []byte) {
	d.t.Helper()
	dir, err := os.MkdirTemp(d.t.TempDir(), "")
	if err != nil {
		d.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "jobs")
	if err := os.CopyFS(copied, os.DirFS(d.dir)); err != nil {
		d.t.Fatal(err)
	}
	path := filepath.Join(copied, file)
	st, err := os.Stat(filepath.Join(d.dir, file))
	if err != nil {
		d.t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(data), 0o600)
	}
	if err == nil {
		err = os.Chtimes(path, st.ModTime(), st.ModTime())
	}
	if err != nil {
		d.t.Fatal(err)
	}
	hangs := time.AfterFunc(time.Minute, func() { panic(what + ": it hangs") })
	defer hangs.Stop()
	checkDamaged(d.t, file+": "+what, copied, d.results, d.waiting)
}

// few is how many of all cases a test takes, at random, without FBUS_SOAK=1; fewer with -short, as
// one goroutine reads a damaged file, and the race detector finds nothing there.
func few[T any](t *testing.T, n int, all []T) []T {
	if testing.Short() {
		n = max(1, n/5)
	}
	if os.Getenv("FBUS_SOAK") == "" && len(all) > n {
		rand.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
		all = all[:n]
	}
	return all
}

// TestTruncatedFile: wherever the file is cut off, each job is as it was, or is reported
// by its id; none is delivered as something else, and the store works.
func TestTruncatedFile(t *testing.T) {
	t.Parallel()
	d := newDamaged(t)
	var ends []int
	for _, p := range d.pages {
		ends = append(ends, p.at, p.at+1, p.at+p.size/2)
	}
	for _, end := range few(t, 10, ends) {
		d.with(fmt.Sprint("cut to ", end), dbName, func(data []byte) []byte { return data[:end] })
	}
}

// TestZeroedPage: the same, whichever page is lost.
func TestZeroedPage(t *testing.T) {
	t.Parallel()
	d := newDamaged(t)
	for _, p := range few(t, 10, d.pages) {
		d.with(fmt.Sprintf("%s page at %d zeroed", p.kind, p.at), dbName, func(data []byte) []byte {
			clear(data[p.at : p.at+p.size])
			return data
		})
	}
}

// TestFlippedBit: the same, whichever bit is flipped: of the header and the first entry
// of each kind of page, and of each kind of record. A soak takes each bit of flags and
// counts, and one of each other byte.
func TestFlippedBit(t *testing.T) {
	t.Parallel()
	d := newDamaged(t)
	flip := func(what string, from int, bits []int, n int) {
		for _, bit := range few(t, n, bits) {
			d.with(fmt.Sprintf("%s, bit %d of byte %d", what, bit%8, from+bit/8), dbName, func(data []byte) []byte {
				data[from+bit/8] ^= 1 << (bit % 8)
				return data
			})
		}
	}
	bits := func(size int) (list []int) { // one of each byte
		for i := range size {
			list = append(list, 8*i+rand.IntN(8))
		}
		return list
	}
	kinds := map[string]int{}
	for _, p := range d.pages {
		if kinds[p.kind]++; kinds[p.kind] < 3 && p.kind != "free" {
			list := bits(16 + 24)
			for bit := 8 * 8; bit < 12*8; bit++ {
				list = append(list, bit)
			}
			flip(p.kind+" page", p.at, list, 3)
		}
	}
	if kinds["branch"] == 0 || kinds["leaf"] == 0 || kinds["freelist"] == 0 || kinds["meta"] == 0 {
		t.Errorf("the file has pages %v", kinds)
	}
	whole, err := os.ReadFile(filepath.Join(d.dir, dbName))
	if err != nil {
		t.Fatal(err)
	}
	list, err := Entries(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	kinds = map[string]int{}
	for _, e := range list {
		// It is where key and value follow each other. Old versions may be there as well.
		entry := append(bytes.Clone(e.Key), e.Value...)
		for at := 0; len(e.Key) >= 10; at += len(entry) {
			i := bytes.Index(whole[at:], entry)
			if i < 0 {
				break
			}
			if at += i; kinds[e.Bucket] < 2 {
				kinds[e.Bucket]++
				flip(e.Bucket+" entry", at, bits(min(len(entry), len(e.Key)+20)), 1)
			}
		}
	}
	for _, bucket := range []string{store.BucketJobs, store.BucketData, store.BucketReady, store.BucketDue, store.BucketEnd, store.BucketDead, store.BucketUnique} {
		if kinds[bucket] == 0 {
			t.Errorf("no entry of the bucket %s was damaged", bucket)
		}
	}
}

// TestLostCount: pages that have lost entries without a trace. The file's time is as
// before, as when the disk has forgotten them.
func TestLostCount(t *testing.T) {
	t.Parallel()
	d := newDamaged(t)
	for _, p := range d.pages {
		if p.kind == "leaf" {
			d.with(fmt.Sprintf("the page at %d has lost two entries", p.at), dbName, func(data []byte) []byte {
				n := binary.NativeEndian.Uint16(data[p.at+10:])
				binary.NativeEndian.PutUint16(data[p.at+10:], max(n, 2)-2)
				return data
			})
		}
	}
}

// TestFreelistCount: a freelist that claims more entries than memory has room for.
func TestFreelistCount(t *testing.T) {
	d := newDamaged(t)
	for _, p := range d.pages {
		if p.kind == "freelist" {
			d.with("a large freelist", dbName, func(data []byte) []byte {
				binary.NativeEndian.PutUint16(data[p.at+10:], 0xFFFF)
				binary.NativeEndian.PutUint64(data[p.at+16:], 1<<40)
				return data
			})
		}
	}
}

// TestDamage: the same of any byte of any file, changed or cut off.
func TestDamage(t *testing.T) {
	t.Parallel()
	d := newDamaged(t)
	var files []string
	filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "lock" && e.Name() != "reserve" {
			rel, _ := filepath.Rel(d.dir, path)
			files = append(files, rel)
		}
		return err
	})
	for range len(few(t, 10, make([]int, 300))) {
		file := files[rand.IntN(len(files))]
		d.with("", file, func(data []byte) []byte {
			if len(data) == 0 {
				return data
			}
			at := rand.IntN(len(data))
			if rand.IntN(3) == 0 {
				t.Logf("%s cut to %d", file, at)
				return data[:at]
			}
			if file == "format" && data[at] == '2' { // with another digit it is refused as another format
				return data[:at]
			}
			t.Logf("%s: bit of byte %d", file, at)
			data[at] ^= 1 << rand.IntN(8)
			return data
		})
	}
}

func checkDamaged(t *testing.T, what, dir string, results, waiting map[ID]string) {
	t.Helper()
	var log said
	m, err := Open(Config{Dir: dir, Warn: log.warn, Volatile: true})
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	h := &hostOf{m: m, serve: func(j *Taken, input []byte) (string, int) {
		t.Errorf("%s: job %s of %s is run: %.40q", what, j.ID, j.Function, input)
		return "", 0
	}}
	if err := m.Start(h); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	defer m.Close()
	lost := 0
	for _, jobs := range []map[ID]string{results, waiting} {
		for id := range jobs {
			j, err := m.Get(id)
			if err != nil || j.Batch == "" {
				continue
			}
			list, err := m.page(t.Context(), &Filter{Batch: j.BatchKey()}, ID{}, 100)
			if err != nil || !slices.ContainsFunc(list, func(o *Job) bool { return o.ID == id }) {
				t.Errorf("%s: %s is not listed in its batch %q: %v", what, id, j.Batch, err)
			}
		}
	}
	for id, want := range results {
		got, err := readResult(m, id)
		switch told := log.about(id.String()); {
		case err == nil && got == want:
		case err == nil:
			t.Errorf("%s: %s gives %.60q", what, id, got)
		case errors.As(err, new(*DamagedError)) || told:
			lost++
		default:
			t.Errorf("%s: %s: %v, and nothing was said of it: %q", what, id, err, log.lines)
		}
	}
	for id, want := range waiting {
		var in io.ReadCloser
		j, err := m.Get(id)
		if err == nil && j.State != Dead {
			j, _, in, err = m.store.Read(id)
		}
		if err == nil && j != nil && j.State != Dead {
			got, _ := io.ReadAll(in)
			in.Close()
			if string(got) != want {
				t.Errorf("%s: %s would be run with %.60q", what, id, got)
			}
			continue
		}
		if in != nil {
			in.Close()
		}
		lost++
		if !errors.As(err, new(*DamagedError)) && !log.about(id.String()) {
			t.Errorf("%s: %s: %v %+v, and nothing was said of it: %q", what, id, err, j, log.lines)
		}
	}
	if id := put(t, m, "never", "new", Options{}); lost == 0 && id == (ID{}) {
		t.Errorf("%s: nothing can be posted", what)
	}
	if lost > 30 && testing.Verbose() {
		t.Logf("%s: %d jobs lost", what, lost)
	}
}

func readResult(m *Manager, id ID) (string, error) {
	j, err := m.Get(id)
	if err != nil {
		return "", err
	}
	if j.Last != nil && j.Last.Code == "damaged" {
		return "", &DamagedError{ID: id, What: j.Last.Message}
	}
	out, stderr, err := m.Result(context.Background(), j)
	if err != nil {
		return "", err
	}
	defer out.Close()
	defer stderr.Close()
	data, err := io.ReadAll(out)
	return string(data), err
}
