package jobs

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// tx is a transaction over the buckets. A job's record and its place (ready, due,
// run, end or dead) are always changed together.
type tx struct {
	*bolt.Tx
	store *Store
}

func (t *tx) put(bucket string, key, value []byte) error {
	return t.Bucket([]byte(bucket)).Put(key, seal(bucket, key, value))
}

func (t *tx) delete(bucket string, key []byte) error {
	return t.Bucket([]byte(bucket)).Delete(key)
}

// get returns nil for what is not there.
func (t *tx) get(bucket string, key []byte) ([]byte, error) {
	v := t.Bucket([]byte(bucket)).Get(key)
	if v == nil {
		return nil, nil
	}
	value, ok := unseal(bucket, key, v)
	if !ok {
		return nil, fmt.Errorf("%s %x: %w", bucket, key, errChecksum)
	}
	return value, nil
}

// job returns nil, without an error, if there is no such job.
func (t *tx) job(id ID) (*Job, error) {
	v := t.Bucket([]byte(bucketJobs)).Get(id[:])
	if v == nil {
		return nil, nil
	}
	j, err := decodeJob(id, v)
	if err != nil {
		return nil, &DamagedError{ID: id, What: err.Error()}
	}
	return j, nil
}

// enter puts a job that is in no place into that of its state.
func (t *tx) enter(j *Job) error {
	if err := t.put(bucketJobs, j.ID[:], j.encode()); err != nil {
		return err
	}
	switch bucket, key, value := j.place(); {
	case bucket == "":
		return nil
	default:
		return t.put(bucket, key, value)
	}
}

// place is where a job of that state is listed.
func (j *Job) place() (bucket string, key, value []byte) {
	switch j.State {
	case Queued: // one that runs, too, until it has ended
		return bucketReady, j.readyKey(), nil
	case Delayed:
		return bucketDue, timeKey(j.Due, j.ID), nil
	case Dead:
		return bucketDead, j.ID[:], nil
	}
	return bucketEnd, timeKey(j.Expires, j.ID), []byte(j.State)
}

// leave takes a job out of its place.
func (t *tx) leave(j *Job) error {
	bucket, key, _ := j.place()
	if err := t.delete(bucket, key); err != nil {
		return err
	}
	return t.delete(bucketRun, j.ID[:])
}

// move changes a job, and with it its place.
func (t *tx) move(j *Job, change func()) error {
	if err := t.leave(j); err != nil {
		return err
	}
	change()
	if j.State.Finished() && j.Unique != "" {
		if err := t.freeUnique(j); err != nil {
			return err
		}
	}
	return t.enter(j)
}

func (t *tx) freeUnique(j *Job) error {
	key := j.uniqueKey()
	holder, err := t.get(bucketUnique, key)
	if err != nil || !bytes.Equal(holder, j.ID[:]) {
		return err
	}
	return t.delete(bucketUnique, key)
}

// holdUnique gives a job its key, which nobody else may have.
func (t *tx) holdUnique(j *Job) error {
	if j.Unique == "" {
		return nil
	}
	holder, err := t.get(bucketUnique, j.uniqueKey())
	switch {
	case err != nil:
		return wrap(err)
	case holder != nil:
		return fmt.Errorf("%s: job %s has its unique key now: %w", j.ID, keyID(holder), errState)
	}
	return wrap(t.put(bucketUnique, j.uniqueKey(), j.ID[:]))
}

// running says that a worker has the job. It is not waited for: a crash within the
// next moment forgets that this attempt was made, not that it has to be.
func (t *tx) running(id ID, try Try) error {
	if t.Bucket([]byte(bucketJobs)).Get(id[:]) == nil {
		return nil
	}
	data, err := json.Marshal(try)
	if err != nil {
		return err
	}
	return t.put(bucketRun, id[:], data)
}

// write puts a part of a job where it belongs: small ones here.
func (t *tx) write(j *Job, part byte, p *draft) error {
	if p == nil || p.Size == 0 || p.File != "" {
		return nil
	}
	return t.put(bucketData, dataKey(j.ID, part), p.inline)
}

// read returns a part that is kept here.
func (t *tx) read(j *Job, part byte, p payload) ([]byte, error) {
	if p.Size == 0 || p.File != "" {
		return nil, nil
	}
	data, err := t.get(bucketData, dataKey(j.ID, part))
	if err != nil || int64(len(data)) != p.Size || sumData(data) != p.Sum {
		return nil, &DamagedError{ID: j.ID, What: partName(part) + " does not match its checksum"}
	}
	return bytes.Clone(data), nil
}

// remove deletes a job with all its parts. Its files are the caller's to remove,
// after the commit.
func (t *tx) remove(j *Job) error {
	if err := t.leave(j); err != nil {
		return err
	}
	if j.Unique != "" {
		if err := t.freeUnique(j); err != nil {
			return err
		}
	}
	for part, p := range j.parts() {
		if p.Size > 0 && p.File == "" {
			if err := t.delete(bucketData, dataKey(j.ID, part)); err != nil {
				return err
			}
		}
	}
	return t.delete(bucketJobs, j.ID[:])
}

// sent is the size of what a job was sent.
func (j *Job) sent() int64 { return j.Args.Size + j.Input.Size }

// spend lets go of what a job was sent, which nobody needs any more.
func (j *Job) spend() {
	j.Taken = j.Input.Size
	j.Args, j.Input = payload{}, payload{}
}

// parts are the payloads of a job.
func (j *Job) parts() map[byte]payload {
	return map[byte]payload{partArgs: j.Args, partInput: j.Input, partOutput: j.Output, partStderr: j.Stderr}
}

func (j *Job) files() (names []string) {
	for _, p := range j.parts() {
		if p.File != "" {
			names = append(names, p.File)
		}
	}
	return names
}

// size is what a job's payloads take.
func (j *Job) size() (n int64) { return j.Args.Size + j.Input.Size + j.Output.Size + j.Stderr.Size }

func partName(part byte) string {
	return map[byte]string{partArgs: "the arguments", partInput: "the input", partOutput: "the output", partStderr: "the error output"}[part]
}

func keyTime(key []byte) int64 {
	if len(key) < 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(key))
}

// forget takes out what is left of a job whose record can not be read.
func (t *tx) forget(a *attempt) error {
	key := append(append([]byte(a.line.key), 0, a.place.order), a.id[:]...)
	if err := t.delete(bucketReady, key); err != nil {
		return err
	}
	return t.delete(bucketRun, a.id[:])
}
