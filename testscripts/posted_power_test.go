package testscripts

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	fbus "fbus/bus"
	"fbus/bus/args"
)

// TestPowerCut takes the power from a disk at random while clients post and workers
// run: whatever of an image has been written at that moment is copied, and a node
// started on the copy. Each job that was acknowledged is there, none is damaged, and
// those that were reported done have their results. FBUS_SOAK=1 does it 50 times.
//
// The image lies on a filesystem of the test's own, which stands still while it is
// copied: so the cut comes at any moment, also within an fsync.
func TestPowerCut(t *testing.T) {
	m, path, s, cuts := powered(t, 192<<20, 128<<20)
	l := newLedger()
	for i := range 2 {
		s.worker(fmt.Sprint("w", i), "f", 4, l.work(s))
	}
	var clients []func(stop <-chan struct{})
	for i := range 4 {
		clients = append(clients, func(stop <-chan struct{}) { l.client(s, i, stop) })
	}
	known := 0
	for range cuts {
		var acked map[string]uint32
		var reported map[string]int
		during(func() {
			eventually(t, "posts are taken", func() bool {
				l.mu.Lock()
				defer l.mu.Unlock()
				return len(l.acked) > known+10
			})
			time.Sleep(rand.N(100 * time.Millisecond)) // at random is what is meant
			l.mu.Lock()
			acked, reported = maps.Clone(l.acked), maps.Clone(l.reported)
			l.mu.Unlock()
			m.still(path("outer"), func() error { return copyFile(path("outer/disk.img"), path("cut.img")) })
		}, clients...)
		known = len(l.acked)
		m.loop(path("cut.img"), path("cut"), "")
		afterCut(t, m, path("cut"), acked, reported, func(*store) {})
		m.unmount(path("cut"))
	}
	l.settle(t, s)
}

// during runs clients while f runs, and no longer.
func during(f func(), clients ...func(stop <-chan struct{})) {
	stop := make(chan struct{})
	var all sync.WaitGroup
	for _, c := range clients {
		all.Go(func() { c(stop) })
	}
	f()
	close(stop)
	all.Wait()
}

// powered is a store on a disk whose image lies on a filesystem of its own, how the
// files of the test are called, and how often the power is to be cut.
func powered(t *testing.T, outer, disk int64) (m *mountspace, path func(name string) string, s *store, cuts int) {
	t.Helper()
	long(t)
	if os.Getuid() != 0 {
		t.Skip("only root may mount filesystems")
	}
	t.Parallel()
	cuts = 3
	if soak() {
		cuts = 50
	}
	m = newMountspace(t)
	dir := t.TempDir()
	path = func(name string) string { return filepath.Join(dir, name) }
	m.image(path("outer.img"), outer)
	m.loop(path("outer.img"), path("outer"), "")
	m.image(path("outer/disk.img"), disk)
	m.loop(path("outer/disk.img"), path("disk"), ",commit=300")
	return m, path, newStore(t, func(s *store) { s.state, s.launch = path("disk"), m.start }), cuts
}

// afterCut starts a node on what a cut has left, and prepares it.
func afterCut(t *testing.T, m *mountspace, state string, acked map[string]uint32, reported map[string]int, prepare func(s *store)) {
	t.Helper()
	s := newStore(t, func(s *store) { s.state, s.launch = state, m.start })
	defer s.end(syscall.SIGTERM, syscall.SIGTERM)
	prepare(s)
	c := s.client("after")
	l := newLedger()
	l.acked = acked
	done := 0
	for id := range acked {
		a := ask(c, "fbus.result", id, `{"wait":false}`)
		l.result(s, id, a)
		if _, was := reported[id]; was && !a.ok() {
			t.Errorf("%s was reported done: %+v", id, a.res)
		}
		if a.ok() {
			done++
		}
	}
	s.worker("again", "f", 8, func(ctx context.Context, inv *fbus.Invocation) fbus.Result { return l.work(s)(ctx, inv) })
	for id := range acked {
		l.result(s, id, ask(c, "fbus.result", id))
	}
	t.Logf("%d acknowledged, %d reported done, %d done on disk", len(acked), len(reported), done)
	if len(l.reported) != len(acked) || len(l.broken) > 0 || strings.Contains(s.stderr(), "is damaged") {
		t.Errorf("%d of %d are there: %s; the node says: %s", len(l.reported), len(acked), strings.Join(l.broken, "\n"), s.stderr())
	}
}

// TestPowerCutFull takes the power from a disk that is filled with jobs and emptied by
// purges again and again, where the store gives room back to the disk. FBUS_SOAK=1
// does it 50 times.
func TestPowerCutFull(t *testing.T) {
	size := int64(16 << 20)
	if soak() {
		size = 64 << 20 // what is done stays
	}
	m, path, s, cuts := powered(t, 2*size+32<<20, size)
	l := newLedger()
	s.worker("w", "f", 4, l.work(s))
	var n counts
	var rounds atomic.Int64
	press := func(stop <-chan struct{}) { l.press(s, 0, math.MaxInt, stop, &n) }
	fill := func(stop <-chan struct{}) {
		c := s.client("filler")
		defer c.Close()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if id, _ := post(c, "filler", `{"delay":100000}`, strings.Repeat("x", 30<<10)); id == "" {
				if a := purgeFillers(c); a.ok() {
					rounds.Add(1)
				}
			}
		}
	}
	for range cuts {
		before := rounds.Load()
		var acked map[string]uint32
		during(func() {
			eventually(t, "the disk was full, and emptied", func() bool { return rounds.Load() > before })
			time.Sleep(rand.N(300 * time.Millisecond)) // at random is what is meant
			l.mu.Lock()
			acked = maps.Clone(l.acked)
			l.mu.Unlock()
			m.still(path("outer"), func() error { return copyFile(path("outer/disk.img"), path("cut.img")) })
		}, press, fill)
		m.loop(path("cut.img"), path("cut"), "")
		afterCut(t, m, path("cut"), acked, nil, func(s *store) {
			if a := purgeFillers(s.client("purge")); !a.ok() {
				t.Errorf("what filled the disk can not be purged: %+v", a.res)
			}
		})
		m.unmount(path("cut"))
	}
	purgeFillers(s.client("purge"))
	l.settle(t, s)
	t.Logf("the disk was full %d times; %d posts were taken, %d refused", rounds.Load(), n.taken.Load(), n.refused.Load())
	if strings.Contains(s.stderr(), "is damaged") {
		t.Errorf("the node said: %s", s.stderr())
	}
}

func purgeFillers(c *fbus.Client) answer {
	return askWith(c, "fbus.purge", args.JSON([]byte(`{"state":"delayed","function":"filler"}`)), "")
}

// TestPowerCutOutput takes the power from a disk when commands have ended with 0: the
// files that they wrote are there, and what a job log shows as done is there too.
func TestPowerCutOutput(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may mount filesystems")
	}
	t.Parallel()
	m, dir := newMountspace(t), t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	m.image(path("outer.img"), 40<<20)
	m.loop(path("outer.img"), path("outer"), "")
	m.image(path("outer/disk.img"), 16<<20)
	m.loop(path("outer/disk.img"), path("disk"), ",commit=300")
	cmd := exec.Command("fbus", "run", "--offer", "f=cat", "--", "sh", "-ec", `
echo call | fbus call -o call --status-file status f
fbus map -o 'map/{}' --each raw f 1 2 3
fbus map --each raw --joblog log f one two >pages`)
	cmd.Dir, cmd.Env, cmd.Stderr = path("disk"), os.Environ(), os.Stderr
	m.must(m.do(cmd.Run))
	m.still(path("outer"), func() error { return copyFile(path("outer/disk.img"), path("cut.img")) })
	m.loop(path("cut.img"), path("cut"), "")
	m.must(m.do(func() error {
		for name, want := range map[string]string{
			"call": "call\n", "status": `{"source":"program","status":0`, "map/1": "1", "map/3": "3",
			"log": "Seq\tHost", "pages": "one\ntwo\n",
		} {
			if got, err := os.ReadFile(path("cut/" + name)); !strings.HasPrefix(string(got), want) {
				t.Errorf("%s: %q, want %q (%v)", name, got, want, err)
			}
		}
		return nil
	}))
}
