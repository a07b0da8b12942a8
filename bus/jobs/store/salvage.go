package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
)

// salvage carries what is good in a damaged file over to a new one. The damaged file is
// set aside as it is, under a name that contains the time.
type salvage struct {
	*Store
	db      *bolt.DB        // the new file
	t       *Tx             // on it
	n       int             // entries written
	err     error           // of the new file: damage of the old one ends nothing
	listed  map[ID]string   // the bucket that lists a job: ready, due, end or dead
	batches map[ID]string   // the key of its batch
	known   map[ID]string   // every id in the file, and its function where it is known
	partial map[string]bool // damaged buckets
	carried map[ID]bool
	doubt   []ID // carried over, and not run
	lost    []ID
}

func (s *Store) salvageFile(path string, why error) error {
	s.warn("%s is damaged: %v", path, why)
	w := &salvage{Store: s, listed: map[ID]string{}, batches: map[ID]string{}, known: map[ID]string{}, partial: map[string]bool{}, carried: map[ID]bool{}}
	aside := fmt.Sprintf("%s.damaged-%s", path, s.Clock.Wall().UTC().Format("20060102T150405.000"))
	if err := s.replace(path, aside, func(to *bolt.DB) error { return w.run(to, path) }); err != nil {
		return Wrap(err)
	}
	s.mended = true
	s.warn("%s was replaced: it has %d jobs of the damaged file, which is kept as %s", path, len(w.carried)-len(w.lost), aside)
	s.warnEach(w.lost, "is lost: its record was damaged")
	s.warnEach(w.doubt, "is kept, and not run: whether it has run is unknown; fbus retry runs it")
	s.warn("other jobs may be lost: requests for a missing job that was posted before now are answered with that")
	return nil
}

// maxNamed bounds how many jobs are named one by one.
const maxNamed = 1000

func (s *Store) warnEach(ids []ID, what string) {
	for _, id := range ids[:min(len(ids), maxNamed)] {
		s.warn("job %s %s", id, what)
	}
	if n := len(ids) - maxNamed; n > 0 {
		s.warn("the same is true of %d more jobs", n)
	}
}

func (w *salvage) run(to *bolt.DB, path string) error {
	b, err := to.Begin(true)
	if err != nil {
		return err
	}
	w.db, w.t = to, &Tx{b, w.Store}
	defer func() { w.t.Rollback() }()
	if err := errors.Join(w.t.found(), w.t.Put(BucketMeta, []byte("loss"), strconv.AppendInt(nil, w.Clock.Wall().UnixMilli(), 10))); err != nil {
		return err
	}
	readPages(path, func(p *pages) {
		for _, bucket := range []string{BucketReady, BucketDue, BucketEnd, BucketDead, BucketUnique, BucketMeta, BucketBatch, BucketThen, BucketJobs, BucketData, BucketRun} {
			damage := p.bucket(bucket, func(k, sealed []byte) {
				if v, ok := unseal(bucket, k, sealed); !ok {
					p.bad("%w", errChecksum)
				} else if w.err == nil {
					w.step(w.carry(bucket, k, v))
				}
			})
			w.partial[bucket] = damage != nil
		}
	})
	names, _ := w.Spool.names()
	for _, name := range names {
		w.note(fileID(name))
	}
	w.addLost()
	if w.err == nil {
		w.err = w.t.Commit()
	}
	return w.err
}

// step commits what was written when that is much.
func (w *salvage) step(err error) {
	w.n++
	if err == nil && w.n%maxBatch == 0 {
		var b *bolt.Tx
		if err = w.t.Commit(); err == nil {
			b, err = w.db.Begin(true)
		}
		if err == nil {
			w.t.Tx = b
		}
	}
	w.err = err
}

// carry enters a sound entry of the damaged file.
func (w *salvage) carry(bucket string, k, v []byte) error {
	id := KeyID(k)
	switch bucket {
	case BucketMeta:
		if (string(k) == "clock" || string(k) == "held") && json.Valid(v) {
			return w.t.Put(BucketMeta, k, v)
		}
		return nil
	case BucketReady:
		function, _, _ := bytes.Cut(k, []byte{0})
		w.known[id], w.listed[id] = string(function), bucket
	case BucketDue, BucketEnd, BucketDead:
		w.listed[id] = bucket
	case BucketUnique:
		id = KeyID(v)
	case BucketData:
		copy(id[:], k)
	case BucketThen:
		return w.t.Put(BucketThen, k, v)
	case BucketBatch:
		w.batches[id] = string(k[:max(0, len(k)-len(id)-1)])
	}
	w.note(id)
	switch {
	case bucket == BucketJobs:
		return w.carryJob(id, v)
	case bucket == BucketData && w.carried[id]:
		return w.carryPart(id, k, v)
	case bucket == BucketRun && w.carried[id]:
		return w.t.Put(BucketRun, k, v)
	}
	return nil
}

// carryJob enters a job. One that has not ended, by its record, is not run if it is
// listed as ended, or is in no list that could be read: the record may be an old one. Nor is
// one that may run at most once.
func (w *salvage) carryJob(id ID, data []byte) error {
	j := &Job{ID: id}
	if json.Unmarshal(data, j) != nil {
		return nil
	}
	listed := w.listed[id]
	if !j.State.Finished() && (j.AtMostOnce || listed == BucketEnd || listed == BucketDead || listed == "" && !w.partial[BucketReady] && !w.partial[BucketDue]) {
		w.doubt = append(w.doubt, id)
		j.State, j.Due, j.Finished = Dead, 0, j.Posted
		j.Last = &End{Source: "fbus", Status: 70, Code: "damaged", Message: "its record was found in a damaged store: whether it has run is unknown"}
	}
	w.carried[id] = true
	if err := w.carryUnique(j); err != nil {
		return err
	}
	return w.t.Enter(j)
}

// carryUnique gives a job its key. One that has ended leaves the key to another job.
func (w *salvage) carryUnique(j *Job) error {
	if j.Unique == "" || j.State.Finished() && j.KeyUntil == 0 {
		return nil
	}
	if j.State.Finished() {
		if holder, err := w.t.Get(BucketUnique, j.UniqueKey()); err != nil || holder != nil {
			return err
		}
	}
	return w.t.Put(BucketUnique, j.UniqueKey(), j.ID[:])
}

// carryPart enters a part of a job, if it is the one that the record names.
func (w *salvage) carryPart(id ID, key, value []byte) error {
	j, err := w.t.Job(id)
	if err != nil || j == nil {
		return err
	}
	if p := j.parts()[key[len(id)]]; p.File != "" || int64(len(value)) != p.Size || sumData(value) != p.Sum {
		return nil
	}
	return w.t.Put(BucketData, key, value)
}

// note remembers that there was such a job.
func (w *salvage) note(id ID) {
	if _, ok := w.known[id]; !ok {
		w.known[id] = "unknown"
	}
}

// addLost enters jobs of which no record is left as dead ones, so that requests for
// them are answered.
func (w *salvage) addLost() {
	for _, id := range slices.SortedFunc(maps.Keys(w.known), ID.Compare) {
		if w.carried[id] || id.Time() == 0 {
			continue
		}
		w.lost = append(w.lost, id)
		w.carried[id] = true
		j := &Job{ID: id, Function: w.known[id], State: Dead, Posted: int64(id.Time()), Finished: int64(id.Time())}
		owner, batch := SplitBatch(w.batches[id])
		if j.Poster.Caller, j.Batch = callerOf(owner), batch; owner != j.Poster.Caller {
			j.Poster.Owner = owner
		}
		j.Last = &End{Source: "fbus", Status: 70, Code: "damaged", Message: "its record was lost in a damaged store"}
		if w.err == nil {
			w.step(w.t.Enter(j))
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Absent returns why a job is not there.
func (s *Store) Absent(id ID) error {
	if loss := s.loss.Load(); int64(id.Time()) <= loss {
		return &DamagedError{ID: id, What: "it is not there, but the store was damaged on " + time.UnixMilli(loss).UTC().Format(time.RFC3339) + ": if it was posted, it is lost"}
	}
	return ErrNoJob
}
