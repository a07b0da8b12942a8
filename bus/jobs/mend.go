package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"fbus/bus/jobs/pages"

	bolt "go.etcd.io/bbolt"
)

// mend looks at the store's file before bbolt does, which believes what it reads. If
// anything is not as it was written, a new file is made of what is, the old one is
// put aside, and what is lost is said. The report is that of a file that was clean.
func (s *Store) mend(path string) (*pages.Report, error) {
	known, err := s.marked()
	if err != nil {
		return nil, err
	}
	st, err := os.Lstat(path)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, &StoreError{Err: err}
	case !known && (err != nil || st.Size() == 0): // a new one
		return nil, nil
	case err != nil:
		s.warn("%s is gone: the jobs in it are lost", path)
		s.mended = true
		return nil, nil
	}
	report, err := pages.Check(path, func(bucket string, key, value []byte) bool {
		return key == nil && slices.Contains(buckets, bucket) || key != nil && sealed(bucket, key, value)
	})
	if err != nil {
		return nil, &StoreError{Err: err}
	}
	if report.Clean() {
		return report, nil
	}
	for _, p := range report.Problems[:min(3, len(report.Problems))] {
		s.warn("%s is damaged: %s", path, p)
	}
	if n := len(report.Invalid) + report.MoreInvalid; n > 0 {
		s.warn("%s is damaged: %d entries do not match their checksums", path, n)
	}
	return nil, s.rebuild(path, report)
}

// wreck is what was found in a damaged file.
type wreck struct {
	jobs  map[ID]*found
	data  map[string]foundData // by key
	run   map[ID][]byte
	clock []byte
	loss  []byte
	doubt []ID          // kept, not run
	seen  map[ID]string // of which something is left, and the function if that is known
	older bool          // the newest state may be missing
}

type found struct {
	job   *Job
	where pages.Where
}

type foundData struct {
	sum   uint32
	value []byte
	where pages.Where
}

// rebuild makes a new file of what is good in a damaged one.
func (s *Store) rebuild(path string, report *pages.Report) error {
	w := &wreck{jobs: map[ID]*found{}, data: map[string]foundData{}, run: map[ID][]byte{}, seen: map[ID]string{}, older: report.Older}
	if err := pages.Salvage(path, w.take); err != nil {
		return &StoreError{Err: err}
	}
	for _, e := range report.Invalid {
		w.trace(e.Bucket, e.Key)
	}
	names, _ := s.spool.names()
	for _, name := range names {
		if id, ok := ParseID(name[:min(len(name), len(ID{}.String()))]); ok {
			w.trace(bucketJobs, id[:])
		}
	}
	if !report.Sound() {
		w.loss = strconv.AppendInt(nil, millis(s.clock.Wall()), 10)
	}
	lost := w.lost()
	fresh := path + ".new"
	os.Remove(fresh)
	if err := s.writeNew(fresh, w); err != nil {
		os.Remove(fresh)
		return err
	}
	aside := fmt.Sprintf("%s.damaged-%s", path, s.clock.Wall().UTC().Format("20060102T150405.000"))
	err := os.Rename(path, aside)
	if err == nil {
		err = errors.Join(os.Rename(fresh, path), syncDir(s.dir))
	}
	if err != nil {
		return &StoreError{Err: err}
	}
	s.mended = true
	s.warn("%s was made anew with %d jobs; the damaged file is kept as %s", path, len(w.jobs)-len(lost), aside)
	s.name(lost, "is lost: its record was damaged")
	s.name(w.doubt, "is kept, and not run: it was found in a damaged part; fbus retry runs it")
	if !report.Sound() {
		s.warn("whether there were more jobs can not be told; who asks for one posted until now that is not there hears of this")
	}
	return nil
}

// name says the same of several jobs.
func (s *Store) name(ids []ID, what string) {
	for i, id := range ids {
		if i == maxSaid {
			s.warn("and so it is with %d more jobs", len(ids)-i)
			return
		}
		s.warn("job %s %s", id, what)
	}
}

// absent says what is known of a job that is not there.
func (s *Store) absent(id ID) error {
	if loss := s.loss.Load(); int64(id.Time()) <= loss {
		return &DamagedError{ID: id, What: "it is not there, but the store was damaged on " + time.UnixMilli(loss).UTC().Format(time.RFC3339) + ": if it was posted, it is lost"}
	}
	return ErrNoJob
}

// maxSaid bounds how many lost jobs are named one by one.
const maxSaid = 1000

// take looks at one entry.
func (w *wreck) take(e pages.Entry, where pages.Where) error {
	if where == pages.Free { // out of date: deleted, or replaced by what stands elsewhere
		return nil
	}
	for _, bucket := range append([]string{e.Bucket}, buckets...) {
		if bucket == "" || !slices.Contains(buckets, bucket) {
			continue
		}
		value, ok := unseal(bucket, e.Key, e.Value)
		if !ok {
			continue
		}
		w.add(bucket, e.Key, value, e.Value, where)
		return nil
	}
	if e.Bucket != "" {
		w.trace(e.Bucket, e.Key)
	}
	return nil
}

func (w *wreck) add(bucket string, key, value, sealed []byte, where pages.Where) {
	if where != pages.Stray {
		w.trace(bucket, key)
	}
	switch bucket {
	case bucketJobs:
		if j, err := decodeJob(keyID(key), sealed); err == nil {
			w.addJob(j, where)
		}
	case bucketData:
		old, there := w.data[string(key)]
		if !there || where < old.where {
			w.data[string(key)] = foundData{sum: sumData(value), value: bytes.Clone(value), where: where}
		}
	case bucketRun:
		if where != pages.Stray {
			w.run[keyID(key)] = bytes.Clone(value)
		}
	case bucketMeta:
		switch {
		case where == pages.Stray:
		case string(key) == "clock":
			w.clock = bytes.Clone(value)
		case string(key) == "loss":
			w.loss = bytes.Clone(value)
		}
	}
}

// addJob takes the best version of a job. Where the tree may be out of date, one that
// has ended is not taken for one that has not: it would run again after its end was
// told.
func (w *wreck) addJob(j *Job, where pages.Where) {
	old := w.jobs[j.ID]
	switch {
	case old == nil && where == pages.Stray && j.State != Done:
		// It may be current, or long gone, or never have been acknowledged: kept, not run.
		w.doubt = append(w.doubt, j.ID)
		j.State, j.Due, j.Finished = Dead, 0, j.Posted
		j.Last = &End{Source: "fbus", Status: 70, Code: "damaged", Message: "it was found in a damaged part of the store: whether it has run is not known"}
	case old == nil:
	case w.older && !old.job.State.Finished() && j.State.Finished():
	case where >= old.where || old.job.State.Finished():
		return
	}
	w.jobs[j.ID] = &found{job: j, where: where}
}

// trace notes that there has been a job.
func (w *wreck) trace(bucket string, key []byte) {
	var id ID
	function := ""
	switch {
	case bucket == bucketData && len(key) == len(id)+1:
		copy(id[:], key)
	case (bucket == bucketJobs || bucket == bucketRun || bucket == bucketDead) && len(key) == len(id):
		id = keyID(key)
	case (bucket == bucketDue || bucket == bucketEnd) && len(key) == len(id)+8:
		id = keyID(key)
	case bucket == bucketReady && len(key) > len(id)+3:
		id = keyID(key)
		function, _, _ = strings.Cut(string(key), "\x00")
	default:
		return
	}
	if w.seen[id] == "" {
		w.seen[id] = function
	}
}

// lost are the jobs of which something is left, but not their record. They are kept
// as dead ones, so that who asks for them is told.
func (w *wreck) lost() (ids []ID) {
	for id, function := range w.seen {
		if w.jobs[id] != nil || id.Time() == 0 {
			continue
		}
		ids = append(ids, id)
		j := &Job{ID: id, Function: function, State: Dead, Posted: int64(id.Time()), Finished: int64(id.Time())}
		if function == "" {
			j.Function = "unknown"
		}
		j.Last = &End{Source: "fbus", Status: 70, Code: "damaged", Message: "its record was lost in a damaged store"}
		w.jobs[id] = &found{job: j}
	}
	slices.SortFunc(ids, func(a, b ID) int { return a.Compare(b) })
	return ids
}

// writeNew writes a new file.
func (s *Store) writeNew(path string, w *wreck) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, NoSync: true})
	if err != nil {
		return &StoreError{Err: err}
	}
	defer db.Close()
	var batch []func(t *tx) error
	flush := func() error {
		defer func() { batch = batch[:0] }()
		return db.Update(func(b *bolt.Tx) error {
			for _, f := range batch {
				if err := f(&tx{b, s}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	add := func(f func(t *tx) error) error {
		if batch = append(batch, f); len(batch) < maxBatch {
			return nil
		}
		return flush()
	}
	err = add(func(t *tx) error {
		for _, name := range buckets {
			if _, err := t.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		err := t.put(bucketMeta, []byte("format"), []byte(formatVersion))
		if json.Valid(w.clock) {
			err = errors.Join(err, t.put(bucketMeta, []byte("clock"), w.clock))
		}
		if len(w.loss) > 0 {
			err = errors.Join(err, t.put(bucketMeta, []byte("loss"), w.loss))
		}
		return err
	})
	for id, f := range w.jobs {
		err = errors.Join(err, add(func(t *tx) error { return w.write(t, id, f.job) }))
	}
	return storeErrorOrNil(errors.Join(err, flush(), db.Sync()))
}

// write puts a job with what is left of its parts into the new file.
func (w *wreck) write(t *tx, id ID, j *Job) error {
	for part, p := range j.parts() {
		d, there := w.data[string(dataKey(id, part))]
		if there && p.File == "" && int64(len(d.value)) == p.Size && d.sum == p.Sum {
			if err := t.put(bucketData, dataKey(id, part), d.value); err != nil {
				return err
			}
		}
	}
	if j.Unique != "" && !j.State.Finished() {
		if err := t.put(bucketUnique, j.uniqueKey(), id[:]); err != nil {
			return err
		}
	}
	if run := w.run[id]; run != nil && j.State == Queued {
		if err := t.put(bucketRun, id[:], run); err != nil {
			return err
		}
	}
	return t.enter(j)
}

func storeErrorOrNil(err error) error {
	if err == nil {
		return nil
	}
	return storeError(err)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
