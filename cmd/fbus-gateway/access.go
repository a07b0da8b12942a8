package main

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/paths"
)

const (
	maxLog     = 16 << 20 // of the access log, before it is renamed
	maxPending = 1 << 20  // lines that wait for the disk; more are dropped
	logPause   = 200 * time.Millisecond
)

// access is a line of the access log. It has no query and no header: they may have secrets.
type access struct {
	Time    time.Time `json:"time"`
	From    string    `json:"from,omitempty"`
	Peer    string    `json:"peer,omitempty"` // the proxy that has passed it on
	Caller  string    `json:"caller"`
	Method  string    `json:"method"`
	Path    string    `json:"path"`
	Status  int       `json:"status"` // 0: the answer was cut off before it began
	Out     int64     `json:"out"`
	Seconds float64   `json:"seconds"`
	Call    string    `json:"call,omitempty"`
	Cut     bool      `json:"cut,omitempty"` // the answer is not complete
}

// accessLog writes what was asked, by whom.
type accessLog struct {
	path string
	file *calllog.File
	note func(format string, a ...any)

	mu      sync.Mutex // protects what follows
	pending []byte
	lost    int
	stop    chan struct{}
	ended   chan struct{}
}

// openAccessLog opens the log, and begins to write it.
func openAccessLog(path string, note func(format string, a ...any)) (*accessLog, error) {
	f, err := calllog.OpenFile(path, func() (*os.File, error) { return paths.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600) })
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "the access log: %v", err)
	}
	l := &accessLog{path: path, file: f, note: note, stop: make(chan struct{}), ended: make(chan struct{})}
	go l.write() // ends with stop
	return l, nil
}

// add adds a request that has been served.
func (l *accessLog) add(r *http.Request, what *request, w *loggedWriter, cut bool) {
	from, peer := r.RemoteAddr, ""
	if l := connOf(r).from; l.local {
		from = ""
	} else if at, err := netip.ParseAddrPort(from); err == nil && within(at.Addr(), l.proxies) {
		if client := forwarded(r.Header["X-Forwarded-For"], l.proxies); client.IsValid() {
			from, peer = client.String(), from
		}
	}
	line, err := json.Marshal(access{
		Time: what.began.UTC(), From: from, Peer: peer, Caller: what.caller.shown(), Method: args.Shown(r.Method), Path: args.HideSecrets(args.Shown(r.URL.Path)),
		Status: w.status, Out: w.out, Seconds: time.Since(what.began).Seconds(), Call: what.call, Cut: cut,
	})
	if err == nil {
		l.mu.Lock()
		if len(l.pending) < maxPending {
			l.pending = append(append(l.pending, args.SafeJSON(line)...), '\n')
		} else {
			l.lost++
		}
		l.mu.Unlock()
	}
}

// forwarded returns the client that trusted proxies name: the last address that is not one of theirs. What is
// before it may be the client's invention.
func forwarded(header []string, proxies []netip.Prefix) netip.Addr {
	if len(proxies) == 0 {
		return netip.Addr{}
	}
	list := strings.Split(strings.Join(header, ","), ",")
	for _, word := range slices.Backward(list) {
		word = strings.TrimSpace(word)
		ip, err := netip.ParseAddr(strings.Trim(word, "[]"))
		if at, aerr := netip.ParseAddrPort(word); aerr == nil {
			ip, err = at.Addr(), nil
		}
		if err == nil && !within(ip, proxies) {
			return ip.Unmap().WithZone("")
		}
	}
	return netip.Addr{}
}

// write writes lines until the log is closed.
func (l *accessLog) write() {
	defer close(l.ended)
	tick := time.NewTicker(logPause)
	defer tick.Stop()
	var lines []byte
	for said, last := "", false; !last; {
		select {
		case <-tick.C:
		case <-l.stop:
			last = true
		}
		l.mu.Lock()
		written, lost := lines[:0], l.lost
		lines = l.pending
		l.pending, l.lost = written, 0
		l.mu.Unlock()
		if len(lines) == 0 {
			continue
		}
		if st, err := os.Stat(l.path); err == nil && st.Size() > maxLog {
			os.Rename(l.path, l.path+".1")
		}
		_, err := l.file.Write(lines)
		if err == nil && lost > 0 {
			l.note("the access log: %d lines were lost", lost)
		}
		if err == nil {
			said = ""
		} else if err.Error() != said {
			said = err.Error()
			l.note("the access log: %v", err)
		}
	}
	l.file.Close()
}

func (l *accessLog) close() {
	if l == nil {
		return
	}
	close(l.stop)
	<-l.ended
}

// loggedWriter counts what is answered.
type loggedWriter struct {
	http.ResponseWriter
	what   *request
	status int
	out    int64
}

// begin notes the status. A client without a credential cannot hold the connection by not reading the answer.
func (w *loggedWriter) begin(status int) {
	w.status = status
	if w.what.caller == nil {
		http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(answerTime))
	}
}

func (w *loggedWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.begin(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *loggedWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.begin(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.out += int64(n)
	return n, err
}

// Unwrap serves [http.ResponseController].
func (w *loggedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
