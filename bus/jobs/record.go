package jobs

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
)

// Buckets of the store: FORMAT.md has the keys and values of each.
const (
	bucketMeta   = "meta"
	bucketJobs   = "jobs"
	bucketData   = "data"
	bucketReady  = "ready"
	bucketDue    = "due"
	bucketRun    = "run"
	bucketEnd    = "end"
	bucketDead   = "dead"
	bucketUnique = "unique"
)

var buckets = []string{bucketMeta, bucketJobs, bucketData, bucketReady, bucketDue, bucketRun, bucketEnd, bucketDead, bucketUnique}

// ID names a job. Ids are ordered by the time of their posts.
type ID = ulid.ULID

// ParseID reads an id as it is printed; upper and lower case are the same.
func ParseID(s string) (ID, bool) {
	id, err := ulid.ParseStrict(s)
	return id, err == nil
}

// State is what has become of a job.
type State string

// States of a job. The last three are ends.
const (
	Queued    State = "queued"    // ready: it waits for a slot
	Delayed   State = "delayed"   // it waits for its time
	Running   State = "running"   // a worker has it
	Done      State = "done"      // it ended with status 0
	Dead      State = "dead"      // it will not be tried again
	Cancelled State = "cancelled" // somebody ended it
)

// Finished reports an end.
func (s State) Finished() bool { return s == Done || s == Dead || s == Cancelled }

// Poster is who has posted a job, and with whose rights it runs.
type Poster struct {
	Caller string   `json:"caller"`           // "uid:0", "ticket:ci": FBUS_CALLER
	Serial string   `json:"serial,omitempty"` // of the ticket
	Groups []int    `json:"groups,omitempty"` // of a user of this machine
	Rights []string `json:"rights,omitempty"` // of a certificate that no list of ours has
	Until  int64    `json:"until,omitempty"`  // and its end, in seconds of the date
}

// Options are what a post asks for.
type Options struct {
	Then     string  `json:"then,omitempty"`
	Else     string  `json:"else,omitempty"`
	Finally  string  `json:"finally,omitempty"`
	Delay    float64 `json:"delay,omitempty"`    // seconds
	At       string  `json:"at,omitempty"`       // RFC 3339
	Retries  int     `json:"retries,omitempty"`  // further tries after a failure
	Backoff  float64 `json:"backoff,omitempty"`  // seconds, before the first of them
	Priority int     `json:"priority,omitempty"` // higher is sooner
	Unique   string  `json:"unique,omitempty"`
	Keep     float64 `json:"keep,omitempty"`    // seconds
	Timeout  float64 `json:"timeout,omitempty"` // seconds, for each attempt
	On       string  `json:"on,omitempty"`
}

// payload is bytes of a job: in the data bucket, or, if they are many, in a file
// of the spool.
type payload struct {
	Size int64  `json:"size"`
	Sum  uint32 `json:"sum,omitempty"`  // CRC-32C
	File string `json:"file,omitempty"` // its name in the spool
}

// Parts of a job, as they stand in keys of the data bucket and names of files.
const (
	partArgs   = 'a'
	partInput  = 'i'
	partOutput = 'o'
	partStderr = 'e'
)

// End is how a job, or an attempt at it, ended; as bus.Result has it.
type End struct {
	Source  string `json:"source"`
	Status  int    `json:"status"`
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
}

// Try is one attempt. Times are milliseconds of the date.
type Try struct {
	Attempt int    `json:"attempt"`
	Started int64  `json:"started"`
	Ended   int64  `json:"ended,omitempty"`
	Worker  string `json:"worker,omitempty"`
	Call    string `json:"call,omitempty"`
	End
}

// Origin is the job whose end has posted another one.
type Origin struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Status   int    `json:"status"`
	Attempts int    `json:"attempts"`
}

// Job is the record of one posted call. What is large is beside it.
type Job struct {
	ID       ID     `json:"-"`
	Function string `json:"function"`
	State    State  `json:"state"`
	Poster   Poster `json:"poster"`
	Options
	Kind     uint8    `json:"kind,omitempty"`      // of the arguments
	HasInput bool     `json:"has_input,omitempty"` // there is an input beside arguments
	Args     payload  `json:"args,omitzero"`
	Input    payload  `json:"in,omitzero"`
	Output   payload  `json:"out,omitzero"`
	Stderr   payload  `json:"err,omitzero"`
	Taken    int64    `json:"taken,omitempty"`    // bytes of the input that it had, once it is done
	Posted   int64    `json:"posted"`             // milliseconds of the date
	Due      int64    `json:"due,omitempty"`      // the store's time, while delayed
	Expires  int64    `json:"expires,omitempty"`  // the store's time, once it has ended
	Finished int64    `json:"finished,omitempty"` // milliseconds of the date
	Attempts int      `json:"attempts,omitempty"` // that were begun
	Used     int      `json:"used,omitempty"`     // that count against Retries
	Laters   int      `json:"laters,omitempty"`   // in a row that ended with "later"
	Last     *End     `json:"last,omitempty"`
	Tries    []Try    `json:"tries,omitempty"` // the last of them
	Origin   *Origin  `json:"origin,omitempty"`
	Children []string `json:"children,omitempty"` // ids of what its end has posted
}

// maxTries bounds the history of a job that is tried for a year.
const maxTries = 50

// queueKey is what jobs have in common that stand in one line.
func (j *Job) queueKey() string { return j.Function + "\x00" + j.On }

// readyKey orders jobs that are ready: line, priority, age.
func (j *Job) readyKey() []byte {
	key := append([]byte(j.queueKey()), 0, byte(maxPriority-j.Priority))
	return append(key, j.ID[:]...)
}

const maxPriority = 100

func timeKey(t int64, id ID) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(t)), id[:]...)
}

func keyID(key []byte) (id ID) {
	copy(id[:], key[max(0, len(key)-len(id)):])
	return id
}

func dataKey(id ID, part byte) []byte { return append(id[:], part) }

func (j *Job) uniqueKey() []byte {
	return []byte(j.Poster.Caller + "\x00" + j.Function + "\x00" + j.Unique)
}

// castagnoli is made when it is first needed: its tables cost 0.15 ms, which every
// fbus call would pay.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// sumOf covers where a value stands as well: one that turns up elsewhere is as
// wrong as one that has changed.
func sumOf(bucket string, key, value []byte) uint32 {
	sum := crc32.Update(0, castagnoli(), []byte(bucket+"\x00"))
	sum = crc32.Update(sum, castagnoli(), key)
	return crc32.Update(sum, castagnoli(), value)
}

// seal puts the checksum before a value.
func seal(bucket string, key, value []byte) []byte {
	out := make([]byte, 4, 4+len(value))
	binary.LittleEndian.PutUint32(out, sumOf(bucket, key, value))
	return append(out, value...)
}

// unseal returns what was sealed; ok is false for what has changed since.
func unseal(bucket string, key, sealed []byte) (value []byte, ok bool) {
	if len(sealed) < 4 {
		return nil, false
	}
	value = sealed[4:]
	return value, binary.LittleEndian.Uint32(sealed) == sumOf(bucket, key, value)
}

// sealed reports whether an entry is as it was written.
func sealed(bucket string, key, value []byte) bool {
	_, ok := unseal(bucket, key, value)
	return ok
}

func (j *Job) encode() []byte {
	data, err := json.Marshal(j)
	if err != nil {
		panic("a job that is no JSON: " + err.Error())
	}
	return data
}

var errChecksum = errors.New("its record does not match its checksum")

func decodeJob(id ID, value []byte) (*Job, error) {
	data, ok := unseal(bucketJobs, id[:], value)
	if !ok {
		return nil, errChecksum
	}
	j := &Job{ID: id}
	if err := json.Unmarshal(data, j); err != nil {
		return nil, err
	}
	return j, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func millis(t time.Time) int64 { return t.UnixMilli() }
