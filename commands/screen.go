package commands

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"fbus/bus/fanout"

	"github.com/mattn/go-isatty"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// screen is stderr, with or without a line of progress below what is written.
type screen struct {
	w io.Writer

	mu       sync.Mutex // protects the fields below, and keeps lines apart
	progress *mpb.Progress
	bar      *mpb.Bar
	at       func() fanout.Progress
	done     chan struct{} // closed to end what moves the bar
}

// Write implements io.Writer; p is whole lines.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.progress != nil {
		if n, err := s.progress.Write(p); err == nil {
			return n, nil
		}
	}
	return s.w.Write(p)
}

// say prints a message with our name before it.
func (s *screen) say(format string, args ...any) { say(s, fmt.Sprintf(format, args...)) }

// moveEvery is how often the bar is moved.
const moveEvery = 100 * time.Millisecond

// start shows progress until stop; total is negative if it is not known. Where
// stderr is no terminal each state is a line.
func (s *screen) start(name string, total int, at func() fanout.Progress, terminal bool) {
	options := []mpb.ContainerOption{mpb.WithOutput(s.w), mpb.WithRefreshRate(moveEvery)}
	if !terminal {
		options = append(options, mpb.WithAutoRefresh(), mpb.WithWidth(80), mpb.WithRefreshRate(time.Second))
	}
	s.progress = mpb.New(options...)
	count := "%d/%d"
	style := mpb.BarStyle().Build()
	if total < 0 {
		count, style = "%d", mpb.NopStyle().Build()
	}
	state := func(decor.Statistics) string {
		p := at()
		return fmt.Sprintf(", %d failed, %d running", p.Failed, p.Running)
	}
	number := decor.CountersNoUnit(count)
	if total < 0 {
		number = decor.CurrentNoUnit(count)
	}
	after := []decor.Decorator{decor.AverageSpeed(0, "%.1f/s")}
	if total >= 0 {
		after = append(after, decor.Name(", ETA "), decor.AverageETA(decor.ET_STYLE_GO))
	}
	s.bar = s.progress.MustAdd(int64(max(total, 0)), style,
		mpb.PrependDecorators(decor.Name(name+" "), number, decor.Name(" ")),
		mpb.AppendDecorators(append(after, decor.Any(state))...))
	s.at, s.done = at, make(chan struct{})
	go s.move() // ends with stop
}

// move keeps the bar where the calls are.
func (s *screen) move() {
	tick := time.NewTicker(moveEvery)
	defer tick.Stop()
	for {
		s.bar.SetCurrent(int64(s.at().Ended))
		select {
		case <-tick.C:
		case <-s.done:
			return
		}
	}
}

// stop takes the progress away.
func (s *screen) stop() {
	s.mu.Lock()
	progress := s.progress
	s.progress = nil
	s.mu.Unlock()
	if progress == nil {
		return
	}
	close(s.done)
	s.bar.Abort(true)
	progress.Wait()
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}
