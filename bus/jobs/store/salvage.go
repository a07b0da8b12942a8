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
	"unsafe"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// salvage carries what is good in a damaged file over to a new one. The damaged file is
// set aside as it is, under a name that contains the time.
type salvage struct {
	*Store
	db      *bolt.DB        // the new file
	t       *Tx             // on it
	n       int             // entries written
	listed  map[ID]string   // the bucket that lists a job: ready, due, end or dead
	known   map[ID]string   // every id in the file, and its function where it is known
	partial map[string]bool // buckets that could not be read to their ends
	carried map[ID]bool
	doubt   []ID // carried over, and not run
	lost    []ID
}

// salvageFile replaces a damaged file.
func (s *Store) salvageFile(path string, why error) error {
	s.warn("%s is damaged: %v", path, why)
	w := &salvage{Store: s, listed: map[ID]string{}, known: map[ID]string{}, partial: map[string]bool{}, carried: map[ID]bool{}}
	fresh := path + ".new"
	os.Remove(fresh)
	var err error
	if w.db, err = bolt.Open(fresh, 0o600, &bolt.Options{Timeout: time.Second, NoSync: true, OpenFile: openNoFollow}); err == nil {
		err = errors.Join(w.run(path), w.db.Sync(), w.db.Close())
	}
	aside := fmt.Sprintf("%s.damaged-%s", path, s.Clock.Wall().UTC().Format("20060102T150405.000"))
	if err == nil {
		err = errors.Join(os.Rename(path, aside), os.Rename(fresh, path), syncDir(s.dir))
	}
	if err != nil {
		os.Remove(fresh)
		return storeError(err)
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

func (w *salvage) run(path string) error {
	b, err := w.db.Begin(true)
	if err != nil {
		return err
	}
	w.t = &Tx{b, w.Store}
	defer func() { w.t.Rollback() }()
	if err := errors.Join(w.t.found(), w.t.Put(BucketMeta, []byte("loss"), strconv.AppendInt(nil, Millis(w.Clock.Wall()), 10))); err != nil {
		return err
	}
	var failed error // of the new file: what is wrong with the old one ends nothing
	openGuarded(path, false, func(db *bolt.DB, from *bolt.Tx) error {
		if err := repairLinks(db, path); err != nil {
			w.warn("%s: %v", path, err)
		}
		for _, bucket := range []string{BucketReady, BucketDue, BucketEnd, BucketDead, BucketUnique, BucketMeta, BucketJobs, BucketData, BucketRun} {
			if failed = w.carry(from, bucket); failed != nil {
				break
			}
		}
		return nil
	})
	names, _ := w.Spool.names()
	for _, name := range names {
		if id, ok := ParseID(name[:min(len(name), len(ID{}.String()))]); ok {
			w.note(id, "")
		}
	}
	if failed == nil {
		failed = w.addLost()
	}
	if failed == nil {
		failed = w.t.Commit()
	}
	return failed
}

// step commits what was written when that is much.
func (w *salvage) step(err error) error {
	if w.n++; err != nil || w.n%maxBatch > 0 {
		return err
	}
	if err := w.t.Commit(); err != nil {
		return err
	}
	b, err := w.db.Begin(true)
	if err == nil {
		w.t = &Tx{b, w.Store}
	}
	return err
}

// repairLinks maps the file again where bbolt has it, so that changes stay private, and
// replaces what is wrong with its links: bbolt's cursor then reads all that is left.
func repairLinks(db *bolt.DB, path string) error {
	f, err := openNoFollow(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	data := db.Info().Data
	at := *(*unsafe.Pointer)(unsafe.Pointer(&data)) // no pointer into Go's memory
	if _, err := unix.MmapPtr(int(f.Fd()), 0, at, uintptr(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED); err != nil {
		return err
	}
	l := &links{data: unsafe.Slice((*byte)(at), st.Size()), leaves: true, repair: true}
	l.check()
	return nil
}

// carry reads one bucket of the damaged file. An error is that of the new one.
func (w *salvage) carry(from *bolt.Tx, bucket string) (err error) {
	var damage error
	defer func() { w.partial[bucket] = damage != nil }()
	defer catch(&damage)
	b := from.Bucket([]byte(bucket))
	if b == nil {
		damage = errors.New("it is missing")
		return nil
	}
	c := b.Cursor()
	for k, sealed := c.First(); k != nil; k, sealed = c.Next() {
		v, ok := unseal(bucket, k, sealed)
		id := KeyID(k)
		switch {
		case bucket == BucketMeta && ok && string(k) == "clock" && json.Valid(v):
			err = w.t.Put(BucketMeta, k, v)
		case bucket == BucketMeta:
		case bucket == BucketData && len(k) > len(id):
			copy(id[:], k)
			if ok {
				err = w.carryPart(id, k, v)
			}
		case bucket == BucketUnique && ok:
			id = KeyID(v)
		case bucket == BucketReady && ok:
			function, _, _ := bytes.Cut(k, []byte{0})
			w.known[id], w.listed[id] = string(function), bucket
		case (bucket == BucketDue || bucket == BucketEnd || bucket == BucketDead) && ok:
			w.listed[id] = bucket
		case bucket == BucketJobs && ok:
			err = w.carryJob(id, sealed)
		case bucket == BucketRun && ok && w.carried[id]:
			err = w.t.Put(BucketRun, k, v)
		}
		if err = w.step(err); err != nil {
			return err
		}
		if !ok {
			damage = errChecksum
		} else if bucket != BucketMeta {
			w.note(id, "")
		}
	}
	return nil
}

// carryJob enters a job. One that has not ended, by its record, is not run if it is
// listed as ended, or is in no list that could be read: the record may be an old one.
func (w *salvage) carryJob(id ID, sealed []byte) error {
	j, err := DecodeJob(id, sealed)
	if err != nil {
		return nil
	}
	listed := w.listed[id]
	if !j.State.Finished() && (listed == BucketEnd || listed == BucketDead || listed == "" && !w.partial[BucketReady] && !w.partial[BucketDue]) {
		w.doubt = append(w.doubt, id)
		j.State, j.Due, j.Finished = Dead, 0, j.Posted
		j.Last = &End{Source: "fbus", Status: 70, Code: "damaged", Message: "its record was found in a damaged store: whether it has run is unknown"}
	}
	w.carried[id] = true
	if j.Unique != "" && !j.State.Finished() {
		err = w.t.Put(BucketUnique, j.UniqueKey(), id[:])
	}
	return errors.Join(err, w.t.Enter(j))
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
func (w *salvage) note(id ID, function string) {
	if w.known[id] == "" {
		w.known[id] = function
	}
}

// addLost enters jobs of which no record is left as dead ones, so that requests for
// them are answered.
func (w *salvage) addLost() error {
	for _, id := range slices.SortedFunc(maps.Keys(w.known), ID.Compare) {
		if w.carried[id] || id.Time() == 0 {
			continue
		}
		w.lost = append(w.lost, id)
		w.carried[id] = true
		j := &Job{ID: id, Function: w.known[id], State: Dead, Posted: int64(id.Time()), Finished: int64(id.Time())}
		if j.Function == "" {
			j.Function = "unknown"
		}
		j.Last = &End{Source: "fbus", Status: 70, Code: "damaged", Message: "its record was lost in a damaged store"}
		if err := w.step(w.t.Enter(j)); err != nil {
			return err
		}
	}
	return nil
}

func wrapError(err error) error {
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

// Absent returns why a job is not there.
func (s *Store) Absent(id ID) error {
	if loss := s.loss.Load(); int64(id.Time()) <= loss {
		return &DamagedError{ID: id, What: "it is not there, but the store was damaged on " + time.UnixMilli(loss).UTC().Format(time.RFC3339) + ": if it was posted, it is lost"}
	}
	return ErrNoJob
}
