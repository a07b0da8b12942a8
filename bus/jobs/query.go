package jobs

import (
	"bytes"
	"path"
	"slices"
	"time"

	"fbus/bus/jobs/store"
)

// Filter selects jobs.
type Filter struct {
	State    State
	Function string // a glob
	Owner    string // the poster's caller; "": anybody's
}

func (f *Filter) matches(function string, state State, caller string) bool {
	if f.State != "" && f.State != state || f.Owner != "" && f.Owner != caller {
		return false
	}
	if f.Function == "" || f.Function == function {
		return true
	}
	ok, _ := path.Match(f.Function, function)
	return ok
}

// State returns a job's state now. Its record does not contain that it runs.
func (m *Manager) State(j *Job) State { return m.stateOf(j.ID, j.State) }

func (m *Manager) stateOf(id ID, recorded State) State {
	if recorded != Queued {
		return recorded
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.active[id]; a != nil && !a.started.IsZero() {
		return Running
	}
	return recorded
}

// Writing returns how long commits have waited for the disk, in all.
func (m *Manager) Writing() time.Duration { return m.store.Writing() }

// peek reads the first fields of a record, so that a list of many jobs need not decode
// them all.
func peek(value []byte) (function, state, caller string, ok bool) {
	rest := value[min(4, len(value)):]
	for _, part := range []struct {
		before string
		into   *string
	}{{`{"function":"`, &function}, {`,"state":"`, &state}, {`,"poster":{"caller":"`, &caller}} {
		if rest, ok = bytes.CutPrefix(rest, []byte(part.before)); !ok {
			return
		}
		var text []byte
		if text, rest, ok = bytes.Cut(rest, []byte(`"`)); !ok {
			return
		}
		*part.into = string(text)
	}
	return
}

// maxScan bounds how many records one snapshot of the store is used for: pages that are
// deleted in between cannot be used again before it ends.
const maxScan = 20000

// page returns jobs that match, in the order of their ids, that follow after; and the id
// to continue from, zero at the end. It may return no job before the end.
func (m *Manager) page(f *Filter, after ID, limit int) (list []*Job, next ID, err error) {
	bucket := store.BucketJobs
	if f.State == Dead {
		bucket = store.BucketDead
	}
	err = m.store.View(func(t *store.Tx) error {
		c := t.Bucket([]byte(bucket)).Cursor()
		k, _ := c.Seek(after[:])
		if k != nil && store.KeyID(k) == after {
			k, _ = c.Next()
		}
		for n := 0; k != nil; k, _ = c.Next() {
			if n++; n > maxScan || len(list) >= limit {
				next = after
				return nil
			}
			after = store.KeyID(k)
			list = m.pick(t, list, f, after)
		}
		return nil
	})
	return list, next, err
}

// pick appends a job if it matches. Of a damaged one it lists the known fields.
func (m *Manager) pick(t *store.Tx, list []*Job, f *Filter, id ID) []*Job {
	v := t.Bucket([]byte(store.BucketJobs)).Get(id[:])
	function, state, caller, ok := peek(v)
	if !ok || !f.matches(function, m.stateOf(id, State(state)), caller) {
		return list
	}
	j, err := store.DecodeJob(id, v)
	if err != nil {
		j = &Job{ID: id, Function: function, State: State(state), Poster: Poster{Caller: caller}, Last: &End{Source: "fbus", Status: 70, Code: "damaged", Message: err.Error()}}
	}
	return append(list, j)
}

// newest returns the last jobs that match, oldest first.
func (m *Manager) newest(f *Filter, limit int) (list []*Job, err error) {
	bucket := store.BucketJobs
	if f.State == Dead {
		bucket = store.BucketDead
	}
	var before []byte
	for more := true; more && len(list) < limit && err == nil; {
		err = m.store.View(func(t *store.Tx) error {
			c := t.Bucket([]byte(bucket)).Cursor()
			k, _ := c.Last()
			if before != nil {
				c.Seek(before)
				k, _ = c.Prev()
			}
			for n := 0; k != nil && n < maxScan && len(list) < limit; k, _ = c.Prev() {
				n++
				before = bytes.Clone(k)
				list = m.pick(t, list, f, store.KeyID(k))
			}
			more = k != nil
			return nil
		})
	}
	slices.Reverse(list)
	return list, err
}

// count returns how many jobs match.
func (m *Manager) count(f *Filter) (total int, err error) {
	if *f == (Filter{}) {
		return int(m.store.Jobs.Load()), nil
	}
	bucket := store.BucketJobs
	if f.State == Dead {
		bucket = store.BucketDead
	}
	var after ID
	for more := true; more && err == nil; {
		err = m.store.View(func(t *store.Tx) error {
			all := t.Bucket([]byte(store.BucketJobs))
			c := t.Bucket([]byte(bucket)).Cursor()
			k, v := c.Seek(after[:])
			for n := 0; k != nil && n < maxScan; k, v = c.Next() {
				n++
				if bucket != store.BucketJobs {
					v = all.Get(k)
				}
				if function, state, caller, ok := peek(v); ok && f.matches(function, m.stateOf(store.KeyID(k), State(state)), caller) {
					total++
				}
			}
			if more = k != nil; more {
				after = store.KeyID(k)
			}
			return nil
		})
	}
	return total, err
}

// Counts returns how many jobs are in each state, and the bytes of the store on disk. It
// reads the lists of all jobs, at most once in a few seconds.
func (m *Manager) Counts() (byState map[State]int64, bytes int64) {
	m.counting.Lock()
	defer m.counting.Unlock()
	if time.Since(m.countedAt) < countPause {
		return m.byState, m.bytes
	}
	byState = map[State]int64{}
	m.mu.Lock()
	for _, t := range m.active {
		if !t.started.IsZero() {
			byState[Running]++
		}
	}
	m.mu.Unlock()
	err := m.store.View(func(t *store.Tx) error {
		bytes = t.Size() + m.store.Spool.Used()
		for bucket, state := range map[string]State{store.BucketReady: Queued, store.BucketDue: Delayed, store.BucketDead: Dead, store.BucketEnd: ""} {
			c := t.Bucket([]byte(bucket)).Cursor()
			for k, v := c.First(); k != nil; k, v = c.Next() {
				if state == "" {
					byState[State(v[4:])]++ // after the checksum
				} else {
					byState[state]++
				}
			}
		}
		return nil
	})
	if byState[Queued] -= byState[Running]; err != nil || byState[Queued] < 0 {
		byState[Queued] = 0
	}
	m.byState, m.bytes, m.countedAt = byState, bytes, time.Now()
	return byState, bytes
}

const countPause = 5 * time.Second

// Query asks for a list of jobs.
type Query struct {
	Filter
	Limit  int  // 0: all
	After  ID   // only jobs after it
	Newest bool // of more than Limit the last, not the first
}

// List shows jobs that match, oldest first, to each until that returns an error.
func (m *Manager) List(q *Query, each func(*Info) error) (total int, err error) {
	if q.Newest && q.Limit > 0 {
		list, err := m.newest(&q.Filter, q.Limit)
		if err != nil {
			return 0, err
		}
		for _, j := range list {
			if err := each(m.Info(j, false)); err != nil {
				return 0, err
			}
		}
		return m.count(&q.Filter)
	}
	const pageSize = 1000
	shown := 0
	for after := q.After; ; {
		list, next, err := m.page(&q.Filter, after, pageSize)
		if err != nil {
			return 0, err
		}
		for _, j := range list {
			if q.Limit > 0 && shown == q.Limit {
				return m.count(&q.Filter)
			}
			shown++
			if err := each(m.Info(j, false)); err != nil {
				return 0, err
			}
		}
		if after = next; after == (ID{}) {
			return shown, nil
		}
	}
}

// Info is a job as people and programs see it. Times are dates, durations store.seconds.
type Info struct {
	ID       string    `json:"id"`
	Function string    `json:"function"`
	State    State     `json:"state"`
	Poster   string    `json:"poster"`
	Posted   time.Time `json:"posted"`
	Age      float64   `json:"age"`
	Due      time.Time `json:"due,omitzero"`     // when the delay ends
	Started  time.Time `json:"started,omitzero"` // of the last attempt
	Ended    time.Time `json:"ended,omitzero"`
	Attempts int       `json:"attempts"` // that were begun
	Used     int       `json:"used"`     // that count against Retries
	Retries  int       `json:"retries"`
	Priority int       `json:"priority"`
	Unique   string    `json:"unique,omitempty"`
	Then     string    `json:"then,omitempty"`
	Else     string    `json:"else,omitempty"`
	Finally  string    `json:"finally,omitempty"`
	Timeout  float64   `json:"timeout,omitempty"`
	Keep     float64   `json:"keep"`
	On       string    `json:"on,omitempty"`
	Worker   string    `json:"worker,omitempty"`
	Call     string    `json:"call,omitempty"` // while it runs

	Source  string `json:"source,omitempty"` // how it, or its last attempt, ended
	Status  *int   `json:"status,omitempty"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`

	In       int64     `json:"in"`
	Out      int64     `json:"out"`
	Err      int64     `json:"err"`
	Note     string    `json:"note,omitempty"`
	Parent   string    `json:"parent,omitempty"`
	Children []string  `json:"children,omitempty"`
	History  []TryInfo `json:"history,omitempty"`
}

// TryInfo is one attempt.
type TryInfo struct {
	Attempt int       `json:"attempt"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Worker  string    `json:"worker,omitempty"`
	Call    string    `json:"call,omitempty"`
	Source  string    `json:"source,omitempty"`
	Status  *int      `json:"status,omitempty"`
	Code    string    `json:"code,omitempty"`
	Message string    `json:"message,omitempty"`
}

// Info describes a job as it is now.
func (m *Manager) Info(j *Job, history bool) *Info {
	now := m.store.Clock.Wall()
	i := &Info{
		ID: j.ID.String(), Function: j.Function, State: j.State, Poster: j.Poster.Caller, Posted: time.UnixMilli(j.Posted),
		Attempts: j.Attempts, Used: j.Used, Retries: j.Retries, Priority: j.Priority, Unique: j.Unique, Then: j.Then, Else: j.Else, Finally: j.Finally,
		Timeout: j.Timeout, Keep: j.KeepTime().Seconds(), On: j.On, In: j.Input.Size + j.Taken, Out: j.Output.Size, Err: j.Stderr.Size,
		Children: j.Children,
	}
	i.Age = max(0, now.Sub(i.Posted).Seconds())
	if j.Origin != nil {
		i.Parent = j.Origin.ID
	}
	if j.State == Delayed {
		i.Due = now.Add(time.Duration(j.Due - m.store.Now())).Round(time.Millisecond)
	}
	if j.Finished > 0 {
		i.Ended = time.UnixMilli(j.Finished)
	}
	if e := j.Last; e != nil {
		i.Source, i.Status, i.Code, i.Message = e.Source, &e.Status, e.Code, e.Message
	}
	if n := len(j.Tries); n > 0 {
		i.Worker, i.Started = j.Tries[n-1].Worker, time.UnixMilli(j.Tries[n-1].Started)
	}
	tries := j.Tries
	m.mu.Lock()
	a := m.active[j.ID]
	if a != nil && !a.started.IsZero() && j.State == Queued {
		i.State, i.Worker, i.Call, i.Started, i.Attempts = Running, a.worker, a.call, a.started, a.Attempt
		tries = append(slices.Clone(tries), a.try())
	}
	m.mu.Unlock()
	if history {
		for k := range tries {
			i.History = append(i.History, tryInfo(&tries[k]))
		}
	}
	return i
}

func tryInfo(t *Try) TryInfo {
	i := TryInfo{Attempt: t.Attempt, Started: time.UnixMilli(t.Started), Worker: t.Worker, Call: t.Call, Source: t.Source, Code: t.Code, Message: t.Message}
	if t.Ended > 0 {
		i.Ended, i.Status = time.UnixMilli(t.Ended), &t.Status
	}
	return i
}
