package commands

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"fbus/bus"
)

// callLog writes records from a goroutine of its own, so that a slow disk does
// not hold up the node. If it falls far behind, records are dropped and the
// number is said.
type callLog struct {
	records chan *logLine
	done    chan struct{}
	out     io.WriteCloser
	stderr  io.Writer

	mu      sync.Mutex // protects dropped
	dropped int
}

// logLine is one line of the log.
type logLine struct {
	Time     time.Time `json:"time"`
	ID       string    `json:"id"`
	Caller   string    `json:"caller"`
	Function string    `json:"function"`
	Worker   string    `json:"worker"`
	Waited   float64   `json:"waited"`
	Ran      float64   `json:"ran"`
	In       int64     `json:"in"`
	Out      int64     `json:"out"`
	Source   string    `json:"source"`
	Status   int       `json:"status"`
	Code     string    `json:"code"`
}

// openLog opens the log; the nil log of no name records nothing.
func openLog(name string, stdout, stderr io.Writer) (*callLog, error) {
	if name == "" {
		return nil, nil
	}
	l := &callLog{records: make(chan *logLine, logBacklog), done: make(chan struct{}), stderr: stderr}
	if name == "-" {
		l.out = nopCloser{stdout}
	} else {
		f, err := openFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fail(exitInternal, "log: %v", pathReason(err))
		}
		l.out = f
	}
	go l.write() // ends when the log is closed
	return l, nil
}

type nopCloser struct{ io.Writer }

func (l *callLog) record() func(*bus.LogEntry) {
	if l == nil {
		return nil
	}
	return func(e *bus.LogEntry) {
		r := &logLine{e.Time, e.Call, e.Caller, e.Function, e.Worker, e.Waited, e.Ran, e.In, e.Out, e.Source, e.Status, e.Code}
		select {
		case l.records <- r:
		default:
			l.mu.Lock()
			l.dropped++
			l.mu.Unlock()
		}
	}
}

// write writes lines as they come, flushed whenever none is waiting.
func (l *callLog) write() {
	defer close(l.done)
	w := bufio.NewWriter(l.out)
	enc := json.NewEncoder(w)
	failed := false
	for r := range l.records {
		err := enc.Encode(r)
		if len(l.records) == 0 {
			err = errors.Join(err, w.Flush())
		}
		if err != nil {
			if !failed {
				say(l.stderr, fmt.Sprintf("log: %v: calls are not logged until it can be written again", err))
			}
			w.Reset(l.out) // a failed buffer stays failed
		}
		failed = err != nil
		l.mu.Lock()
		if l.dropped > 0 && len(l.records) == 0 {
			say(l.stderr, fmt.Sprintf("log: too slow: %d calls are missing from it", l.dropped))
			l.dropped = 0
		}
		l.mu.Unlock()
	}
	w.Flush()
}

func (l *callLog) close() {
	if l == nil {
		return
	}
	close(l.records)
	<-l.done
	l.out.Close()
}
