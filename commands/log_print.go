package commands

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/calllog"
)

// logPrinter prints entries as they come.
type logPrinter struct {
	w      io.Writer
	json   bool
	follow bool // columns cannot be measured before they are printed
	begun  bool // the heading was printed
	widths [5]int
}

var logHead = [6]string{"TIME", "CALLER", "FUNCTION", "WORKER", "SECONDS", "END"}

// print prints entries in one write, so that a concurrent reader sees whole lines.
func (p *logPrinter) print(entries []logEntry) error {
	if len(entries) == 0 {
		return nil
	}
	var out bytes.Buffer
	switch {
	case p.json:
		for _, e := range entries {
			out.Write(bytes.TrimSuffix(e.text, []byte{'\n'}))
			out.WriteByte('\n')
		}
	case p.follow:
		p.rows(entries, p.padded(&out))
	default:
		w := tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
		p.rows(entries, func(row [6]string) { fmt.Fprintln(w, strings.Join(row[:], "\t")) })
		w.Flush()
	}
	_, err := p.w.Write(out.Bytes())
	return err
}

func (p *logPrinter) rows(entries []logEntry, row func([6]string)) {
	if !p.begun {
		row(logHead)
		p.begun = true
	}
	for i := range entries {
		row(logRow(&entries[i].LogEntry))
	}
}

// padded returns a function that writes rows. Each column is as wide as the widest cell
// so far, except for an outlier.
func (p *logPrinter) padded(out *bytes.Buffer) func([6]string) {
	if p.widths[0] == 0 {
		p.widths = [5]int{len("2006-01-02 15:04:05.000"), 10, 12, 10, 7}
	}
	return func(row [6]string) {
		for i := range p.widths {
			if n := utf8.RuneCountInString(row[i]); n <= 40 {
				p.widths[i] = max(p.widths[i], n)
			}
			fmt.Fprintf(out, "%-*s  ", p.widths[i], row[i])
		}
		fmt.Fprintln(out, row[5])
	}
}

// logRow is an entry for people: local time, caller, function, worker, seconds with
// the worker, end.
func logRow(e *bus.LogEntry) [6]string {
	row := [6]string{
		e.Time.Local().Format("2006-01-02 15:04:05.000"),
		orDash(e.Caller), orDash(e.Function), orDash(e.Worker), "-", logEnd(e),
	}
	if e.Worker != "" {
		row[4] = strconv.FormatFloat(e.Ran, 'f', 3, 64)
	}
	for i := range row {
		row[i] = oneLine(row[i]) // tabs as well, which would shift the columns
	}
	return row
}

// logEnd describes the end of a call: "exit 0", "signal KILL", "busy: WHY", "refused:
// revoked: ticket ci (SERIAL) from 10.0.0.5".
func logEnd(e *bus.LogEntry) string {
	if end := programEnd(e.Source, e.Status, e.Code); e.Event == calllog.EventCall && end != "" {
		return end
	}
	var parts []string
	if e.Event != calllog.EventCall && e.Event != calllog.EventDropped {
		parts = append(parts, cmp.Or(e.Event, "?"))
	}
	for _, s := range []string{e.Code, logTicket(e), e.Message} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// programEnd describes a program's end. It returns "" if fbus ended the program.
func programEnd(source string, status int, code string) string {
	switch source {
	case "program":
		return fmt.Sprintf("exit %d", status)
	case "signal":
		return "signal " + strings.TrimPrefix(code, "SIG")
	}
	return ""
}

// logTicket describes the ticket and the peer's address.
func logTicket(e *bus.LogEntry) string {
	var words []string
	if e.Name != "" {
		words = append(words, "ticket "+e.Name)
	}
	switch {
	case e.Serial != "" && e.Name != "":
		words = append(words, "("+e.Serial+")")
	case e.Serial != "":
		words = append(words, "serial "+e.Serial)
	}
	if e.From != "" && e.Event != calllog.EventCall {
		words = append(words, "from "+e.From)
	}
	return strings.Join(words, " ")
}
