package journal_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"fbus/bus/journal"
)

// whole makes a journal of n entries and returns its one file.
func whole(t testing.TB, n int) []byte {
	dir := t.TempDir()
	j, _ := open(t, journal.Options{Dir: dir})
	for range n {
		j.Append(call("f"))
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "log.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func openData(t testing.TB, data []byte) (*journal.Journal, *warnings) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "log.jsonl"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, journal.Options{Dir: dir})
}

func TestTornLine(t *testing.T) {
	data := whole(t, 3)
	last := bytes.LastIndexByte(data[:len(data)-1], '\n') + 1
	for cut := last + 1; cut < len(data); cut += 7 {
		j, w := openData(t, data[:cut])
		j.Append(call("new"))
		list, next := read(t, j, journal.Query{})
		if len(list) != 3 || next != 3 || list[2].Function != "new" {
			t.Fatalf("cut at %d of %d: %+v", cut, len(data), list)
		}
		if len(w.all()) != 1 || w.count("cut short") != 1 {
			t.Errorf("warnings: %q", w.all())
		}
		j.Close()
	}
}

// TestDamage spoils files at random: what is whole is shown, what is not is said,
// and nothing is shown that was not written.
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
		left := 0
		for _, l := range lines[:n] {
			if i := bytes.Index(bad, l); i == 0 || i > 0 && bad[i-1] == '\n' {
				left++
			}
		}
		j, w := openData(t, bad)
		list := readAll(t, j, journal.Query{})
		if len(list) != left {
			t.Errorf("seed %d: %d entries, %d lines are whole", seed, len(list), left)
		}
		for _, e := range list {
			want := *call("f")
			want.Seq, want.Time = e.Seq, e.Time
			if e != want {
				t.Errorf("seed %d: %+v was never written", seed, e)
			}
		}
		if backwards := readAll(t, j, journal.Query{Last: 2 * n}); len(backwards) != left {
			t.Errorf("seed %d: %d entries from the end", seed, len(backwards))
		}
		if left < n && len(w.all()) == 0 {
			t.Errorf("seed %d: nothing is said of %d lines", seed, n-left)
		}
		j.Append(call("f"))
		if got, next := read(t, j, journal.Query{Last: 1}); len(got) != 1 || got[0].Seq != next {
			t.Errorf("seed %d: after it: %+v", seed, got)
		}
		j.Close()
	}
}

// TestFileCutWhileOpen truncates the file below the journal.
func TestFileCutWhileOpen(t *testing.T) {
	dir := t.TempDir()
	j, w := open(t, journal.Options{Dir: dir})
	for range 100 {
		j.Append(call("f"))
	}
	read(t, j, journal.Query{})
	if err := os.Truncate(filepath.Join(dir, "log.jsonl"), 5000); err != nil {
		t.Fatal(err)
	}
	j.Append(call("f"))
	j.Append(call("f"))
	if list := readAll(t, j, journal.Query{Last: 1000}); len(list) < 10 || list[len(list)-1].Seq != 102 {
		t.Errorf("%d entries, %q", len(list), w.all())
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte("{\"seq\":1}\n"))
	f.Add(whole(f, 3))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, _ := openData(t, data)
		j.Append(call("f"))
		for _, q := range []journal.Query{{}, {Last: 1}, {Function: "f"}, {After: 1}} {
			if _, _, err := j.Read(context.Background(), q); err != nil {
				t.Fatal(err)
			}
		}
		j.Close()
	})
}
