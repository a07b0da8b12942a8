package jobs

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// The holder of a ticket has at most half of the store: others are not to be refused
// for what one of them leaves there. What each has is counted when the store is half
// full, from what is on disk, and for shareTime after that. A store that is small on
// purpose is not shared out.
const (
	shareTime  = 2 * time.Second
	sharedJobs = 1000
	sharedSize = 64 << 20
)

// portion is how much of a bound one caller may have.
func portion(most, shared int64) int64 {
	if most < shared {
		return most
	}
	return most / 2
}

type shares struct {
	mu sync.Mutex // protects of, and is held while one is counted
	of map[string]*share
}

// share is what one caller had in the store at a time, and has posted since.
type share struct {
	at    time.Time
	jobs  int64
	bytes int64
}

// allow is how many bytes more a poster may keep; negative: as many as there is room
// for, so far. An error says that he has had his share.
func (m *Manager) allow(p *Poster) (int64, error) {
	jobs, size := portion(m.store.maxJobs, sharedJobs), portion(m.store.spool.max, sharedSize)
	if !strings.HasPrefix(p.Caller, "ticket:") || m.store.jobs.Load() < jobs && m.store.spool.used.Load() < size {
		return -1, nil
	}
	m.shares.mu.Lock()
	defer m.shares.mu.Unlock()
	s, err := m.shareOf(p.Caller)
	switch {
	case err != nil:
		return 0, err
	case s.jobs >= jobs:
		return 0, &FullError{What: fmt.Sprintf("%s has %d jobs there: half of --max-jobs is the limit for one ticket", p.Caller, s.jobs)}
	case s.bytes >= size:
		return 0, errShare(p)
	}
	return size - s.bytes, nil
}

// kept adds a job to what its poster has.
func (s *shares) kept(j *Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if had := s.of[j.Poster.Caller]; had != nil {
		had.jobs++
		had.bytes += j.size()
	}
}

// shareOf is what a caller has. m.shares.mu is held.
func (m *Manager) shareOf(caller string) (*share, error) {
	s := m.shares.of[caller]
	if s != nil && time.Since(s.at) < shareTime {
		return s, nil
	}
	s = &share{at: time.Now()}
	if err := m.addUp(caller, s); err != nil {
		return nil, err
	}
	if m.shares.of == nil || len(m.shares.of) > 1000 {
		m.shares.of = map[string]*share{}
	}
	m.shares.of[caller] = s
	return s, nil
}

// sharedInput is an input that ends with an error where its poster's share does.
type sharedInput struct {
	io.Reader
	m    *Manager
	p    *Poster
	most int64 // negative: the store was not half full yet
	n    int64
}

// Read implements io.Reader.
func (in *sharedInput) Read(b []byte) (n int, err error) {
	if in.most < 0 {
		if in.most, err = in.m.allow(in.p); err != nil {
			return 0, err
		}
	}
	n, err = in.Reader.Read(b)
	if in.n += int64(n); in.most >= 0 && in.n > in.most {
		return 0, errShare(in.p)
	}
	return n, err
}

func errShare(p *Poster) error {
	return &FullError{What: fmt.Sprintf("half of --max-spool is the limit for what %s keeps there", p.Caller)}
}

// addUp counts what a caller has on disk. Most jobs of others need not be decoded.
func (m *Manager) addUp(caller string, s *share) error {
	name := []byte(`"caller":"` + caller + `"`)
	return m.store.view(func(t *tx) error {
		c := t.Bucket([]byte(bucketJobs)).Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if !bytes.Contains(v, name) {
				continue
			}
			if j, err := decodeJob(keyID(k), v); err == nil && j.Poster.Caller == caller {
				s.jobs++
				s.bytes += j.size()
			}
		}
		return nil
	})
}
