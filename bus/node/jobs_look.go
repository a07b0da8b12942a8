package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/wire"
)

// JobQuery is the document that fbus.jobs takes, and, as far as it applies,
// fbus.retry and fbus.purge.
type JobQuery struct {
	IDs      []string `json:"ids,omitempty"`
	State    string   `json:"state,omitempty"`
	Function string   `json:"function,omitempty"` // a name or a glob
	Limit    int      `json:"limit,omitempty"`    // 0: all
	After    string   `json:"after,omitempty"`    // only those behind this id
	Newest   bool     `json:"newest,omitempty"`   // the last of them, not the first
	Dead     bool     `json:"dead,omitempty"`     // fbus.retry: all that are dead
	Older    float64  `json:"older,omitempty"`    // fbus.purge: seconds since they ended
}

// JobTotal is the last line of what fbus.jobs answers.
type JobTotal struct {
	Total int `json:"total"` // that match, shown or not
}

// jobQuery reads the document of a call.
func jobQuery(inv *bus.Invocation) (*JobQuery, error) {
	q := &JobQuery{}
	doc := inv.Args
	switch inv.Kind {
	case args.KindJSON:
	case args.KindRaw:
		doc = bytes.TrimSpace(inv.Input)
	default:
		words, err := inv.Words()
		if err != nil || len(words) != 1 {
			return nil, usageError(inv.Function + " takes one JSON object")
		}
		doc = []byte(words[0])
	}
	if len(doc) == 0 {
		return q, nil
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields() // a filter that is not known would mean others than were asked for
	if err := dec.Decode(q); err != nil {
		return nil, usageError(inv.Function + ": " + err.Error())
	}
	if _, err := path.Match(q.Function, ""); err != nil {
		return nil, usageError(fmt.Sprintf("%s: %q is no glob", inv.Function, clean([]byte(q.Function))))
	}
	switch jobs.State(q.State) {
	case "", jobs.Queued, jobs.Delayed, jobs.Running, jobs.Done, jobs.Dead, jobs.Cancelled:
		return q, nil
	}
	return nil, usageError(fmt.Sprintf("%s: %q is no state: queued, delayed, running, done, dead or cancelled is", inv.Function, clean([]byte(q.State))))
}

// filter is what of a query says which jobs are meant, of those that are p's.
func (q *JobQuery) filter(p *Peer) jobs.Filter {
	f := jobs.Filter{State: jobs.State(q.State), Function: q.Function}
	if !p.admin() {
		f.Owner = p.Caller
	}
	return f
}

// job finds a job of p's. To others there is none.
func (n *Node) job(p *Peer, text string) (*jobs.Job, error) {
	absent := &args.Error{Code: args.CodeBadInput, Message: clean([]byte(text)) + ": no such job"}
	id, ok := jobs.ParseID(text)
	if !ok {
		return nil, absent
	}
	j, err := n.cfg.Jobs.Get(id)
	switch {
	case err == nil && (p.admin() || j.Poster.Caller == p.Caller):
		return j, nil
	case p.admin() && !errors.Is(err, jobs.ErrNoJob):
		return nil, err
	}
	// One that is not there and one that is somebody else's look alike.
	if err := n.cfg.Jobs.Absent(id); !errors.Is(err, jobs.ErrNoJob) {
		return nil, err
	}
	return nil, absent
}

// serveJobs lists jobs.
func (n *Node) serveJobs(_ context.Context, p *Peer, inv *bus.Invocation) bus.Result {
	q, err := jobQuery(inv)
	if err != nil {
		return n.jobResult(p, err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	flush := func() error {
		if out.Len() < 64<<10 {
			return nil
		}
		_, err := inv.Stdout.Write(out.Bytes())
		out.Reset()
		return err
	}
	total := len(q.IDs)
	for _, id := range q.IDs {
		j, err := n.job(p, id)
		if err != nil {
			inv.Stdout.Write(out.Bytes())
			return n.jobResult(p, err)
		}
		enc.Encode(n.cfg.Jobs.Info(j, true))
		if err := flush(); err != nil {
			return n.jobResult(p, err)
		}
	}
	if len(q.IDs) == 0 {
		after, _ := jobs.ParseID(q.After)
		total, err = n.cfg.Jobs.List(&jobs.Query{Filter: q.filter(p), Limit: q.Limit, After: after, Newest: q.Newest}, func(i *jobs.Info) error {
			enc.Encode(i)
			return flush()
		})
		if err != nil {
			return n.jobResult(p, err)
		}
	}
	enc.Encode(JobTotal{Total: total})
	res := exit0
	res.Output = out.Bytes()
	return res
}

// serveResult gives what a job has written, as its caller would have had it.
func (n *Node) serveResult(ctx context.Context, p *Peer, inv *bus.Invocation) bus.Result {
	words, err := inv.Words()
	if err != nil || len(words) < 1 || len(words) > 2 {
		return n.jobResult(p, usageError("fbus.result takes the id of a job, and options as a JSON object"))
	}
	q := struct {
		Wait    bool    `json:"wait"`
		Timeout float64 `json:"timeout"`
	}{Wait: true}
	if len(words) == 2 && words[1] != "" {
		dec := json.NewDecoder(bytes.NewReader([]byte(words[1])))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&q); err != nil {
			return n.jobResult(p, usageError("fbus.result: "+err.Error()))
		}
	}
	j, err := n.job(p, words[0])
	if err == nil && q.Wait {
		wait := ctx
		if q.Timeout > 0 {
			var cancel context.CancelFunc
			wait, cancel = context.WithTimeout(ctx, time.Duration(min(q.Timeout, 1e9)*float64(time.Second)))
			defer cancel()
		}
		j, err = n.cfg.Jobs.Wait(wait, j.ID)
	}
	if err == nil && !j.State.Finished() || errors.Is(err, jobs.ErrUnfinished) {
		err = fmt.Errorf("%s: it is %s: %w", j.ID, n.cfg.Jobs.State(j), jobs.ErrUnfinished)
	}
	if err != nil {
		return n.jobResult(p, err)
	}
	return n.giveResult(p, inv, j)
}

// giveResult passes on what is kept.
func (n *Node) giveResult(p *Peer, inv *bus.Invocation, j *jobs.Job) bus.Result {
	stdout, stderr, err := n.cfg.Jobs.Result(j)
	if err != nil {
		return n.jobResult(p, err)
	}
	defer stdout.Close()
	defer stderr.Close()
	var both sync.WaitGroup // neither waits for the other
	var copied error
	both.Go(func() { io.Copy(inv.Stderr, stderr) })
	res := bus.Result{Source: args.ParseSource(j.Last.Source), Status: j.Last.Status, Code: j.Last.Code, Message: j.Last.Message}
	if j.Output.Size <= wire.ChunkSize {
		res.Output, copied = io.ReadAll(stdout)
	} else {
		_, copied = io.Copy(inv.Stdout, stdout)
	}
	both.Wait()
	if copied != nil {
		return n.jobResult(p, copied)
	}
	return res
}

// serveRetry queues jobs again.
func (n *Node) serveRetry(_ context.Context, p *Peer, inv *bus.Invocation) bus.Result {
	q, err := jobQuery(inv)
	if err == nil && len(q.IDs) == 0 && !q.Dead {
		err = usageError("fbus.retry takes ids, or \"dead\": true")
	}
	if err != nil {
		return n.jobResult(p, err)
	}
	ids := make([]jobs.ID, 0, len(q.IDs))
	for _, text := range q.IDs {
		j, err := n.job(p, text)
		if err != nil {
			return n.jobResult(p, err)
		}
		ids = append(ids, j.ID)
	}
	if q.Dead {
		q.State = string(jobs.Dead)
		_, err := n.cfg.Jobs.List(&jobs.Query{Filter: q.filter(p)}, func(i *jobs.Info) error {
			if i.Code != codeDamaged { // what it is, is for somebody to look at: by its id
				id, _ := jobs.ParseID(i.ID)
				ids = append(ids, id)
			}
			return nil
		})
		if err != nil {
			return n.jobResult(p, err)
		}
	}
	var out bytes.Buffer
	for _, id := range ids {
		if err := n.cfg.Jobs.Retry(id); err != nil {
			res := n.jobResult(p, err)
			res.Output = out.Bytes()
			return res
		}
		fmt.Fprintf(&out, "{\"id\":%q}\n", id)
	}
	res := exit0
	res.Output = out.Bytes()
	return res
}

// servePurge deletes jobs.
func (n *Node) servePurge(_ context.Context, p *Peer, inv *bus.Invocation) bus.Result {
	q, err := jobQuery(inv)
	if err == nil && len(q.IDs) == 0 && q.State == "" && q.Older <= 0 {
		err = usageError("fbus.purge takes a state, an age, or ids: which jobs are to go?")
	}
	if err == nil && jobs.State(q.State) == jobs.Running {
		err = usageError("a job that runs is not purged: cancel it first")
	}
	if err != nil {
		return n.jobResult(p, err)
	}
	count := 0
	f := q.filter(p)
	older := time.Duration(min(q.Older, 1e9) * float64(time.Second))
	if len(q.IDs) > 0 {
		var ids []jobs.ID
		for _, text := range q.IDs {
			j, err := n.job(p, text)
			if err != nil {
				return n.jobResult(p, err)
			}
			ids = append(ids, j.ID)
		}
		count, err = n.cfg.Jobs.PurgeThese(ids, &f, older)
	} else {
		count, err = n.cfg.Jobs.Purge(&f, older)
	}
	if err != nil {
		return n.jobResult(p, err)
	}
	res := exit0
	res.Output = fmt.Appendf(nil, "{\"purged\":%d}\n", count)
	return res
}

// cancelJob ends a job, as fbus.cancel does, and returns what it was.
func (n *Node) cancelJob(ctx context.Context, p *Peer, text string) (*jobs.Info, error) {
	j, err := n.job(p, text)
	if err != nil {
		return nil, err
	}
	was := n.cfg.Jobs.Info(j, false)
	_, err = n.cfg.Jobs.Cancel(ctx, j.ID)
	return was, err
}
