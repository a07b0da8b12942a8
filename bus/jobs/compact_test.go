package jobs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"fbus/bus/args"
	"fbus/bus/jobs"
)

// postMany posts n jobs of six kilobytes to a function that nobody offers.
func (b *bed) postMany(function string, n int) {
	b.t.Helper()
	var posters sync.WaitGroup
	for k := range 64 {
		posters.Go(func() {
			for i := k; i < n; i += 64 {
				input := fmt.Sprint(function, " ", i, strings.Repeat(" ", 6000))
				if _, err := b.m.Post(&jobs.Post{Function: function, Poster: jobs.Poster{Caller: "uid:0"}, Input: strings.NewReader(input)}); err != nil {
					b.t.Error(err)
				}
			}
		})
	}
	posters.Wait()
}

func (b *bed) fileSize() int64 {
	b.t.Helper()
	st, err := os.Stat(jobs.DBPath(b.cfg.Dir))
	if err != nil {
		b.t.Fatal(err)
	}
	return st.Size()
}

// TestFileSize: what purged jobs leave behind in the file is used again, and the file
// is small again after the next start, with all that is in it. If it can not be made
// so, it does as it is.
func TestFileSize(t *testing.T) {
	t.Parallel()
	const many, few = 3_500, 200
	b := newBed(t)
	purge := func() {
		t.Helper()
		e := call(b.dial("purger"), "fbus.purge", args.JSON([]byte(`{"state":"queued","function":"many"}`)), "")
		if want := fmt.Sprintf("{\"purged\":%d}\n", many); e.out != want {
			t.Fatalf("%q, %+v", e.out, e.res)
		}
	}
	b.postMany("many", many)
	b.postMany("few", few)
	most := b.fileSize()
	if most < 16<<20 {
		t.Fatalf("the file has %d bytes: that is not enough for this test", most)
	}
	purge()
	b.postMany("many", many)
	if again := b.fileSize(); again > most+most/4 {
		t.Errorf("the file had %d bytes for as many jobs, and has %d", most, again)
	} else {
		most = again
	}
	purge()

	// It can not be copied: that is said, and nothing is lost.
	fresh := jobs.DBPath(b.cfg.Dir) + ".new"
	if err := os.MkdirAll(filepath.Join(fresh, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if b.fileSize() < most || !strings.Contains(b.warnings(), "could not be made smaller") {
		t.Errorf("the file has %d bytes, and had %d; %q", b.fileSize(), most, b.warnings())
	}
	if n, _ := b.m.Totals(); n != few {
		t.Errorf("%d jobs are there", n)
	}
	if err := os.RemoveAll(fresh); err != nil {
		t.Fatal(err)
	}
	// What one has left that was cut off does not matter.
	if err := os.WriteFile(fresh, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.close()
	before, err := jobs.Entries(b.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	b.open()
	small := b.fileSize()
	t.Logf("%d jobs took %d bytes, the %d that were left take %d", many, most, few, small)
	if small > 4<<20 {
		t.Errorf("the file has %d bytes, and had %d", small, most)
	}
	if _, err := os.Lstat(fresh); err == nil {
		t.Errorf("%s is left", fresh)
	}
	if st, err := os.Stat(jobs.DBPath(b.cfg.Dir)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	c := b.dial("reader")
	list, _ := b.list(c, `{}`)
	for _, i := range list {
		if i.State != jobs.Queued || i.Function != "few" {
			t.Errorf("%+v", i)
		}
	}
	b.close()
	after, err := jobs.Entries(b.cfg.Dir)
	if err != nil || len(list) != few || len(before) != len(after) {
		t.Errorf("%d jobs of %d, %d entries of %d: %v", len(list), few, len(after), len(before), err)
	}
}
