package commands

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"fbus/bus/fanout"
)

// mapLine is a line of --json, but for its first fields: item, a string, or an
// array of them with -N, or null with call --all; and output, stdout.
type mapLine struct {
	Encoding     string  `json:"encoding,omitempty"`      // "base64" if output is not UTF-8
	ItemEncoding string  `json:"item_encoding,omitempty"` // "base64" if item is not
	File         string  `json:"file,omitempty"`          // where the output is, with -o
	Stderr       string  `json:"stderr"`
	Status       int     `json:"status"` // exit status
	Source       string  `json:"source"` // "program", "signal" or "fbus"
	Code         string  `json:"code"`   // "exit", a signal's name, or fbus's code
	Message      string  `json:"message,omitempty"`
	Worker       string  `json:"worker"`
	Seconds      float64 `json:"seconds"`
	Call         string  `json:"call"`
	Tries        int     `json:"tries"`
	WorkerID     string  `json:"worker_id,omitempty"` // of call --all: two workers may have one name
}

// printJSON writes an outcome as a line. The output may be long: it is passed
// through, not put together.
func (p *printer) printJSON(o *fanout.Outcome, end outcomeEnd) error {
	l := mapLine{
		Status: end.Status, Source: end.Source, Code: end.Code, Message: end.message, Call: end.Call,
		Worker: o.Result.Worker, Seconds: seconds(o.Took), Tries: o.Tries,
	}
	if id, ok := strings.CutPrefix(o.On, "#"); ok {
		l.WorkerID = id
	}
	if a, ok := o.Aux.(*about); ok {
		l.Stderr = a.tail.String()
		if o.Err == nil {
			l.File = a.file
		}
	}
	var item any
	item, l.ItemEncoding = itemJSON(o.Words, p.grouped)
	head, err := marshal(item)
	if err != nil {
		return err
	}
	write(p.out, &err, `{"item":`, string(head), `,"output":"`)
	if p.files == nil && err == nil {
		l.Encoding, err = writeOutput(p.out, o.Output)
	}
	rest, merr := marshal(l)
	if merr != nil {
		return merr
	}
	write(p.out, &err, `",`, string(rest[1:]), "\n")
	return err
}

// itemJSON is an item as JSON has it, an array if several make one; where that is
// not UTF-8 it is in base64.
func itemJSON(words []string, grouped bool) (item any, encoding string) {
	if len(words) == 0 {
		return nil, ""
	}
	for _, w := range words {
		if !utf8.ValidString(w) {
			encoding = "base64"
		}
	}
	list := append([]string(nil), words...)
	if encoding != "" {
		for i, w := range list {
			list[i] = base64.StdEncoding.EncodeToString([]byte(w))
		}
	}
	if grouped {
		return list, encoding
	}
	return list[0], encoding
}

// write writes texts until one fails.
func write(w io.Writer, err *error, texts ...string) {
	for _, t := range texts {
		if *err == nil {
			_, *err = io.WriteString(w, t)
		}
	}
}

// seconds is a time as the JSON lines have it.
func seconds(d time.Duration) float64 { return d.Round(time.Microsecond).Seconds() }

// marshal is [json.Marshal] without escapes for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// writeOutput writes an output as the inside of a JSON string: as it is, or in
// base64 if it is not UTF-8.
func writeOutput(w io.Writer, o *fanout.Output) (encoding string, err error) {
	text := &textWriter{to: io.Discard}
	if _, err := o.WriteTo(text); err != nil {
		return "", err
	}
	if text.valid() {
		_, err := o.WriteTo(&textWriter{to: w, escape: true})
		return "", err
	}
	enc := base64.NewEncoder(base64.StdEncoding, w)
	if _, err := o.WriteTo(enc); err != nil {
		return "", err
	}
	return "base64", enc.Close()
}

// textWriter passes UTF-8 on in whole characters, escaped for JSON if wanted.
type textWriter struct {
	to      io.Writer
	escape  bool
	partial []byte // of a character
	invalid bool
}

// maxText is how much is looked at in one piece.
const maxText = 64 << 10

// Write implements io.Writer.
func (t *textWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && !t.invalid {
		k := min(len(p), maxText)
		if err := t.pass(append(t.partial, p[:k]...)); err != nil {
			return 0, err
		}
		p = p[k:]
	}
	return n, nil
}

func (t *textWriter) pass(p []byte) error {
	end := len(p)
	for i := 1; i < utf8.UTFMax && i <= len(p); i++ {
		if c := p[len(p)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(p[len(p)-i:]) {
				end = len(p) - i
			}
			break
		}
	}
	t.partial = append(t.partial[:0:0], p[end:]...)
	if p = p[:end]; !utf8.Valid(p) {
		t.invalid = true
		return nil
	}
	if t.escape {
		quoted, err := marshal(string(p))
		if err != nil {
			return err
		}
		p = quoted[1 : len(quoted)-1]
	}
	_, err := t.to.Write(p)
	return err
}

// valid reports whether all that was written is UTF-8.
func (t *textWriter) valid() bool { return !t.invalid && len(t.partial) == 0 }
