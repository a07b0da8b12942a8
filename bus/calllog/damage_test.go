package calllog_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"fbus/bus/calllog"
)

// whole creates a log of n entries and returns its one file.
func whole(t testing.TB, n int) []byte {
	dir := t.TempDir()
	l, _ := open(t, calllog.Options{Dir: dir})
	for range n {
		l.Append(call("f"))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "log.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func openData(t testing.TB, data []byte) (*calllog.Log, *warnings) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "log.jsonl"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, calllog.Options{Dir: dir})
}

func TestTornLine(t *testing.T) {
	data := whole(t, 3)
	last := bytes.LastIndexByte(data[:len(data)-1], '\n') + 1
	for cut := last + 1; cut < len(data); cut += 7 {
		l, w := openData(t, data[:cut])
		l.Append(call("new"))
		list, next := read(t, l, calllog.Query{})
		if len(list) != 3 || next != 3 || list[2].Function != "new" {
			t.Fatalf("cut at %d of %d: %+v", cut, len(data), list)
		}
		if len(w.all()) != 1 || w.count("damaged lines in the log are skipped") != 1 {
			t.Errorf("warnings: %q", w.all())
		}
		l.Close()
	}
}

// TestDamage damages files at random. Every whole line is still shown, and the log
// continues.
func TestDamage(t *testing.T) {
	const n = 400
	data := whole(t, n)
	lines := bytes.SplitAfter(data, []byte{'\n'})
	for seed := range uint64(25) {
		r := rand.New(rand.NewPCG(seed, 1))
		bad := bytes.Clone(data)
		for range 1 + r.IntN(20) {
			switch at := r.IntN(len(bad)); r.IntN(4) {
			case 0, 1:
				bad[at] ^= 1 << r.IntN(8)
			case 2:
				bad = slices.Delete(bad, at, min(len(bad), at+r.IntN(300)))
			case 3:
				bad = slices.Insert(bad, at, make([]byte, r.IntN(100000))...)
			}
		}
		l, _ := openData(t, bad)
		shown := map[string]bool{}
		for _, e := range readAll(t, l, calllog.Query{}) {
			shown[string(calllog.AppendLine(nil, &e))] = true
		}
		for _, line := range lines[:n] {
			if i := bytes.Index(bad, line); (i == 0 || i > 0 && bad[i-1] == '\n') && !shown[string(line)] {
				t.Errorf("seed %d: missing: %s", seed, line)
			}
		}
		l.Append(call("f"))
		if got, next := read(t, l, calllog.Query{Last: 1}); len(got) != 1 || got[0].Seq != next {
			t.Errorf("seed %d: after it: %+v", seed, got)
		}
		l.Close()
	}
}

// TestFileCutWhileOpen truncates the file under an open log.
func TestFileCutWhileOpen(t *testing.T) {
	dir := t.TempDir()
	l, w := open(t, calllog.Options{Dir: dir})
	for range 100 {
		l.Append(call("f"))
	}
	read(t, l, calllog.Query{})
	if err := os.Truncate(filepath.Join(dir, "log.jsonl"), 5000); err != nil {
		t.Fatal(err)
	}
	l.Append(call("f"))
	l.Append(call("f"))
	if list := readAll(t, l, calllog.Query{Last: 1000}); len(list) < 10 || list[len(list)-1].Seq != 102 {
		t.Errorf("%d entries, %q", len(list), w.all())
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte("{\"seq\":1}\n"))
	f.Add(whole(f, 3))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, _ := openData(t, data)
		l.Append(call("f"))
		for _, q := range []calllog.Query{{}, {Last: 1}, {Function: "f"}, {After: 1}} {
			if _, _, err := l.Read(context.Background(), q); err != nil {
				t.Fatal(err)
			}
		}
		l.Close()
	})
}
