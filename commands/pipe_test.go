package commands

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPipeReadLine(t *testing.T) {
	r := bufio.NewReaderSize(strings.NewReader("short\n"+strings.Repeat("x", 100)+"\n"+strings.Repeat("y", 50)+"\nlast"), 16)
	var got []string
	for {
		line, err := readLine(r, 50)
		if err == errLongLine {
			line = []byte("LONG\n")
			err = nil
		}
		got = append(got, string(line))
		if err != nil {
			if err != io.EOF {
				t.Fatal(err)
			}
			break
		}
	}
	if want := []string{"short\n", "LONG\n", strings.Repeat("y", 50) + "\n", "last"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q", got)
	}
}

func TestPipeStderr(t *testing.T) {
	var through bytes.Buffer
	s := &pipeStderr{w: &through}
	var all strings.Builder
	for i := range 20000 {
		line := fmt.Sprintf("line %d\n", i)
		all.WriteString(line)
		s.Write([]byte(line))
	}
	tail := s.tail()
	if len(tail) > maxStderrTail || len(tail) < maxStderrTail-20 || !strings.HasPrefix(tail, "line ") {
		t.Errorf("%d bytes are kept: %.20q", len(tail), tail)
	}
	s.flush()
	if through.String() != all.String() {
		t.Error("what was passed on is not what was written")
	}
	s.Write([]byte(strings.Repeat("x", 2*maxStderrTail)))
	if len(s.tail()) != maxStderrTail {
		t.Errorf("%d bytes of a long line are kept", len(s.tail()))
	}
}

// TestPipeAnswers has many write at once to a slow stdout: every line is whole.
func TestPipeAnswers(t *testing.T) {
	r, w := io.Pipe()
	a := newAnswers(w)
	var wg sync.WaitGroup
	const n = 500
	for i := range n {
		wg.Go(func() {
			a.put(true, func(dst []byte) []byte { return fmt.Appendf(dst, "%d %s", i, strings.Repeat("x", i*20)) })
		})
	}
	go func() {
		wg.Wait()
		a.close()
		w.Close()
	}()
	seen := map[int]bool{}
	for sc := bufio.NewScanner(r); sc.Scan(); {
		var i int
		var x string
		fmt.Sscan(sc.Text(), &i, &x)
		if len(x) != i*20 {
			t.Fatalf("line %d has %d bytes", i, len(x))
		}
		seen[i] = true
	}
	if len(seen) != n {
		t.Errorf("%d lines", len(seen))
	}
	a.put(false, func(dst []byte) []byte { return append(dst, "late"...) }) // must not write to the closed pipe
}

// TestPipeHoard has calls that need more than there is room for: one goes on,
// and then the next.
func TestPipeHoard(t *testing.T) {
	h := newHoard(100)
	a, b := new(int), new(int)
	ctx := context.Background()
	for range 20 {
		if err := h.take(ctx, a, 10); err != nil {
			t.Fatal(err)
		}
	}
	if h.tryTake(1) {
		t.Error("there was room in a full hoard")
	}
	done := make(chan error)
	go func() { done <- h.take(ctx, b, 60) }()
	ended, cancel := context.WithCancel(ctx)
	go func() { done <- h.take(ended, new(int), 60) }()
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("a cancelled call: %v", err)
	}
	h.give(a, 200)
	if err := <-done; err != nil {
		t.Error(err)
	}
	h.give(b, 60)
	if h.held != 0 || h.ahead != nil {
		t.Errorf("%d bytes are left", h.held)
	}
}

// TestPipeQueues has a node that takes 5 calls at a time and refuses others: all
// are served, whoever is cancelled meanwhile.
func TestPipeQueues(t *testing.T) {
	const room, calls = 5, 400
	node := make(chan struct{}, room)
	q := &queues{names: map[string]*queue{}}
	var wg sync.WaitGroup
	var mu sync.Mutex
	served, ended := 0, 0
	for i := range calls {
		ctx, cancel := context.WithCancel(context.Background())
		if i%7 == 0 {
			time.AfterFunc(time.Duration(i)*10*time.Microsecond, cancel)
		}
		defer cancel()
		wg.Go(func() {
			l := q.join("f")
			defer q.leave("f", l)
			for turn := false; ; turn = true {
				seen, err := q.enter(ctx, l, turn)
				if err != nil {
					mu.Lock()
					defer mu.Unlock()
					ended++
					return
				}
				select {
				case node <- struct{}{}:
					time.Sleep(50 * time.Microsecond)
					<-node
					q.ended(l)
					mu.Lock()
					defer mu.Unlock()
					served++
					return
				default:
				}
				again, err := q.refused(ctx, l, seen)
				if !again {
					if err == nil {
						t.Error("a call was given up though others were there")
					}
					mu.Lock()
					defer mu.Unlock()
					ended++
					return
				}
			}
		})
	}
	wg.Wait()
	if served+ended != calls || served < calls*6/7 || len(q.names) != 0 {
		t.Errorf("%d served, %d ended, %d queues left", served, ended, len(q.names))
	}
}

func TestPipeRefusedByOthers(t *testing.T) {
	q := &queues{names: map[string]*queue{}}
	l := q.join("f")
	seen, _ := q.enter(context.Background(), l, false)
	if again, err := q.refused(context.Background(), l, seen); again || err != nil {
		t.Errorf("again %v, %v: nothing will ever make room", again, err)
	}
}
