package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
)

// hostOf is a node whose workers are functions of the test. What is called "never"
// finds no worker.
type hostOf struct {
	mu    sync.Mutex // protects ran
	ran   []string   // ids, in their order
	m     *Manager
	serve func(req *bus.Request, input []byte) (stdout string, end bus.Result)
}

func (h *hostOf) host() Host {
	return Host{
		Call: h.call, Recall: func(string) bool { return false },
		May:     func(*Poster, string) error { return nil },
		Offered: func(name, _ string) bool { return name != "never" },
	}
}

func (h *hostOf) call(ctx context.Context, req *bus.Request) (bus.Result, error) {
	if req.Function == "never" {
		<-ctx.Done()
		return bus.Result{}, context.Cause(ctx)
	}
	h.m.Started(req.Posted.Job, "box", "c-1")
	var input []byte
	if req.Input != nil {
		input, _ = io.ReadAll(req.Input)
	}
	h.mu.Lock()
	h.ran = append(h.ran, req.Posted.Job)
	h.mu.Unlock()
	out, end := h.serve(req, input)
	if _, err := io.WriteString(req.Stdout, out); err != nil {
		return end, err
	}
	end.Worker = "box"
	if end.Status != 0 {
		return end, &bus.ExitError{Result: end}
	}
	return end, nil
}

func exit(status int) bus.Result { return bus.Result{Code: "exit", Status: status} }

// openWith opens the store of a directory and runs what is in it.
func openWith(t testing.TB, c Config, serve func(req *bus.Request, input []byte) (string, bus.Result)) (*Manager, *hostOf) {
	t.Helper()
	m, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	h := &hostOf{m: m, serve: serve}
	if err := m.Start(h.host()); err != nil {
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

func shout(_ *bus.Request, input []byte) (string, bus.Result) {
	return strings.ToUpper(string(input)), exit(0)
}

// sampleStore fills a store with jobs in every state, and says what their results,
// or inputs, are.
func sampleStore(t *testing.T, dir string) (results, waiting map[ID]string) {
	m, _ := openWith(t, Config{Dir: dir}, func(req *bus.Request, input []byte) (string, bus.Result) {
		if req.Function == "fail" {
			return "no", exit(3)
		}
		return shout(req, input)
	})
	results, waiting = map[ID]string{}, map[ID]string{}
	long := strings.Repeat("long ", 20000)
	for i := range 12 {
		text := fmt.Sprintf("small %d", i)
		if i%4 == 3 {
			text = fmt.Sprintf("%s%d", long, i)
		}
		results[put(t, m, "shout", text, Options{})] = strings.ToUpper(text)
		waiting[put(t, m, "never", text, Options{Priority: i % 3, Unique: fmt.Sprint(i)})] = text
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

// TestDamage: whatever byte of a store is changed, and wherever a file is cut off,
// each job is as it was, or is said to be damaged, by its id. None is given as
// something that it is not, and the others go on.
func TestDamage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs")
	results, waiting := sampleStore(t, dir)
	var files []string
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != lockName {
			rel, _ := filepath.Rel(dir, path)
			files = append(files, rel)
		}
		return err
	})
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewSource(seed))
	for i := range rounds {
		copied := filepath.Join(t.TempDir(), "jobs")
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		file := dbName
		if i%3 == 2 {
			file = files[rnd.Intn(len(files))]
		}
		what := damage(t, rnd, filepath.Join(copied, file))
		what = file + ": " + what
		checkDamaged(t, what, copied, results, waiting)
	}
}

// damage flips a bit, or cuts the file off, somewhere.
func damage(t *testing.T, rnd *rand.Rand, path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := rnd.Intn(max(1, len(data)))
	if used := bytes.TrimRight(data, "\x00"); rnd.Intn(4) > 0 && len(used) > 0 {
		at = rnd.Intn(len(used)) // where there is something
	}
	if rnd.Intn(3) == 0 {
		err = os.Truncate(path, int64(at))
		defer t.Logf("%s cut to %d", path, at)
	} else if len(data) > 0 {
		data[at] ^= 1 << rnd.Intn(8)
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("at %d of %d", at, len(data))
}

func checkDamaged(t *testing.T, what, dir string, results, waiting map[ID]string) {
	t.Helper()
	var log said
	m, err := Open(Config{Dir: dir, Warn: log.warn})
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	h := &hostOf{m: m, serve: func(req *bus.Request, input []byte) (string, bus.Result) {
		t.Errorf("%s: job %s of %s is run: %.40q", what, req.Posted.Job, req.Function, input)
		return "", exit(0)
	}}
	if err := m.Start(h.host()); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	defer m.Close()
	lost := 0
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
		var in *content
		j, err := m.Get(id)
		if err == nil && j.State != Dead {
			j, _, in, err = m.store.read(id)
		}
		if err == nil && j != nil && j.State != Dead {
			got, _ := io.ReadAll(in.reader())
			in.close()
			if string(got) != want {
				t.Errorf("%s: %s would be run with %.60q", what, id, got)
			}
			continue
		}
		if in != nil {
			in.close()
		}
		lost++
		if !errors.As(err, new(*DamagedError)) && !log.about(id.String()) {
			t.Errorf("%s: %s: %v %+v, and nothing was said of it: %q", what, id, err, j, log.lines)
		}
	}
	if id := put(t, m, "never", "new", Options{}); lost == 0 && id == (ID{}) {
		t.Errorf("%s: nothing can be posted", what)
	}
	if lost > 30 {
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
	out, stderr, err := m.Result(j)
	if err != nil {
		return "", err
	}
	defer out.Close()
	defer stderr.Close()
	data, err := io.ReadAll(out)
	return string(data), err
}
