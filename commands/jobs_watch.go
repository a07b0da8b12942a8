package commands

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// watchJobs shows jobs again and again, also across a restart of the node.
func watchJobs(ctx context.Context, o *jobsOptions, ids []string, stdout, stderr io.Writer) error {
	w := &jobWatcher{o: o, ids: ids, stdout: stdout, stderr: stderr, seen: map[string]string{}}
	defer w.close()
	for {
		if err := w.look(ctx); err != nil {
			return err
		}
		select {
		case <-time.After(o.every):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// jobWatcher shows changes of jobs.
type jobWatcher struct {
	o              *jobsOptions
	ids            []string
	stdout, stderr io.Writer
	client         *bus.Client
	connected      bool // once
	said           bool // reported that it waits for the node

	seen map[string]string // with --json: each job as it was printed last
	last string            // elsewhere: the page that was printed last
}

// look shows the jobs once, unless the node is away.
func (w *jobWatcher) look(ctx context.Context) error {
	err := w.connect(ctx)
	if err == nil {
		err = w.show(ctx)
	}
	if err == nil {
		w.said = false
		return nil
	}
	w.close()
	if !w.connected || !args.Retryable(err) {
		return err
	}
	if !w.said && !w.o.quiet {
		say(w.stderr, err.Error()+": waiting for it to come back")
		w.said = true
	}
	return nil
}

func (w *jobWatcher) connect(ctx context.Context) (err error) {
	if w.client != nil {
		return nil
	}
	wait := w.o.wait
	if w.connected {
		wait = durationValue{}
	}
	if w.client, err = w.o.dial(ctx, wait); err == nil {
		w.connected = true
	}
	return err
}

func (w *jobWatcher) close() {
	if w.client != nil {
		w.client.Close()
		w.client = nil
	}
}

func (w *jobWatcher) show(ctx context.Context) error {
	switch {
	case len(w.ids) > 0:
		return w.showEach(ctx)
	case w.o.json:
		return w.showChanges(ctx)
	}
	columns, rows := w.watchSize()
	n := defaultJobs
	if rows > 0 {
		n = max(1, rows-2) // the heading, and the cursor below
	}
	list, _, err := listJobs(ctx, w.client, w.o.function, w.o.query(n))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	jobsTable(&out, list)
	var key bytes.Buffer
	for _, j := range list {
		key.WriteString(j.key())
	}
	return w.print(out.Bytes(), key.String(), columns)
}

// showEach shows the jobs of the ids.
func (w *jobWatcher) showEach(ctx context.Context) error {
	columns, _ := w.watchSize()
	var out, key bytes.Buffer
	for i, id := range w.ids {
		j, err := oneJob(ctx, w.client, w.o.function, id)
		if err != nil {
			return err
		}
		chain := chainOf(ctx, w.o, w.client, j)
		for _, l := range chain.links {
			key.WriteString(l.key())
		}
		if w.o.json {
			chain.json(&out)
			continue
		}
		if i > 0 {
			out.WriteByte('\n')
		}
		chain.show(&out)
	}
	if w.o.json {
		columns = 0
	}
	return w.print(out.Bytes(), key.String(), columns)
}

// showChanges prints the jobs that have changed since they were printed.
func (w *jobWatcher) showChanges(ctx context.Context) error {
	now := map[string]string{}
	var out bytes.Buffer
	_, err := askJobs(ctx, w.client, w.o.function, w.o.query(0), func(j *jobLine) error {
		key := j.key()
		now[j.ID] = key
		if w.seen[j.ID] != key {
			out.Write(j.text)
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.seen = now
	_, err = w.stdout.Write(out.Bytes())
	return err
}

// print redraws a terminal of this width; elsewhere, with width 0, it prints the page if
// the key has changed.
func (w *jobWatcher) print(page []byte, key string, width int) error {
	if width == 0 {
		if key == w.last {
			return nil
		}
		if w.last != "" && !w.o.json {
			page = append([]byte{'\n'}, page...)
		}
		w.last = key
		_, err := w.stdout.Write(page)
		return err
	}
	var out bytes.Buffer
	out.WriteString("\x1b[H")
	for line := range bytes.Lines(page) {
		text := []rune(string(bytes.TrimSuffix(line, []byte("\n"))))
		fmt.Fprintf(&out, "%s\x1b[K\n", string(text[:min(len(text), width-1)]))
	}
	out.WriteString("\x1b[J")
	_, err := w.stdout.Write(out.Bytes())
	return err
}

// key contains every field of a job that does not change with time alone.
func (j *jobLine) key() string {
	i := j.Info
	i.Age, i.Due = 0, time.Time{}
	key, _ := marshal(i)
	return string(key) + "\n"
}

// watchSize returns the size of the terminal, 0 and 0 if stdout is not one.
func (w *jobWatcher) watchSize() (columns, rows int) {
	if !isTerminal(w.stdout) {
		return 0, 0
	}
	if columns, rows = terminalSize(w.stdout); columns == 0 || rows == 0 {
		return 80, 24
	}
	return columns, rows
}
