package exec

import "time"

// gone says that nothing of p is left but what it said, which its last call
// reads.
func (s *residents) gone(p *resident) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, p)
	p.buried = true
	s.retiring--
	if p.held == 0 {
		p.replies.file.Close()
	}
	s.pump()
}

// endIdle ends processes that had no call for long. The next call starts one.
func (s *residents) endIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = nil
	if s.closed {
		return
	}
	before := time.Now().Add(-s.f.spec.MaxIdle)
	var next time.Time
	for i := len(s.free) - 1; i >= 0; i-- {
		p := s.free[i]
		switch {
		case p.held > 0:
		case !p.since.After(before):
			s.remove(p)
			p.retire()
		case next.IsZero() || p.since.Before(next):
			next = p.since
		}
	}
	if !next.IsZero() {
		s.idle = time.AfterFunc(next.Sub(before), s.endIdle)
	}
}

// setNode replaces processes that know another node, each after its calls.
func (s *residents) setNode(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if node == s.node {
		return
	}
	s.node = node
	for p := range s.all {
		if p.node != node && s.remove(p) {
			s.owed++
			if p.held == 0 {
				p.retire()
			}
		}
	}
	s.pump()
}

// kill kills every process that holds a call or is on its way out, and ends
// the waiting of those that have none.
func (s *residents) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse(errKilled)
	for p := range s.all {
		switch {
		case p.held > 0:
			p.kill()
		case p.dropped:
			p.tell(msgKill)
		}
	}
}

// close ends all processes: the end of their input, the grace, KILL. No call
// is held any more.
func (s *residents) close(killed bool) {
	s.mu.Lock()
	s.closed = true
	for _, t := range []*time.Timer{s.pause, s.idle} {
		if t != nil {
			t.Stop()
		}
	}
	for p := range s.all {
		s.remove(p)
		p.retire()
		if killed {
			p.tell(msgKill)
		}
	}
	s.mu.Unlock()
	defer time.AfterFunc(s.f.spec.Grace, s.kill).Stop()
	s.watched.Wait()
}
