package vectors

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"fbus/bus/testdata"
)

// Wrong is a line of wrong.jsonl.
type Wrong struct {
	Name     string
	Rules    []string
	From, To string
	State    string
	Send     []any
	Should   bool // what has to happen is only recommended
	Then     struct {
		Error  string
		Drop   bool
		Frames []any
	}
}

// Transcript is a file in transcripts/.
type Transcript struct {
	Name  string `json:"transcript"`
	About string
	Rules []string
	Plays []string // who can be judged by it
	Lines []Line   `json:"-"`
}

// Line is what follows the first line of a transcript.
type Line struct {
	From, To string
	Frame    any
	Close    bool
	Node     string // what the node is asked to do: drain, stop
}

// decodeLines calls f for each line of a file.
func decodeLines(file string, f func(i int, d *json.Decoder) error) error {
	text, err := fs.ReadFile(testdata.Files, file)
	if err != nil {
		return err
	}
	scan := bufio.NewScanner(bytes.NewReader(text))
	scan.Buffer(nil, 1<<20)
	for i := 0; scan.Scan(); i++ {
		d := json.NewDecoder(bytes.NewReader(scan.Bytes()))
		d.DisallowUnknownFields()
		if err := f(i, d); err != nil {
			return fmt.Errorf("%s, line %d: %w", file, i+1, err)
		}
	}
	return scan.Err()
}

// ReadWrong returns the lines of wrong.jsonl that judge a side: "node", "caller" or "worker".
func ReadWrong(to string) (list []*Wrong, err error) {
	err = decodeLines("wrong.jsonl", func(_ int, d *json.Decoder) error {
		w := &Wrong{}
		err := d.Decode(w)
		if w.To == to {
			list = append(list, w)
		}
		return err
	})
	return list, err
}

// ReadTranscripts returns the transcripts that judge a side.
func ReadTranscripts(side string) (list []*Transcript, err error) {
	files, err := fs.Glob(testdata.Files, "transcripts/*.jsonl")
	for _, file := range files {
		t := &Transcript{}
		err = errors.Join(err, decodeLines(file, func(i int, d *json.Decoder) error {
			if i == 0 {
				return d.Decode(t)
			}
			var l Line
			err := d.Decode(&l)
			t.Lines = append(t.Lines, l)
			return err
		}))
		if file != "transcripts/"+t.Name+".jsonl" || t.About == "" {
			err = errors.Join(err, fmt.Errorf("%s: its first line does not describe it", file))
		}
		if slices.Contains(t.Plays, side) {
			list = append(list, t)
		}
	}
	return list, err
}

// F writes a frame in notation.
func F(elements ...any) []any {
	for i, v := range elements {
		if n, ok := v.(int); ok {
			elements[i] = float64(n)
		}
	}
	return elements
}

// Call is a CALL without arguments or input.
func Call(id int, name string, flags int) []any {
	return F(5, id, name, 0, NewBin(nil), NewBin(nil), flags)
}

// Judge sends the frames of a line and returns an error if something else happens than has to.
// probe is a frame that is right, and answer what it gets: all that is sent for the line has come by
// then.
func (w *Wrong) Judge(c *Conn, probe, answer any) error {
	all, sent := c.encode(w.Send), make(chan struct{})
	go func() { // ends when all was read, or the connection is closed
		defer close(sent)
		c.Conn.Write(all)
	}()
	if w.Then.Error != "" {
		code, err := c.Ended()
		if err == nil && code != w.Then.Error {
			err = fmt.Errorf("closed with the code %q, not %q", code, w.Then.Error)
		}
		c.Close()
		<-sent
		return err
	}
	<-sent // an answer fits the buffers of the kernel
	for _, f := range w.Then.Frames {
		if _, err := c.Expect(f); err != nil {
			return err
		}
	}
	c.Send(probe)
	_, err := c.Expect(answer)
	return err
}

// Connect makes another connection to the node that is judged.
type Connect func() (*Conn, error)

// AtNode brings a connection to a node into the state of a line, and judges the node.
func (w *Wrong) AtNode(connect Connect) error {
	c, err := connect()
	if err != nil {
		return err
	}
	caller, worker := c, c
	if w.State != "connected" {
		other, err := connect()
		if err != nil {
			return err
		}
		if w.From == "worker" {
			caller = other
		} else {
			worker = other
		}
		if err := w.reach(caller, worker); err != nil {
			return fmt.Errorf("before the check: %w", err)
		}
	}
	if w.From == "worker" {
		return w.Judge(c, F(3, 999, "probe", 0), F(4, 999, ""))
	}
	return w.Judge(c, Call(1000, "nothing", 1), F(10, 1000, 2, 69, "no_function"))
}

func (w *Wrong) reach(caller, worker *Conn) error {
	var errs []error
	expect := func(c *Conn, pattern any) {
		if len(errs) == 0 {
			if _, err := c.Expect(pattern); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for _, c := range []*Conn{caller, worker} {
		c.Send(F(1, 1, 0, "", "", "conformance"))
		expect(c, F(1, 1))
	}
	worker.Send(F(3, 1, "hold", 1))
	expect(worker, F(4, 1, ""))
	flags := 0
	if w.State == "whole" {
		flags = 1
	}
	if w.State != "open" {
		caller.Send(Call(1, "hold", flags))
		expect(worker, F(5, 1, "hold"))
	}
	switch w.State {
	case "queued":
		caller.Send(Call(2, "hold", 0))
	case "ended":
		worker.Send(F(10, 1, 0, 0, "exit"))
		expect(caller, F(10, 1))
	}
	return errors.Join(errs...)
}
