package exec

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// Programs that run at once have different numbers in FBUS_SLOT, 0 to the slots less one.
func TestSlotNumbers(t *testing.T) {
	t.Parallel()
	// Each waits for two others on the same line, so that none takes two calls of a round.
	const meet = `while read -r x; do mkdir -p "$0/$x"; : >"$0/$x/$FBUS_SLOT"
		until [ -e "$0/$x/0" ] && [ -e "$0/$x/1" ] && [ -e "$0/$x/2" ]; do sleep 0.01; done; echo $FBUS_SLOT; done`
	const program = `read -r x; mkdir "$0/$FBUS_SLOT" || echo twice; sleep 0.02; rmdir "$0/$FBUS_SLOT"; echo $FBUS_SLOT`
	for name, spec := range map[string]Spec{
		"once":  {Argv: []string{"sh", "-c", program, t.TempDir()}},
		"warm":  {Argv: []string{"sh", "-c", program, t.TempDir()}, Warm: 3},
		"lines": {Argv: []string{"sh", "-c", meet, t.TempDir()}, Resident: LineByLine},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec.Slots = 3
			f := offer(t, spec)
			for round := range 3 {
				var mu sync.Mutex
				var wg sync.WaitGroup
				seen := map[string]int{}
				for range 3 {
					wg.Go(func() {
						got := runCall(t.Context(), f, &Call{Input: fmt.Appendln(nil, round)})
						mu.Lock()
						defer mu.Unlock()
						seen[strings.TrimSpace(got.out)]++
					})
				}
				wg.Wait()
				for k := range seen {
					if k != "0" && k != "1" && k != "2" {
						t.Errorf("FBUS_SLOT=%s", k)
					}
				}
				if spec.Resident == LineByLine && len(seen) != 3 {
					t.Errorf("%v", seen)
				}
			}
		})
	}
	n := numbers{most: 2}
	if got := fmt.Sprint(n.take(), n.take(), n.take()); got != "0 1 0" {
		t.Errorf("numbers %s", got)
	}
	n.release(1)
	if k := n.take(); k != 1 {
		t.Errorf("number %d", k)
	}
}

// Functions that share room run no more programs at once than that is for.
func TestRoom(t *testing.T) {
	t.Parallel()
	room := make(chan struct{}, 1)
	spec := Spec{Argv: []string{"sh", "-c", "read -r x; echo $x"}, Slots: 2, Room: room}
	once := offer(t, spec)
	spec.Argv, spec.Resident = []string{"cat"}, LineByLine
	lines := offer(t, spec)
	r := newGatedReader()
	held := background(t.Context(), once, &Call{Rest: r})
	for len(room) == 0 {
		time.Sleep(time.Millisecond)
	}
	var waits []<-chan Result
	for _, f := range []*Function{once, lines} {
		waits = append(waits, background(t.Context(), f, &Call{Input: []byte("x\n")}))
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if res := f.Run(ctx, &Call{Input: []byte("x\n")}); res.Code != "cancelled" {
			t.Errorf("%+v", res)
		}
	}
	for _, w := range waits {
		select {
		case res := <-w:
			t.Errorf("%+v ended with no room", res)
		default:
		}
	}
	r.open("y\n")
	for _, w := range append(waits, held) {
		if res := await(t, w); !same(Result{End: res.End}, programExit(0)) {
			t.Errorf("%+v", res)
		}
	}
}

// gatedReader gives its text when it is opened.
type gatedReader struct {
	text chan string
}

func newGatedReader() *gatedReader { return &gatedReader{make(chan string, 1)} }

func (g *gatedReader) open(text string) {
	g.text <- text
	close(g.text)
}

func (g *gatedReader) Read(p []byte) (int, error) {
	s, ok := <-g.text
	if !ok {
		return 0, io.EOF
	}
	return copy(p, s), nil
}

// TestRoomTakesNoTime: the time of a call that waits for room begins when it has some.
func TestRoomTakesNoTime(t *testing.T) {
	t.Parallel()
	room := make(chan struct{}, 1)
	spec := Spec{Argv: []string{"sh", "-c", "read -r x; echo $x"}, Slots: 2, Room: room, Timeout: 2 * time.Second}
	once := offer(t, spec)
	spec.Argv, spec.Resident = []string{"cat"}, LineByLine
	lines := offer(t, spec)
	room <- struct{}{}
	var waits []<-chan Result
	for _, f := range []*Function{once, lines} {
		waits = append(waits, background(t.Context(), f, &Call{Input: []byte("x\n")}))
	}
	time.Sleep(spec.Timeout + 100*time.Millisecond)
	<-room
	for _, w := range waits {
		if res := await(t, w); !same(Result{End: res.End}, programExit(0)) {
			t.Errorf("%+v", res)
		}
	}
}
