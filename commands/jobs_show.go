package commands

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"fbus/bus"
)

// maxChain bounds how many jobs of a chain are shown.
const maxChain = 1000

// showEach shows jobs in full.
func showEach(ctx context.Context, o *jobsOptions, c *bus.Client, ids []string, stdout io.Writer) error {
	for i, id := range ids {
		j, err := oneJob(ctx, c, o.function, id)
		if err != nil {
			return err
		}
		chain := chainOf(ctx, o, c, j)
		if o.json {
			err = chain.json(stdout)
		} else {
			if i > 0 {
				fmt.Fprintln(stdout)
			}
			chain.show(stdout)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// chain is a job with its parents and its children, each after its parent.
type chain struct {
	job   *jobLine
	links []link
}

// link is a job of a chain.
type link struct {
	*jobLine
	depth int
}

// chainOf follows a job's parents up and all their children down. It ends at jobs that
// were purged, or that the caller may not see.
func chainOf(ctx context.Context, o *jobsOptions, c *bus.Client, j *jobLine) *chain {
	seen := map[string]*jobLine{j.ID: j}
	get := func(id string) *jobLine {
		if seen[id] == nil && len(seen) < maxChain {
			if other, err := oneJob(ctx, c, o.function, id); err == nil {
				seen[id] = other
			}
		}
		return seen[id]
	}
	first, above := j, map[string]bool{j.ID: true}
	for first.Parent != "" {
		parent := get(first.Parent)
		if parent == nil || above[parent.ID] {
			break
		}
		first = parent
		above[parent.ID] = true
	}
	ch, shown := &chain{job: j}, map[string]bool{}
	var down func(j *jobLine, depth int)
	down = func(j *jobLine, depth int) {
		shown[j.ID] = true
		ch.links = append(ch.links, link{j, depth})
		for _, id := range j.Children {
			if child := get(id); child != nil && !shown[child.ID] {
				down(child, depth+1)
			}
		}
	}
	down(first, 0)
	return ch
}

// json writes the job as it came from the node, with the chain as its last field.
func (ch *chain) json(w io.Writer) error {
	var out bytes.Buffer
	out.Write(bytes.TrimSuffix(bytes.TrimSpace(ch.job.text), []byte("}")))
	out.WriteString(`,"chain":[`)
	for i, l := range ch.links {
		if i > 0 {
			out.WriteByte(',')
		}
		out.Write(bytes.TrimSpace(l.text))
	}
	out.WriteString("]}\n")
	_, err := w.Write(out.Bytes())
	return err
}

// show writes the job for a person.
func (ch *chain) show(stdout io.Writer) {
	j := ch.job
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	text := func(name, value string) {
		if value != "" {
			row(name, "%s", value)
		}
	}
	row("id", "%s", j.ID)
	row("function", "%s", j.Function)
	row("state", "%s", j.State)
	text("note", j.Note)
	row("poster", "%s", j.Poster)
	row("posted", "%s, %s ago", moment(j.Posted), age(j.Age))
	text("due", moment(j.Due))
	text("ended", moment(j.Ended))
	row("attempts", "%d; %d of %d used", j.Attempts, j.Used, j.Retries+1)
	text("end", j.end())
	if j.Priority != 0 {
		row("priority", "%d", j.Priority)
	}
	text("unique", j.Unique)
	text("on", j.On)
	if j.Timeout > 0 {
		row("timeout", "%s", span(j.Timeout))
	}
	row("keep", "%s", span(j.Keep))
	text("then", j.Then)
	text("else", j.Else)
	text("finally", j.Finally)
	row("bytes", "%d in, %d out, %d stderr", j.In, j.Out, j.Err)
	w.Flush()
	if len(j.History) > 0 {
		fmt.Fprintln(stdout)
		table(stdout, "ATTEMPT\tSTARTED\tSECONDS\tWORKER\tCALL\tEND", j.attempts)
	}
	if len(ch.links) > 1 {
		fmt.Fprintln(stdout)
		table(stdout, "CHAIN\tFUNCTION\tSTATE\tATTEMPTS\tEND", ch.rows)
	}
}

// attempts writes a row for each attempt.
func (j *jobLine) attempts(w io.Writer) {
	for _, t := range j.History {
		ran := "-"
		if !t.Ended.IsZero() {
			ran = fmt.Sprintf("%.3f", t.Ended.Sub(t.Started).Seconds())
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", t.Attempt, moment(t.Started), ran, orDash(oneLine(t.Worker)), orDash(oneLine(t.Call)),
			orDash(oneLine(endText(t.Source, t.Status, t.Code, t.Message))))
	}
}

// rows writes a row for each job of the chain, indented below its parent.
func (ch *chain) rows(w io.Writer) {
	for _, l := range ch.links {
		fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\t%s\n", strings.Repeat("  ", l.depth), l.ID, oneLine(l.Function), l.State, fmt.Sprint(l.Attempts), orDash(oneLine(l.end())))
	}
}

// moment formats a time for a person, "" for none.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05.000")
}

// span formats seconds as flags take a duration.
func span(seconds float64) string {
	return formatDuration(time.Duration(seconds * float64(time.Second)))
}
