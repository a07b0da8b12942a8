package node

import (
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/wire"
)

// maxProgress bounds how many reports of a call are passed on in a second.
const maxProgress = 10

// progress is the last report of how far a call is.
type progress struct {
	bus.Progress
	second time.Time // when the current second began
	passed int       // reports in it that were passed on
}

// last returns the last report for people; nil: there was none.
func (p *progress) last() *bus.Progress {
	if p == nil {
		return nil
	}
	report := p.Progress
	return &report
}

// handleProgress keeps a worker's report, and passes it on to a caller that takes such and keeps
// up. n.mu is held.
func (s *session) handleProgress(b *wire.Batch, f *wire.ProgressFrame) error {
	c, err := s.outgoing(f, f.ID)
	if c == nil || c.state.ended() {
		return err
	}
	p := c.progress
	if p == nil {
		p = &progress{}
		c.progress = p
	}
	p.Progress = bus.Progress{Done: f.Done, Total: f.Total, Text: args.Shown(f.Text)}
	s.node.changes.call(c)
	if c.posted != nil {
		c.posted.job.Reported.Store(&jobs.Reported{Progress: p.Progress, At: time.Now()})
	}
	if now := time.Now(); now.Sub(p.second) >= time.Second {
		p.second, p.passed = now, 0
	}
	to := c.session
	if p.passed++; p.passed > maxProgress || !to.progress || to.conn == nil || to.stalled() {
		return nil
	}
	f.ID = c.id
	b.Send(to.conn, f)
	return nil
}

// note adds to a job why it waits, or how far it is. What was posted is shown to its poster and to
// administrators alone.
func (q *asked) note(j *jobs.Job, i *bus.JobInfo, one bool) {
	i.Note = q.whyWaits(j, i, one)
	if !q.peer.admin() && !q.peer.posted(j.ID, &j.Poster) {
		i.Item, i.ItemEncoding = "", ""
	}
	if i.State != jobs.Running {
		return
	}
	n := q.node
	id, _ := jobs.ParseID(i.ID)
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.posted[id]; c != nil {
		i.Progress = c.progress.last()
	}
}
