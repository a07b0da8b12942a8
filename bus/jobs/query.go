package jobs

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"fbus/bus"
	"fbus/bus/jobs/store"
	"fbus/bus/wire"
)

// Filter selects jobs.
type Filter struct {
	State    State
	Function string  // a glob
	Owner    Owner   // the zero value: anybody's
	Batch    string  // the key of a batch; "": whether they are in one or not
	Unended  bool    // of a batch: only those that have not ended
	May      MayCall // only jobs of functions that these rights contain; nil: of any
}

// MayCall are rights: a pointer, so that filters can be compared.
type MayCall interface{ MayCall(function string) bool }

// compile returns which jobs match.
func (f *Filter) compile() func(id ID, function string, state State, poster *Poster) bool {
	glob, _ := wire.ParseOn(f.Function) // it works for any name
	return func(id ID, function string, state State, poster *Poster) bool {
		return (f.State == "" || f.State == state) && (f.Owner == Owner{} || f.Owner.Owns(id, poster)) && (f.May == nil || f.May.MayCall(function)) && glob.Match(function, "")
	}
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

// maxScan bounds how many records one snapshot of the store is used for: pages that are
// deleted in between cannot be used again before it ends.
const maxScan = 20000

// scan calls visit with the jobs that match, in the order of their ids, from the first
// after one on, or backwards from the last, until visit returns false or ctx ends.
func (m *Manager) scan(ctx context.Context, f *Filter, after ID, back bool, visit func(id ID, record []byte) bool) (err error) {
	bucket, matches, prefix := store.BucketJobs, f.compile(), ""
	switch {
	case f.Batch != "" && f.Unended:
		bucket, prefix = store.BucketUnended, f.Batch+"\x00"
	case f.Batch != "":
		bucket, prefix = store.BucketBatch, f.Batch+"\x00"
	case f.State == Dead:
		bucket = store.BucketDead
	}
	for more := true; more && err == nil; {
		err = m.store.View(func(t *store.Tx) error {
			more = false
			records, list := t.Bucket([]byte(store.BucketJobs)), t.Bucket([]byte(bucket))
			if list == nil {
				return nil
			}
			c := list.Cursor()
			step, at := c.Next, append([]byte(prefix), after[:]...)
			if back {
				step = c.Prev
				if after == (ID{}) {
					at = append([]byte(prefix), lastID[:]...)
				}
			}
			k, _ := c.Seek(at)
			switch {
			case back && k == nil:
				k, _ = c.Last()
			case back, bytes.Equal(k, at):
				k, _ = step()
			}
			for n := 0; bytes.HasPrefix(k, []byte(prefix)) && k != nil; k, _ = step() {
				if n++; n > maxScan {
					more = true
					return nil
				}
				if n%256 == 0 && ctx.Err() != nil {
					return ctx.Err()
				}
				after = store.KeyID(k)
				v := records.Get(after[:])
				function, state, poster, ok := store.Peek(v)
				if ok && matches(after, function, m.stateOf(after, state), &poster) && !visit(after, v) {
					break
				}
			}
			return nil
		})
	}
	return err
}

// lastID is greater than every id.
var lastID = ID(bytes.Repeat([]byte{0xFF}, 16))

// page returns the first jobs that match after one. Of a damaged job it has the known
// fields.
func (m *Manager) page(ctx context.Context, f *Filter, after ID, limit int) (list []*Job, err error) {
	err = m.scan(ctx, f, after, false, func(id ID, record []byte) bool {
		j, err := store.DecodeJob(id, record)
		if err != nil {
			function, state, poster, _ := store.Peek(record)
			end := endOfDamaged(err)
			j = &Job{ID: id, Function: function, State: state, Poster: poster, Last: &end}
		}
		list = append(list, j)
		return len(list) < limit
	})
	return list, err
}

// each calls visit with pages of the jobs that match after one, until it returns an error.
func (m *Manager) each(ctx context.Context, f *Filter, after ID, size int, visit func(list []*Job) error) error {
	for {
		list, err := m.page(ctx, f, after, size)
		if err == nil && len(list) > 0 {
			after = list[len(list)-1].ID
			err = visit(list)
		}
		if err != nil || len(list) < size {
			return err
		}
	}
}

// pageSize is how many jobs are read, changed or deleted at once. listSize is how many are
// read at once for a list: 1,000 lists may be under way, and a job has a history.
const (
	pageSize = 2000
	listSize = 100
)

// count returns how many jobs match.
func (m *Manager) count(ctx context.Context, f *Filter) (total int, err error) {
	if *f == (Filter{}) {
		return int(m.store.Shares.Total().Jobs), nil
	}
	err = m.scan(ctx, f, ID{}, false, func(ID, []byte) bool { total++; return true })
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
		bytes = t.Size() + m.store.Shares.Total().Bytes
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

// List shows jobs that match, oldest first, to each until that returns an error or ctx ends.
func (m *Manager) List(ctx context.Context, q *Query, each func(*Job, *bus.JobInfo) error) (total int, err error) {
	shown := 0
	show := func(list []*Job) error {
		for _, j := range list {
			if q.Limit > 0 && shown == q.Limit {
				return errLimit
			}
			shown++
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := each(j, m.Info(j, false)); err != nil {
				return err
			}
		}
		return nil
	}
	after := q.After
	if q.Newest && q.Limit > 0 {
		n := 0
		after = ID{}
		err = m.scan(ctx, &q.Filter, ID{}, true, func(id ID, _ []byte) bool { // to the last job that is not shown
			if n++; n > q.Limit {
				after = id
			}
			return n <= q.Limit
		})
	}
	if err == nil {
		err = m.each(ctx, &q.Filter, after, listSize, show)
	}
	if err == nil && q.Newest && q.Limit > 0 {
		err = errLimit
	}
	if err == errLimit {
		return m.count(ctx, &q.Filter)
	}
	return shown, err
}

// errLimit ends a list that has as many jobs as were asked for.
var errLimit = errors.New("that is all")

// Info describes a job as it is now.
func (m *Manager) Info(j *Job, history bool) *bus.JobInfo {
	now := m.store.Clock.Wall()
	i := &bus.JobInfo{
		ID: j.ID.String(), Function: j.Function, State: j.State, Poster: j.Poster.Caller, Owner: j.Poster.Owner, Posted: time.UnixMilli(j.Posted),
		Attempts: j.Attempts, Used: j.Used, Lost: j.Lost, Retries: j.Retries, Priority: j.Priority, Unique: j.Unique, UniqueFor: j.UniqueFor, Then: j.Then, Else: j.Else, Finally: j.Finally,
		Timeout: j.Timeout, Keep: j.KeepTime().Seconds(), On: j.On, In: j.Input.Size + j.Taken, Out: j.Output.Size, Err: j.Stderr.Size,
		Children: j.Children, AtMostOnce: j.AtMostOnce, Batch: j.Batch, Item: j.Item, ItemEncoding: j.ItemEncoding,
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
		i.JobEnd = bus.JobEnd{Source: e.Source, Status: &e.Status, Code: e.Code, Message: e.Message}
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

func tryInfo(t *Try) bus.JobTry {
	i := bus.JobTry{Attempt: t.Attempt, Started: time.UnixMilli(t.Started), Worker: t.Worker, Call: t.Call}
	i.Source, i.Code, i.Message = t.Source, t.Code, t.Message
	if t.Ended > 0 {
		i.Ended = time.UnixMilli(t.Ended)
	}
	if t.Source != "" { // when it was lost with the node, it is not known when it ended
		i.Status = &t.Status
	}
	return i
}
