package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
)

// events is the answer to a call as events of a stream (the HTML standard, section 9.2): stdout, stderr,
// progress and end.
type events struct {
	w http.ResponseWriter

	mu  sync.Mutex // protects what follows, and the writing
	err error      // of writing
}

// pulse is how often an event stream without events shows that it is alive.
const pulse = 15 * time.Second

// begin sends the header. The function that it returns ends the stream.
func (e *events) begin() (end func()) {
	e.w.Header().Set("Content-Type", "text/event-stream")
	e.w.WriteHeader(http.StatusOK)
	e.send(": fbus\n\n")
	tick := time.NewTicker(pulse)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(stopped)
		for {
			select {
			case <-tick.C:
				e.send(": fbus\n\n")
			case <-stop:
				return
			}
		}
	}()
	return func() {
		tick.Stop()
		close(stop)
		<-stopped
		e.mu.Lock()
		defer e.mu.Unlock()
		e.err = errLeft // a call that was given up may still have stderr
	}
}

func (e *events) send(text string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		_, e.err = e.w.Write([]byte(text))
	}
	if e.err == nil {
		e.err = http.NewResponseController(e.w).Flush()
	}
	return e.err
}

// event sends data. Its lines cannot have a carriage return.
func (e *events) event(name string, data []byte) error {
	text := "event: " + name + "\n"
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		text += "data: " + string(line) + "\n"
	}
	return e.send(text + "\n")
}

func (e *events) document(name string, v any) error {
	doc, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return e.event(name, args.SafeJSON(doc))
}

// endEvent is the data of the event end.
type endEvent struct {
	Source  string `json:"source"`
	Status  int    `json:"status"`
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
	Call    string `json:"call,omitempty"`
	Worker  string `json:"worker,omitempty"`
}

func (e *events) end(res bus.Result, err error) error {
	end := endOf(res, err)
	if end.Code == "" {
		end.Code = "exit"
	}
	return e.document("end", endEvent{end.Source.String(), end.Status, end.Code, args.OneLine(end.Message), res.Call, args.OneLine(res.Worker)})
}

// stream sends a stream of a call as events. Bytes that are not text are in base64, in an event of another
// name: lines of UTF-8 are all that an event can have.
type stream struct {
	to   *events
	name string

	mu   sync.Mutex // protects what follows: the call may be given up while it writes
	rest []byte     // the beginning of a character
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data := append(s.rest, p...)
	s.rest = nil
	for n := 1; n < utf8.UTFMax && n <= len(data); n++ {
		if tail := data[len(data)-n:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				s.rest = bytes.Clone(tail)
				data = data[:len(data)-n]
			}
			break
		}
	}
	return len(p), s.flush(data)
}

// close sends what is left.
func (s *stream) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := s.rest
	s.rest = nil
	return s.flush(rest)
}

// flush sends data. s.mu is held.
func (s *stream) flush(data []byte) error {
	switch {
	case len(data) == 0:
		return nil
	case utf8.Valid(data) && !bytes.ContainsAny(data, "\r\x00"):
		return s.to.event(s.name, data)
	}
	return s.to.event(s.name+".base64", base64.StdEncoding.AppendEncode(nil, data))
}
