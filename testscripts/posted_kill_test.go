package testscripts

import (
	"context"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	fbus "fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// ledger is what the world outside of the node knows of jobs.
type ledger struct {
	mu       sync.Mutex // protects the fields below
	acked    map[string]uint32
	order    []string       // of acked
	reported map[string]int // id → the node that has said it was done
	runs     map[string]int // id → how often it was run
	good     map[string]int // and how often with success
	broken   []string       // promises
	sample   []time.Duration
}

func newLedger() *ledger {
	return &ledger{acked: map[string]uint32{}, reported: map[string]int{}, runs: map[string]int{}, good: map[string]int{}}
}

func (l *ledger) breach(format string, args ...any) {
	if len(l.broken) < 20 {
		l.broken = append(l.broken, fmt.Sprintf(format, args...))
	}
}

// work is a function that fails now and then, and is busy now and then; it gives its
// input back.
func (l *ledger) work(s *store) fbus.Handler {
	return func(ctx context.Context, inv *fbus.Invocation) fbus.Result {
		l.mu.Lock()
		l.runs[inv.Job]++
		if by, ok := l.reported[inv.Job]; ok && s.run(inv.Call) >= by {
			l.breach("%s was run after it was reported done", inv.Job)
		}
		l.mu.Unlock()
		input := string(inv.Head())
		if inv.Rest() != nil {
			var rest strings.Builder
			buf := make([]byte, 32<<10)
			for {
				n, err := inv.Rest().Read(buf)
				rest.Write(buf[:n])
				if err != nil {
					break
				}
			}
			input += rest.String()
		}
		select {
		case <-time.After(rand.N(5 * time.Millisecond)):
		case <-ctx.Done():
			return fbus.Result{End: fbus.End{Source: args.FromSignal, Status: 143, Code: "SIGTERM"}}
		}
		switch rand.N(20) {
		case 0:
			return fbus.Exit(1)
		case 1:
			return fbus.Exit(75)
		}
		if _, err := inv.Stdout.Write([]byte(input)); err != nil {
			return fbus.Exit(74)
		}
		l.mu.Lock()
		l.good[inv.Job]++
		l.mu.Unlock()
		return fbus.Result{}
	}
}

// client posts, and looks at results, until stop is closed.
func (l *ledger) client(s *store, number int, stop <-chan struct{}) {
	for k := 0; ; k++ {
		c, err := s.dial(fmt.Sprint("client ", number))
		for err == nil {
			select {
			case <-stop:
				c.Close()
				return
			case <-time.After(rand.N(4 * time.Millisecond)):
			}
			k++
			input := fmt.Sprintf("job %d of client %d", k, number)
			if rand.N(20) == 0 {
				input = strings.Repeat(input, 3000)
			}
			id, a := post(c, "f", `{"retries":100,"backoff":0.01}`, input)
			if id == "" {
				if a.res.Code != args.CodeNodeLost && a.res.Code != args.CodeNoNode && a.res.Code != args.CodeDraining {
					l.mu.Lock()
					l.breach("a post was refused: %+v", a.res)
					l.mu.Unlock()
				}
				break
			}
			l.mu.Lock()
			l.acked[id] = crc32.ChecksumIEEE([]byte(input))
			l.order = append(l.order, id)
			look := l.order[max(0, len(l.order)-1-rand.N(100))]
			_, told := l.reported[look]
			l.mu.Unlock()
			a = ask(c, "fbus.result", look, `{"wait":false}`)
			if a.res.Code == args.CodeNodeLost {
				break
			}
			if told || a.res.Code != "unfinished" { // another client may have been told meanwhile that it is done
				l.result(s, look, a)
			}
		}
		if c != nil {
			c.Close()
		}
		select {
		case <-stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// result notes what a node has said of a job.
func (l *ledger) result(s *store, id string, a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum, by := crc32.ChecksumIEEE([]byte(a.out)), s.run(a.res.Call)
	switch was, ok := l.reported[id]; {
	case a.ok() && sum != l.acked[id]:
		l.breach("%s is done with something else than it was given: %.40q", id, a.out)
	case a.ok() && !ok:
		l.reported[id] = by
	case a.ok(), a.res.Code == "unfinished" && !ok:
	case ok:
		l.breach("%s was done by node %d, and is not by node %d: %+v", id, was, by, a.res)
	default:
		l.breach("%s is neither done nor unfinished: %+v", id, a.res)
	}
}

// settle checks that all that was acknowledged has ended well.
func (l *ledger) settle(t *testing.T, s *store) {
	t.Helper()
	c := s.client("settle")
	for _, id := range l.order {
		l.result(s, id, ask(c, "fbus.result", id))
	}
	byState := map[jobs.State]int{}
	total := 0
	eventually(t, "all jobs have ended", func() bool {
		clear(byState)
		list := s.list(c, `{}`)
		total = len(list)
		for _, i := range list {
			byState[i.State]++
		}
		return byState[jobs.Done]+byState[jobs.Dead] == total
	})
	lost, doubled := 0, 0
	for id := range l.acked {
		if _, ok := l.reported[id]; !ok {
			lost++
		}
		if l.good[id] > 1 {
			doubled++
		}
	}
	slices.Sort(l.sample)
	t.Logf("%d jobs acknowledged, %d lost, %d done twice or more, %d there that nobody was told of; %v", len(l.acked), lost, doubled, total-len(l.acked), byState)
	if len(l.sample) > 0 {
		t.Logf("from kill to the next post on disk: median %v, most %v", l.sample[len(l.sample)/2].Round(time.Millisecond), l.sample[len(l.sample)-1].Round(time.Millisecond))
	}
	if lost > 0 || len(l.broken) > 0 || byState[jobs.Dead] > 0 {
		t.Errorf("%d jobs were lost: %s", lost, strings.Join(l.broken, "\n"))
	}
}

// TestNodeKilled kills the node with -9 at random while clients post and workers run:
// no id that was given is lost, every job ends, and none is run after it was reported
// done. FBUS_SOAK=1 does it 100 times.
func TestNodeKilled(t *testing.T) {
	t.Parallel()
	kills := 5
	if soak() {
		kills = 100
	}
	s, l := newStore(t), newLedger()
	for i := range 3 {
		s.worker(fmt.Sprint("w", i), "f", 4, l.work(s))
	}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() { l.client(s, i, stop) })
	}
	posted := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.acked)
	}
	for range kills {
		before := posted()
		eventually(t, "posts are taken", func() bool { return posted() > before })
		time.Sleep(rand.N(300 * time.Millisecond)) // at random is what is meant
		began := time.Now()
		s.kill()
		s.start()
		before = posted()
		eventually(t, "posts are taken again", func() bool { return posted() > before })
		l.sample = append(l.sample, time.Since(began))
	}
	close(stop)
	clients.Wait()
	l.settle(t, s)
	c := s.client("last")
	large := map[string]bool{}
	for _, i := range s.list(c, `{}`) {
		large[i.ID] = i.In > 32<<10
	}
	files, err := os.ReadDir(filepath.Join(s.jobs(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if id, _, _ := strings.Cut(f.Name(), "."); !large[id] {
			t.Errorf("%s is left in the spool", f.Name())
		}
	}
}

// TestBatchThenSurvivesKill: the end of a batch posts one job, however often the node is
// killed on the way there.
func TestBatchThenSurvivesKill(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	quick := func(context.Context, *fbus.Invocation) fbus.Result {
		time.Sleep(time.Millisecond) // so that the node is killed in between
		return fbus.Exit(0)
	}
	s.worker("w", "f", 4, quick)
	s.worker("w", "after", 1, quick)
	const rounds, each = 4, 40
	for round := range rounds {
		c, err := s.dial("poster")
		if err != nil {
			t.Fatal(err)
		}
		batch := fmt.Sprintf("b%d", round)
		for range each {
			if id, a := post(c, "f", `{"batch":"`+batch+`"}`, ""); id == "" {
				t.Fatalf("%+v", a.res)
			}
		}
		if a := askWith(c, "fbus.batch", args.JSON([]byte(`{"batch":"`+batch+`","then":"after"}`)), ""); !a.ok() {
			t.Fatalf("%+v", a.res)
		}
		time.Sleep(rand.N(20 * time.Millisecond))
		c.Close()
		s.kill()
		s.start()
	}
	c := s.client("looker")
	for round := range rounds {
		if a := askWith(c, "fbus.wait", args.JSON(fmt.Appendf(nil, `{"batch":"b%d"}`, round)), ""); !a.ok() || !strings.HasSuffix(a.out, fmt.Sprintf("{\"jobs\":%d,\"running\":0,\"done\":%d,\"dead\":0,\"cancelled\":0}\n", each, each)) {
			t.Errorf("%+v", a)
		}
	}
	eventually(t, "the ends are posted", func() bool { return len(s.list(c, `{"function":"after"}`)) >= rounds })
	s.kill()
	s.start()
	c = s.client("looker")
	if list := s.list(c, `{"function":"after"}`); len(list) != rounds {
		t.Errorf("%d jobs are posted by the ends of %d batches", len(list), rounds)
	}
}
