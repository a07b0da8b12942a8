package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Tx is a transaction. A job's record and its place (ready, due, run, end or dead) always
// change together.
type Tx struct {
	*bolt.Tx
	store *Store
}

func (t *Tx) Put(bucket string, key, value []byte) error {
	b := t.Bucket([]byte(bucket))
	if b == nil { // of batches
		var err error
		if b, err = t.CreateBucket([]byte(bucket)); err != nil {
			return err
		}
	}
	return b.Put(key, seal(bucket, key, value))
}

func (t *Tx) Delete(bucket string, key []byte) error {
	if b := t.Bucket([]byte(bucket)); b != nil {
		return b.Delete(key)
	}
	return nil
}

// Get returns nil for a missing key.
func (t *Tx) Get(bucket string, key []byte) ([]byte, error) {
	b := t.Bucket([]byte(bucket))
	if b == nil {
		return nil, nil
	}
	v := b.Get(key)
	if v == nil {
		return nil, nil
	}
	value, ok := unseal(bucket, key, v)
	if !ok {
		return nil, fmt.Errorf("%s %x: %w", bucket, key, errChecksum)
	}
	return value, nil
}

// Job returns nil, without an error, if there is no such job.
func (t *Tx) Job(id ID) (*Job, error) {
	v := t.Bucket([]byte(BucketJobs)).Get(id[:])
	if v == nil {
		return nil, nil
	}
	j, err := DecodeJob(id, v)
	if err != nil {
		return nil, &DamagedError{ID: id, What: err.Error()}
	}
	return j, nil
}

// Enter writes a job, and lists it in the place of its state, and in its batch.
func (t *Tx) Enter(j *Job) error {
	if err := t.Put(BucketJobs, j.ID[:], j.Encode()); err != nil {
		return err
	}
	bucket, key, value := j.place()
	err := t.Put(bucket, key, value)
	if batch := j.BatchKey(); err == nil && batch != "" {
		key := inBatch(batch, j.ID)
		if b := t.Bucket([]byte(BucketBatch)); b == nil || b.Get(key) == nil {
			err = t.Put(BucketBatch, key, nil)
		}
		if err == nil && !j.State.Finished() {
			err = t.Put(BucketUnended, key, nil)
		}
	}
	return err
}

// place returns where a job of its state is listed.
func (j *Job) place() (bucket string, key, value []byte) {
	switch j.State {
	case Queued: // also while it runs
		return BucketReady, j.readyKey(), nil
	case Delayed:
		return BucketDue, timeKey(j.Due, j.ID), nil
	case Dead:
		return BucketDead, j.ID[:], nil
	}
	return BucketEnd, timeKey(j.Expires, j.ID), []byte(j.State)
}

// leave removes a job from its place.
func (t *Tx) leave(j *Job) error {
	bucket, key, _ := j.place()
	err := errors.Join(t.Delete(bucket, key), t.Delete(BucketRun, j.ID[:]))
	if batch := j.BatchKey(); err == nil && batch != "" && !j.State.Finished() {
		err = t.Delete(BucketUnended, inBatch(batch, j.ID))
	}
	return err
}

// Move changes a job, and its place.
func (t *Tx) Move(j *Job, change func()) error {
	if err := t.leave(j); err != nil {
		return err
	}
	change()
	if j.State.Finished() && j.KeyUntil == 0 {
		if err := t.freeUnique(j); err != nil {
			return err
		}
	}
	return t.Enter(j)
}

func (t *Tx) freeUnique(j *Job) error {
	if j.Unique == "" {
		return nil
	}
	key := j.UniqueKey()
	holder, err := t.Get(BucketUnique, key)
	if err != nil || !bytes.Equal(holder, j.ID[:]) {
		return err
	}
	return t.Delete(BucketUnique, key)
}

// HoldUnique gives a job its unique key. It returns the other job that has it, if there is
// one.
func (t *Tx) HoldUnique(j *Job) (other *Job, err error) {
	if j.Unique == "" {
		return nil, nil
	}
	holder, err := t.Get(BucketUnique, j.UniqueKey())
	if err != nil {
		return nil, Wrap(err)
	}
	if id := KeyID(holder); holder != nil && id != j.ID {
		switch other, err = t.Job(id); {
		case err != nil: // it may still run
			same := *j
			same.ID = id
			return &same, nil
		case other != nil && (!other.State.Finished() || other.KeyUntil > t.store.Now()):
			return other, nil
		}
	}
	return nil, Wrap(t.Put(BucketUnique, j.UniqueKey(), j.ID[:]))
}

// SameSent reports whether two jobs were sent the same arguments and input.
func (j *Job) SameSent(other *Job) bool {
	if other.Digest != "" {
		return other.Digest == j.Digest
	}
	same := func(a, b Payload) bool { return a.Size == b.Size && a.Sum == b.Sum } // it was posted to an older node
	return other.Kind == j.Kind && other.HasInput == j.HasInput && same(other.Args, j.Args) && same(other.Input, j.Input)
}

// Running notes that a worker has the job.
func (t *Tx) Running(id ID, try Try) error {
	if t.Bucket([]byte(BucketJobs)).Get(id[:]) == nil {
		return nil
	}
	data, err := json.Marshal(try)
	if err != nil {
		return err
	}
	return t.Put(BucketRun, id[:], data)
}

// WritePart writes a small part.
func (t *Tx) WritePart(j *Job, part byte, p *Draft) error {
	if p == nil || p.Size == 0 || p.File != "" {
		return nil
	}
	return t.Put(BucketData, DataKey(j.ID, part), p.inline)
}

// ReadPart returns a small part.
func (t *Tx) ReadPart(j *Job, part byte, p Payload) ([]byte, error) {
	if p.Size == 0 || p.File != "" {
		return nil, nil
	}
	data, err := t.Get(BucketData, DataKey(j.ID, part))
	if err != nil || int64(len(data)) != p.Size || sumData(data) != p.Sum {
		return nil, &DamagedError{ID: j.ID, What: partName(part) + " does not match its checksum"}
	}
	return bytes.Clone(data), nil
}

// Remove deletes a job with all its parts. The caller deletes its files after the commit.
func (t *Tx) Remove(j *Job) error {
	if err := errors.Join(t.leave(j), t.freeUnique(j)); err != nil {
		return err
	}
	for part, p := range j.parts() {
		if p.Size > 0 && p.File == "" {
			if err := t.Delete(BucketData, DataKey(j.ID, part)); err != nil {
				return err
			}
		}
	}
	if batch := j.BatchKey(); batch != "" {
		if err := errors.Join(t.Delete(BucketBatch, inBatch(batch, j.ID)), t.noteGone(batch, j.State)); err != nil {
			return err
		}
	}
	return t.Delete(BucketJobs, j.ID[:])
}

// Sent returns the size of arguments and input.
func (j *Job) Sent() int64 { return j.Args.Size + j.Input.Size }

// Spend drops arguments and input, which a job that is done does not need.
func (j *Job) Spend() {
	j.Taken = j.Input.Size
	j.Args, j.Input = Payload{}, Payload{}
}

func (j *Job) parts() map[byte]Payload {
	return map[byte]Payload{PartArgs: j.Args, PartInput: j.Input, PartOutput: j.Output, PartStderr: j.Stderr}
}

func (j *Job) Files() (names []string) {
	for _, p := range j.parts() {
		if p.File != "" {
			names = append(names, p.File)
		}
	}
	return names
}

// Bytes returns the size of all payloads.
func (j *Job) Bytes() (n int64) { return j.Args.Size + j.Input.Size + j.Output.Size + j.Stderr.Size }

func partName(part byte) string {
	return map[byte]string{PartArgs: "the arguments", PartInput: "the input", PartOutput: "the output", PartStderr: "the error output"}[part]
}

func KeyTime(key []byte) int64 {
	if len(key) < 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(key))
}

// Forget deletes what is left of a job whose record cannot be read.
func (t *Tx) Forget(id ID, queueKey string, order byte) error {
	key := append(append([]byte(queueKey), 0, order), id[:]...)
	return errors.Join(t.Delete(BucketReady, key), t.Delete(BucketRun, id[:]), t.forgetUnended(id))
}

// ReplacePart replaces the part of an earlier attempt.
func (t *Tx) ReplacePart(j *Job, part byte, d *Draft) error {
	if d.Size == 0 || d.File != "" {
		return t.Delete(BucketData, DataKey(j.ID, part))
	}
	return t.WritePart(j, part, d)
}

// Read returns a job with the arguments and the input for its program.
func (s *Store) Read(id ID) (j *Job, data []byte, input io.ReadCloser, err error) {
	var inline []byte
	err = s.View(func(t *Tx) (err error) {
		if j, err = t.Job(id); err != nil || j == nil {
			return err
		}
		if data, err = t.ReadPart(j, PartArgs, j.Args); err == nil {
			inline, err = t.ReadPart(j, PartInput, j.Input)
		}
		return err
	})
	if err != nil || j == nil {
		return j, nil, nil, err
	}
	if j.Args.File != "" {
		f, err := s.Spool.Open(context.Background(), id, PartArgs, j.Args)
		if err != nil {
			return j, nil, nil, err
		}
		defer f.Close()
		if data, err = io.ReadAll(f); err != nil {
			return j, nil, nil, &StoreError{Err: err}
		}
	}
	if j.Input.File != "" {
		if input, err = s.Spool.Open(context.Background(), id, PartInput, j.Input); err != nil {
			return j, nil, nil, err
		}
		return j, data, input, nil
	}
	return j, data, io.NopCloser(bytes.NewReader(inline)), nil
}

// Wrap makes an error the store's, a FullError if there is no room, unless it is about one
// job.
func Wrap(err error) error {
	switch {
	case err == nil || errors.As(err, new(*DamagedError)) || isFailure(err):
		return err
	case IsFull(err):
		return &FullError{What: "the disk is full", Err: err}
	}
	return &StoreError{Err: err}
}

// Content opens one part of a job.
func (s *Store) Content(ctx context.Context, j *Job, part byte, p Payload) (io.ReadCloser, error) {
	if p.File != "" {
		return s.Spool.Open(ctx, j.ID, part, p)
	}
	var data []byte
	err := s.View(func(t *Tx) (err error) {
		data, err = t.ReadPart(j, part, p)
		return err
	})
	return io.NopCloser(bytes.NewReader(data)), err
}

// Tally counts the jobs of a batch.
type Tally struct {
	Jobs      int `json:"jobs"`
	Done      int `json:"done"`
	Dead      int `json:"dead"`
	Cancelled int `json:"cancelled"`
}

// Unended returns how many jobs have not ended.
func (t Tally) Unended() int { return t.Jobs - t.Done - t.Dead - t.Cancelled }

// Add counts n jobs of a state.
func (t *Tally) Add(state State, n int) {
	t.Jobs += n
	switch state {
	case Done:
		t.Done += n
	case Dead:
		t.Dead += n
	case Cancelled:
		t.Cancelled += n
	}
}

// Then describes the job that the end of a batch posts, once.
type Then struct {
	Function string  `json:"function"`
	Poster   Poster  `json:"poster"`
	Options  Options `json:"options,omitzero"` // of that job
	Gone     Tally   `json:"gone,omitzero"`    // jobs of the batch that were deleted since
}

// SplitBatch returns the owner and the name in the key of a batch.
func SplitBatch(key string) (owner, name string) {
	i := strings.LastIndexByte(key, 0)
	return key[:max(i, 0)], key[i+1:]
}

// Then returns what the end of a batch posts, or nil.
func (t *Tx) Then(batch string) (*Then, error) {
	data, err := t.Get(BucketThen, []byte(batch))
	if err != nil || data == nil {
		return nil, err
	}
	then := new(Then)
	return then, json.Unmarshal(data, then)
}

// PutThen writes what the end of a batch posts; nil: nothing.
func (t *Tx) PutThen(batch string, then *Then) error {
	if then == nil {
		return t.Delete(BucketThen, []byte(batch))
	}
	data, err := json.Marshal(then)
	if err != nil {
		return err
	}
	return t.Put(BucketThen, []byte(batch), data)
}

// Thens calls each with what the ends of batches post.
func (t *Tx) Thens(each func(batch string, then *Then)) error {
	b := t.Bucket([]byte(BucketThen))
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, _ []byte) error {
		then, err := t.Then(string(k))
		if err == nil && then != nil {
			each(string(k), then)
		}
		return nil // of a damaged one nothing is known
	})
}

// noteGone counts a deleted job for the end of its batch.
func (t *Tx) noteGone(batch string, state State) error {
	then, err := t.Then(batch)
	if err != nil || then == nil {
		return err
	}
	if !state.Finished() {
		state = Cancelled
	}
	then.Gone.Add(state, 1)
	return t.PutThen(batch, then)
}

// Ended reports whether no job of a batch can run any more.
func (t *Tx) Ended(batch string) bool {
	b := t.Bucket([]byte(BucketUnended))
	if b == nil {
		return true
	}
	prefix := []byte(batch + "\x00")
	k, _ := b.Cursor().Seek(prefix)
	return !bytes.HasPrefix(k, prefix)
}

// relist makes the lists of batches from the jobs.
func (s *Store) relist(db *bolt.DB) error {
	s.warn("the lists of batches do not match the jobs: they are made again")
	return db.Update(func(b *bolt.Tx) error {
		t := &Tx{b, s}
		for _, name := range []string{BucketBatch, BucketUnended} {
			if err := b.DeleteBucket([]byte(name)); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
				return err
			}
		}
		return t.Bucket([]byte(BucketJobs)).ForEach(func(k, record []byte) error {
			batch := batchOf(record)
			if batch == "" {
				return nil
			}
			_, state, poster, _ := Peek(record)
			key := inBatch(BatchKey(poster.Key(), batch), KeyID(k))
			err := t.Put(BucketBatch, key, nil)
			if err == nil && !state.Finished() {
				err = t.Put(BucketUnended, key, nil)
			}
			return err
		})
	})
}

// forgetUnended is for a job whose record cannot be read, so its batch is not known.
func (t *Tx) forgetUnended(id ID) error {
	b := t.Bucket([]byte(BucketUnended))
	if b == nil {
		return nil
	}
	c := b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if KeyID(k) == id {
			return c.Delete()
		}
	}
	return nil
}
