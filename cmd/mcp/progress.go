package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"fbus/bus"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	// progressPause is the shortest time between two notifications of a call.
	progressPause = time.Second
	// heartbeat is the longest one: clients give up after a minute of silence.
	heartbeat = 10 * time.Second
)

// progress notifies a client of how far a call is: of what its function reports, of the last line on
// stderr, or that it is still there.
type progress struct {
	ctx     context.Context
	session *sdk.ServerSession
	token   any
	started time.Time
	more    chan struct{} // has room for one: there is something new
	over    chan struct{}
	done    chan struct{} // closed when nothing is sent any more

	mu      sync.Mutex // protects the fields below
	last    float64    // that was sent; -1: none
	count   float64    // as the function counts
	total   float64
	text    string
	waiting bool
}

func newProgress(ctx context.Context, session *sdk.ServerSession, token any) *progress {
	p := &progress{ctx: ctx, session: session, token: token, started: time.Now(), more: make(chan struct{}, 1), over: make(chan struct{}), done: make(chan struct{}), last: -1}
	go p.run() // ends at stop
	return p
}

// line takes a line of stderr.
func (p *progress) line(text []byte) {
	line := strings.TrimSpace(plain(string(text)))
	if line == "" {
		return
	}
	p.mu.Lock()
	p.text = shorten(line, 500)
	p.mu.Unlock()
	p.wake()
}

// report takes a line of fbus.wait.
func (p *progress) report(text []byte) {
	var w bus.WaitInfo
	if json.Unmarshal(text, &w) != nil {
		return
	}
	p.mu.Lock()
	p.waiting = w.Running == 0 && w.Done+w.Dead+w.Cancelled == 0
	r := w.Progress
	if r != nil {
		p.count, p.total = float64(r.Done), float64(r.Total)
		if r.Text != "" {
			p.text = shorten(plain(r.Text), 500)
		}
	}
	p.mu.Unlock()
	if r != nil {
		p.wake()
	}
}

func (p *progress) wake() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// run sends what is new, at most once in each pause, and a heartbeat.
func (p *progress) run() {
	defer close(p.done)
	var sent time.Time
	beat := time.NewTimer(heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-p.more:
		case <-beat.C:
		case <-p.over:
			return
		}
		select {
		case <-time.After(time.Until(sent.Add(progressPause))):
		case <-p.over:
			return
		}
		p.session.NotifyProgress(p.ctx, p.next()) // if it fails the client has gone
		sent = time.Now()
		beat.Reset(heartbeat)
	}
}

// next makes the next notification. Its number is greater than the last one, as the protocol demands.
func (p *progress) next() *sdk.ProgressNotificationParams {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := &sdk.ProgressNotificationParams{ProgressToken: p.token, Message: p.text, Total: p.total}
	switch {
	case p.count > p.last && (p.total > 0 || p.count > 0):
		p.last = p.count
	case p.last < 0:
		p.last = 0
	case p.total > 0 || p.count > 0: // the function counts, and this is about something else
		p.last += 0.001
	default:
		p.last++
	}
	n.Progress = p.last
	n.Total = max(p.total, 0)
	if n.Total > 0 && n.Progress > n.Total {
		n.Total = n.Progress
	}
	switch {
	case p.waiting:
		n.Message = fmt.Sprintf("waiting for a worker, for %s", time.Since(p.started).Round(time.Second))
	case n.Message == "":
		n.Message = fmt.Sprintf("running for %s", time.Since(p.started).Round(time.Second))
	}
	return n
}

// stop ends the notifications: none comes after the answer.
func (p *progress) stop() {
	close(p.over)
	<-p.done
}
