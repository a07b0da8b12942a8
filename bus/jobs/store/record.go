package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
)

// Buckets of the store. FORMAT.md describes their keys and values.
const (
	BucketMeta   = "meta"
	BucketJobs   = "jobs"
	BucketData   = "data"
	BucketReady  = "ready"
	BucketDue    = "due"
	BucketRun    = "run"
	BucketEnd    = "end"
	BucketDead   = "dead"
	BucketUnique = "unique"

	BucketBatch   = "batch"   // the jobs of each batch
	BucketUnended = "unended" // those of them that have not ended
	BucketThen    = "then"    // what the end of a batch posts
)

var buckets = []string{BucketMeta, BucketJobs, BucketData, BucketReady, BucketDue, BucketRun, BucketEnd, BucketDead, BucketUnique}

// The buckets of batches are made when something is first written to them: the store of an
// earlier version does not have them.

// ID names a job. Ids are in the order of the posts.
type ID = ulid.ULID

// ParseID reads an id as it is printed; upper and lower case are the same.
func ParseID(s string) (ID, bool) {
	id, err := ulid.ParseStrict(s)
	return id, err == nil
}

// State is the state of a job.
type State = bus.JobState

// States of a job. The last three are final.
const (
	Queued    State = "queued"    // ready: it waits for a slot
	Delayed   State = "delayed"   // it waits for its time
	Running   State = "running"   // a worker has it
	Done      State = "done"      // it ended with status 0
	Dead      State = "dead"      // it will not be tried again
	Cancelled State = "cancelled" // a user ended it
)

// Poster is the identity that posted a job; the job runs with its rights.
type Poster struct {
	Caller string   `json:"caller"`           // "uid:0", "ticket:ci": FBUS_CALLER
	Owner  string   `json:"owner,omitempty"`  // of the job, if that is not the caller: see Key
	Serial string   `json:"serial,omitempty"` // of the ticket
	Groups []int    `json:"groups,omitempty"` // of a user of this machine, beside those of its account
	Rights []string `json:"rights,omitempty"` // of a certificate of another authority
	Until  int64    `json:"until,omitempty"`  // when that expires, in seconds of the date
	Issuer string   `json:"issuer,omitempty"` // of that certificate
}

// Key names the owner of the poster's jobs, batches and unique keys. Of a ticket it is
// "ticket:NAME@SERIAL", with the serial that its holder had first: another ticket of that name
// has another owner.
func (p *Poster) Key() string { return cmp.Or(p.Owner, p.Caller) }

// Owner selects the jobs of an owner. The zero value selects all jobs.
type Owner struct {
	Key string // as of Poster.Key
	// A job of an earlier version of fbus has no owner. It belongs to the caller of that name
	// if it was posted after Since, in milliseconds of the date; 0: it does not.
	Caller string
	Since  int64
}

// Owns reports whether a job is the owner's.
func (o *Owner) Owns(id ID, p *Poster) bool {
	return p.Key() == o.Key || p.Owner == "" && p.Caller == o.Caller && o.Since > 0 && int64(id.Time()) >= o.Since
}

// callerOf returns the caller in the key of an owner, which has no serials.
func callerOf(key string) string {
	if allCallers(key) {
		return "all callers of " + callerOf(key[:len(key)-1])
	}
	parts := strings.Split(key, "/")
	for i, p := range parts {
		if at := len(p) - 33; at >= 0 && p[at] == '@' {
			parts[i] = p[:at]
		}
	}
	return strings.Join(parts, "/")
}

// Options are the options of a post.
type Options struct {
	Then      string  `json:"then,omitempty"`
	Else      string  `json:"else,omitempty"`
	Finally   string  `json:"finally,omitempty"`
	Delay     float64 `json:"delay,omitempty"`    // seconds
	At        string  `json:"at,omitempty"`       // RFC 3339
	Retries   int     `json:"retries,omitempty"`  // further attempts after a failure
	Backoff   float64 `json:"backoff,omitempty"`  // seconds, before the first of them
	Priority  int     `json:"priority,omitempty"` // the highest goes first
	Unique    string  `json:"unique,omitempty"`
	UniqueFor float64 `json:"unique_for,omitempty"` // seconds that the key is kept after the end
	Keep      float64 `json:"keep,omitempty"`       // seconds
	Timeout   float64 `json:"timeout,omitempty"`    // seconds, for each attempt
	On        string  `json:"on,omitempty"`
	// AtMostOnce has the job not run again after a loss of its worker or node.
	AtMostOnce bool `json:"at_most_once,omitempty"`

	Batch        string `json:"batch,omitempty"`
	Item         string `json:"item,omitempty"`          // that was posted: names files of results
	ItemEncoding string `json:"item_encoding,omitempty"` // "base64" if it is not UTF-8
}

// MaxItem bounds Item.
const MaxItem = 1024

// Payload describes one part of a job: in the bucket data, or, if it is large, in a file of
// the spool.
type Payload struct {
	Size int64  `json:"size"`
	Sum  uint32 `json:"sum,omitempty"`  // CRC-32C
	File string `json:"file,omitempty"` // its name in the spool
}

// Parts of a job, in keys of the bucket data and in names of files.
const (
	PartArgs   = 'a'
	PartInput  = 'i'
	PartOutput = 'o'
	PartStderr = 'e'
)

// End describes how a job, or an attempt at it, ended.
type End struct {
	Source  string `json:"source"`
	Status  int    `json:"status"`
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
	Lost    bool   `json:"-"` // its worker has vanished, or has given it up
	Relay   bool   `json:"-"` // and was a relay: that is no evidence against the job
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

// Origin is the job whose end posted another job.
type Origin struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Status   int    `json:"status"`
	Attempts int    `json:"attempts"`
}

// Job is the record of one posted call. Large parts are in files.
type Job struct {
	ID       ID     `json:"-"`
	Function string `json:"function"`
	State    State  `json:"state"`
	Poster   Poster `json:"poster"`
	Options
	Kind     uint8    `json:"kind,omitempty"`      // of the arguments
	HasInput bool     `json:"has_input,omitempty"` // an input was posted with the arguments
	Args     Payload  `json:"args,omitzero"`
	Input    Payload  `json:"in,omitzero"`
	Output   Payload  `json:"out,omitzero"`
	Stderr   Payload  `json:"err,omitzero"`
	Taken    int64    `json:"taken,omitempty"`     // size of the input, once the job is done
	Digest   string   `json:"digest,omitempty"`    // of arguments and input, with a unique key
	KeyUntil int64    `json:"key_until,omitempty"` // the store's time, once it has ended: the key is kept until then
	Posted   int64    `json:"posted"`              // milliseconds of the date
	Due      int64    `json:"due,omitempty"`       // the store's time, while delayed
	Expires  int64    `json:"expires,omitempty"`   // the store's time, once it has ended
	Finished int64    `json:"finished,omitempty"`  // milliseconds of the date
	Attempts int      `json:"attempts,omitempty"`  // attempts that began
	Used     int      `json:"used,omitempty"`      // attempts that count against Retries
	Laters   int      `json:"laters,omitempty"`    // attempts in a row that ended with "later"
	Lost     int      `json:"lost,omitempty"`      // attempts in a row that lost their worker
	Last     *End     `json:"last,omitempty"`
	Tries    []Try    `json:"tries,omitempty"` // the last of them
	Origin   *Origin  `json:"origin,omitempty"`
	Trace    string   `json:"trace,omitempty"`    // as args.Trace has it
	Children []string `json:"children,omitempty"` // ids of the jobs that its end posted
}

// maxTries bounds the history of a job that is tried for a year.
const maxTries = 50

// QueueKey is the key of the line that the job is in.
func (j *Job) QueueKey() string { return j.Function + "\x00" + j.On }

// readyKey orders jobs that are ready: line, priority, age.
func (j *Job) readyKey() []byte {
	key := append([]byte(j.QueueKey()), 0, byte(MaxPriority-j.Priority))
	return append(key, j.ID[:]...)
}

const MaxPriority = 100

func timeKey(t int64, id ID) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(t)), id[:]...)
}

func KeyID(key []byte) (id ID) {
	copy(id[:], key[max(0, len(key)-len(id)):])
	return id
}

func DataKey(id ID, part byte) []byte { return append(id[:], part) }

// BatchKey is the key of a batch, with that of its owner.
func BatchKey(owner, name string) string { return owner + "\x00" + name }

// BatchKey is the key of the batch that the job is in, "" if there is none.
func (j *Job) BatchKey() string {
	if j.Batch == "" {
		return ""
	}
	return BatchKey(j.Poster.Key(), j.Batch)
}

// inBatch is the key of a job in the lists of a batch.
func inBatch(batch string, id ID) []byte { return append([]byte(batch+"\x00"), id[:]...) }

func (j *Job) UniqueKey() []byte {
	return []byte(j.Poster.Key() + "\x00" + j.Function + "\x00" + j.Unique)
}

// castagnoli builds its tables at first use: that takes 0.15 ms, which every fbus call
// would pay.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// sumOf covers bucket and key too: a value in the wrong place is as wrong as one that has
// changed.
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

// unseal removes the checksum; ok reports whether it is right.
func unseal(bucket string, key, sealed []byte) (value []byte, ok bool) {
	if len(sealed) < 4 {
		return nil, false
	}
	value = sealed[4:]
	return value, binary.LittleEndian.Uint32(sealed) == sumOf(bucket, key, value)
}

func (j *Job) Encode() []byte {
	data, err := json.Marshal(j)
	if err != nil {
		panic("a job that is no JSON: " + err.Error())
	}
	return data
}

var errChecksum = errors.New("its record does not match its checksum")

func DecodeJob(id ID, value []byte) (*Job, error) {
	data, ok := unseal(BucketJobs, id[:], value)
	if !ok {
		return nil, errChecksum
	}
	j := &Job{ID: id}
	if err := json.Unmarshal(data, j); err != nil {
		return nil, err
	}
	return j, nil
}

// Peek reads the first fields of a record, so that a list of many jobs need not decode
// them all. Of the poster it reads caller and owner.
func Peek(value []byte) (function string, state State, poster Poster, ok bool) {
	rest := value[min(4, len(value)):]
	for _, part := range []struct {
		before string
		into   *string
	}{{`{"function":`, &function}, {`,"state":`, (*string)(&state)}, {`,"poster":{"caller":`, &poster.Caller}} {
		if rest, ok = bytes.CutPrefix(rest, []byte(part.before)); !ok {
			return
		}
		if *part.into, rest, ok = peekText(rest); !ok {
			return
		}
	}
	if owner, has := bytes.CutPrefix(rest, []byte(`,"owner":`)); has {
		poster.Owner, _, ok = peekText(owner)
	}
	return
}

// peekText returns the JSON string that rest begins with, and what follows it.
func peekText(rest []byte) (text string, after []byte, ok bool) {
	plain := true
	for i := 1; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			plain = false
			i++
		case '"':
			if plain {
				return string(rest[1:i]), rest[i+1:], true
			}
			err := json.Unmarshal(rest[:i+1], &text)
			return text, rest[i+1:], err == nil
		}
	}
	return "", nil, false
}

// Ended holds the fields that decide whether the result of a job may be deleted for its room.
type Ended struct {
	Finished int64 // milliseconds of the date
	KeyUntil int64 // the store's time
	Bytes    int64 // of its payloads
}

// PeekEnded reads that of a record. It returns false for a job that is kept in any case.
func PeekEnded(record []byte) (e Ended, ok bool) {
	_, state, _, ok := Peek(record)
	if !ok || state != Done && state != Cancelled {
		return e, false
	}
	e.Finished, e.KeyUntil, e.Bytes = peekNumber(record, `,"finished":`), peekNumber(record, `,"key_until":`), peekBytes(record)
	return e, e.Finished > 0
}

// peekNumber returns the number in the first field of that name, 0 if there is none. In a
// text there would be a backslash before the quotes.
func peekNumber(record []byte, field string) int64 {
	_, rest, _ := bytes.Cut(record, []byte(field))
	n, _ := strconv.ParseInt(string(rest[:max(0, bytes.IndexAny(rest, ",}"))]), 10, 64)
	return n
}

// peekBytes returns the size of all payloads.
func peekBytes(record []byte) (size int64) {
	const field = `{"size":`
	for i := bytes.Index(record, []byte(field)); i >= 0; i = bytes.Index(record, []byte(field)) {
		size += peekNumber(record, field)
		record = record[i+len(field):]
	}
	return size
}

func Seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// DefaultKeep is how long results are kept.
const DefaultKeep = 7 * 24 * time.Hour

// KeepTime returns how long the job's result is kept.
func (j *Job) KeepTime() time.Duration {
	if j.Keep > 0 {
		return Seconds(j.Keep)
	}
	return DefaultKeep
}

// End moves the job into a final state. now is the store's time.
func (j *Job) End(state State, now int64, wall time.Time) {
	j.State, j.Due, j.Finished = state, 0, wall.UnixMilli()
	if j.UniqueFor > 0 {
		j.KeyUntil = now + int64(Seconds(j.UniqueFor))
	}
	if state != Dead { // its record has to be there as long as its key
		j.Expires = max(now+int64(j.KeepTime()), j.KeyUntil)
	}
}

// Note adds an attempt to the history.
func (j *Job) Note(t Try) {
	j.Tries = append(j.Tries, t)
	j.Tries = j.Tries[max(0, len(j.Tries)-maxTries):]
}

// Equal reports whether two records are the same.
func (j *Job) Equal(other *Job) bool { return bytes.Equal(j.Encode(), other.Encode()) }

// maxSeconds keeps a time in seconds from overflowing: a hundred years.
const maxSeconds = 100 * 365 * 86400

func (o *Options) Check() error {
	for _, t := range []struct {
		name string
		v    float64
	}{{"delay", o.Delay}, {"backoff", o.Backoff}, {"keep", o.Keep}, {"timeout", o.Timeout}, {"unique_for", o.UniqueFor}} {
		if math.IsNaN(t.v) || t.v < 0 || t.v > maxSeconds {
			return fmt.Errorf("%s: %v is not a valid time in seconds", t.name, t.v)
		}
	}
	switch {
	case o.At != "" && o.Delay > 0:
		return fmt.Errorf("delay and at exclude each other")
	case o.Retries < 0 || o.Retries > 1_000_000:
		return fmt.Errorf("retries: %d is not between 0 and 1000000", o.Retries)
	case o.Priority < -MaxPriority || o.Priority > MaxPriority:
		return fmt.Errorf("priority: %d is not between %d and %d", o.Priority, -MaxPriority, MaxPriority)
	case strings.ContainsRune(o.Unique, utf8.RuneError): // invalid bytes have become that, and different keys would be equal
		return fmt.Errorf("unique: the key is not valid UTF-8")
	case len(o.Unique) > 1024:
		return fmt.Errorf("unique: %d bytes exceed the limit of 1024", len(o.Unique))
	case o.UniqueFor > 0 && o.Unique == "":
		return fmt.Errorf("unique_for: there is no unique key")
	case len(o.On) > wire.MaxGlob:
		return fmt.Errorf("on: %d bytes exceed the limit of %d", len(o.On), wire.MaxGlob)
	case strings.ContainsAny(o.On, "\x00\x01"):
		return fmt.Errorf("on: not a valid glob of worker names")
	case o.Batch != "" && !args.ValidName(o.Batch):
		return fmt.Errorf("batch: invalid name %q", args.Shown(o.Batch))
	case len(o.Item) > 2*MaxItem: // in base64 it is longer
		return fmt.Errorf("item: %d bytes exceed the limit of %d", len(o.Item), 2*MaxItem)
	case o.ItemEncoding != "" && o.ItemEncoding != "base64":
		return fmt.Errorf("item_encoding: must be base64")
	}
	if _, err := wire.ParseOn(o.On); err != nil {
		return fmt.Errorf("on: %v", err)
	}
	if err := cmp.Or(args.CheckNoToken("unique", o.Unique), args.CheckNoToken("item", o.Item)); err != nil {
		return err
	}
	if o.At != "" {
		at, err := time.Parse(time.RFC3339, o.At)
		if err != nil {
			return fmt.Errorf("at: invalid time %q: use a form like 2026-11-26T07:00:00Z", o.At)
		}
		if time.Until(at) > Seconds(maxSeconds) { // the store's time would overflow
			return fmt.Errorf("at: %s is more than a hundred years ahead", o.At)
		}
	}
	return nil
}

// DueAt returns the store's time at which the job is ready; 0: now.
func (o *Options) DueAt(t *Timeline) int64 {
	if o.At != "" {
		at, _ := time.Parse(time.RFC3339, o.At)
		if due := t.At(at); due > t.Now() {
			return due
		}
		return 0
	}
	if o.Delay > 0 {
		return t.Now() + int64(Seconds(o.Delay))
	}
	return 0
}
