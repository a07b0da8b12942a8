package jobs

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"fbus/bus/args"

	"fbus/bus/jobs/store"
)

// Post is a call to be kept.
type Post struct {
	ID       ID // of [Manager.Arrives]; zero: a new one
	Function string
	Poster   Poster
	Options  Options
	Kind     args.Kind
	Args     []byte
	HasInput bool      // an input was posted with the arguments
	Input    io.Reader // nil: none
	Trace    string    // as args.Trace has it
}

// ParseOptions reads the options of a post. It refuses unknown ones: they would be
// promises that are not kept.
func ParseOptions(text []byte) (o Options, kind string, input bool, err error) {
	var q struct {
		Options
		Kind  string   `json:"kind"`
		Input bool     `json:"input"`
		Keep  *float64 `json:"keep"`
	}
	if len(strings.TrimSpace(string(text))) > 0 {
		if err := args.DecodeStrict(text, &q); err != nil {
			return o, "", false, fmt.Errorf("options: %v", err)
		}
	}
	if q.Keep != nil { // 0 is not the default
		q.Options.Keep = cmp.Or(*q.Keep, 1e-9)
	}
	return q.Options, q.Kind, q.Input, q.Options.Check()
}

// Post keeps a call. When it returns without an error the job is on disk. With a unique
// key the id may be that of a job which was there.
func (m *Manager) Post(p *Post) (ID, error) {
	if err := m.withRoom(m.store.Unwritable); err != nil {
		return ID{}, err
	}
	j := &Job{
		ID: p.ID, Function: p.Function, State: Queued, Poster: p.Poster, Options: p.Options,
		Kind: uint8(p.Kind), HasInput: p.HasInput, Posted: m.store.Clock.Wall().UnixMilli(),
		Trace: p.Trace,
	}
	if j.ID == (ID{}) {
		j.ID = m.store.NextID()
	}
	if err := m.withRoom(func() error { return m.store.Shares.Take(nil, j) }); err != nil { // its input may come slowly
		return ID{}, err
	}
	args, input := m.store.Spool.NewDraft(p.Poster.Key()), m.store.Spool.NewDraft(p.Poster.Key())
	input.Counts = true // to tell what can never fit from what has no room now
	_, err := args.Write(p.Args)
	digest, from := sha256.New(), p.Input
	if j.Unique != "" {
		sent := sorted(p.Kind, p.Args)
		fmt.Fprintf(digest, "%d %t %d %s", p.Kind, p.HasInput, len(sent), sent)
		if from != nil {
			from = io.TeeReader(from, digest)
		}
	}
	if err == nil && from != nil {
		if _, err = io.Copy(input, from); err == nil {
			err = input.Failed
		}
	}
	if j.Unique != "" {
		j.Digest = hex.EncodeToString(digest.Sum(nil)[:16])
	}
	if err == nil {
		err = args.Keep(j.ID, store.PartArgs, 0)
	}
	if err == nil {
		err = input.Keep(j.ID, store.PartInput, 0)
	}
	id := j.ID
	if err == nil {
		j.Args, j.Input = args.Payload, input.Payload
		if j.Due = j.Options.DueAt(m.store.Time()); j.Due > 0 {
			j.State = Delayed
		}
		err = m.withRoom(func() (err error) { id, err = m.add(j, args, input); return err })
	}
	switch {
	case err != nil || id != j.ID:
		if errors.As(err, new(*store.UncertainError)) { // its files stay: the record may be on disk
			args.File, input.File = "", ""
		}
		args.Drop()
		input.Drop()
		m.store.Shares.Change(j, nil)
		m.settle(j.BatchKey())
	case j.State == Queued:
		m.ready(j)
	default:
		m.report(id)
		m.poke()
	}
	return id, err
}

// sorted returns arguments with their fields in the order of their names: in which order
// they were given makes no difference for a unique key.
func sorted(kind args.Kind, data []byte) []byte {
	if kind != args.KindMap {
		return data
	}
	v, err := args.Decode(kind, data)
	if err != nil {
		return data
	}
	fields := make([]args.Field, len(v.Keys))
	for i, key := range v.Keys {
		fields[i] = args.Field{Name: key, Value: string(v.List[i].Text), JSON: v.List[i].JSON}
	}
	slices.SortFunc(fields, func(a, b args.Field) int { return cmp.Compare(a.Name, b.Name) })
	return args.Fields(fields...).Data()
}

// Room returns why nothing can be posted now. It may read the store.
func (m *Manager) Room() error {
	if err := m.store.Unwritable(); err != nil {
		return err
	}
	err := m.store.Shares.Full()
	if err == nil {
		err = m.store.HasRoom()
	}
	if err != nil && m.hasOld() {
		return nil
	}
	return err
}

// add writes a new job, and returns the id of the one that its unique key belongs
// to.
func (m *Manager) add(j *Job, args, input *store.Draft) (ID, error) {
	id := j.ID
	result := make(chan error, 1)
	m.store.Submit(&store.Op{Added: j.ID, Takes: store.Takes(args, input), Done: func(err error) { result <- err }, Run: func(t *store.Tx) error {
		id = j.ID
		switch other, err := t.HoldUnique(j); {
		case err != nil:
			return err
		case other != nil && !j.SameSent(other):
			return keyTaken(other)
		case other != nil:
			id = other.ID
			return nil
		}
		return store.Wrap(errors.Join(t.Enter(j), t.WritePart(j, store.PartArgs, args), t.WritePart(j, store.PartInput, input)))
	}})
	err := <-result
	return id, err
}

// keyTaken is the error of a post with the key of a job that differs from it.
func keyTaken(other *Job) error {
	e := args.Errorf(args.CodeBadInput, "unique: job %s has this key, with other arguments or input", other.ID)
	return e.WithHint("fbus jobs %s shows it; another key posts another job", other.ID)
}
