package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

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
