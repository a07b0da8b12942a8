package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"fbus/bus/args"
	"fbus/bus/jobs/store"
)

// Follow copies what a job writes while it runs, from the beginning of the attempt that runs
// now, until the job has ended. To stderr it also says that an attempt has ended and that
// the job runs again. shown reports whether the output of the last attempt was copied;
// otherwise the result is still to be read.
func (m *Manager) Follow(ctx context.Context, id ID, stdout, stderr io.Writer) (j *Job, shown bool, err error) {
	changed, stop := m.lookouts.Add(&m.mu, id)
	defer stop()
	defer func() {
		if errors.Is(err, ErrUnfinished) {
			j, _ = m.Get(id)
		}
		if j == nil && errors.Is(err, ErrUnfinished) {
			err = m.store.Absent(id)
		}
	}()
	// A terminal shows both streams: a message begins a line of its own.
	lines := [2]*lastByte{{w: stdout, b: '\n'}, {w: stderr, b: '\n'}}
	stdout, stderr = lines[0], lines[1]
	var last *Taken
	for {
		t, out, errs := m.attempt(ctx, id, last)
		if t != nil {
			last = t
			if err := copyBoth(stdout, out, stderr, errs); err != nil {
				return nil, false, unfinished(ctx, err)
			}
			select {
			case <-t.over:
			case <-ctx.Done():
				return nil, false, unfinished(ctx, ctx.Err())
			}
		}
		if j, err = m.Get(id); err != nil {
			return nil, false, err
		}
		if j.State.Finished() {
			shown = last != nil && last.Attempt == j.Attempts
			return j, shown, nil
		}
		if t != nil {
			begin := ""
			if lines[0].b != '\n' || lines[1].b != '\n' {
				begin, lines[0].b = "\n", '\n'
			}
			if _, err := fmt.Fprintf(stderr, begin+"fbus: %s: %s: the job runs again\n", id, args.OneLine(attemptEnd(j, t))); err != nil {
				return nil, false, unfinished(ctx, err)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false, ErrUnfinished
		case <-m.ctx.Done():
			return nil, false, ErrClosed
		}
	}
}

// lastByte remembers the last byte that was written.
type lastByte struct {
	w io.Writer
	b byte
}

// Write implements io.Writer.
func (l *lastByte) Write(p []byte) (int, error) {
	if len(p) > 0 {
		l.b = p[len(p)-1]
	}
	return l.w.Write(p)
}

// unfinished is the error of a wait that ends before the job.
func unfinished(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ErrUnfinished
	}
	return err
}

// attemptEnd describes how an attempt ended.
func attemptEnd(j *Job, t *Taken) string {
	switch e := j.Last; {
	case e == nil || j.Attempts != t.Attempt: // its worker was busy
		return fmt.Sprintf("attempt %d has ended", t.Attempt)
	case e.Source == args.FromSignal.String():
		return fmt.Sprintf("attempt %d was ended by %s", t.Attempt, e.Code)
	case e.Source == args.FromProgram.String():
		return fmt.Sprintf("attempt %d has ended with status %d", t.Attempt, e.Status)
	default:
		return fmt.Sprintf("attempt %d has ended: %s", t.Attempt, e.Message)
	}
}

// attempt returns the attempt that runs, with readers of its output, unless it is the last
// one that was returned.
func (m *Manager) attempt(ctx context.Context, id ID, last *Taken) (t *Taken, out, errs *store.DraftReader) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t = m.active[id]
	if t == nil || t == last || t.started.IsZero() {
		return nil, nil, nil
	}
	out, errs = t.out.Reader(ctx), t.errOut.Reader(ctx)
	if out == nil || errs == nil { // it is ending
		for _, r := range []*store.DraftReader{out, errs} {
			if r != nil {
				r.Close()
			}
		}
		return nil, nil, nil
	}
	return t, out, errs
}

// copyBoth copies two streams, neither of which waits for the other.
func copyBoth(stdout io.Writer, out *store.DraftReader, stderr io.Writer, errs *store.DraftReader) (err error) {
	defer out.Close()
	defer errs.Close()
	var both sync.WaitGroup
	var errOf error
	both.Go(func() { _, errOf = io.Copy(stderr, errs) })
	_, err = io.Copy(stdout, out)
	both.Wait()
	return cmp.Or(err, errOf)
}
