package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

func jobQuery(q *asked) (*bus.JobQuery, error) {
	d := &bus.JobQuery{}
	if err := q.document(d); err != nil {
		return nil, err
	}
	if d.Dead && q.Function != "fbus.retry" || d.Older != 0 && q.Function != "fbus.purge" || (d.Limit != 0 || d.After != "" || d.Newest || d.Among != nil) && q.Function != "fbus.jobs" {
		return nil, usageError("%s: dead is for fbus.retry, older for fbus.purge; limit, after, newest and among are for fbus.jobs", q.Function) // ignored, they would widen the answer
	}
	if _, ok := jobs.ParseID(d.After); d.After != "" && !ok { // the list would begin with the first job again
		return nil, usageError("%s: after must be the id of a job, not %q", q.Function, args.Shown(d.After))
	}
	if _, err := wire.ParseOn(d.Function); err != nil || strings.HasPrefix(d.Function, "#") {
		return nil, usageError("%s: invalid glob %q", q.Function, args.Shown(d.Function))
	}
	globs := slices.Concat(d.Among...)
	if len(globs) > maxAmong {
		return nil, usageError("%s: among has %d globs, which exceeds the limit of %d", q.Function, len(globs), maxAmong)
	}
	for _, g := range globs {
		if err := trust.CheckGlob(g); err != nil {
			return nil, usageError("%s: %v", q.Function, err)
		}
	}
	switch jobs.State(d.State) {
	case "", jobs.Queued, jobs.Delayed, jobs.Running, jobs.Done, jobs.Dead, jobs.Cancelled:
		return d, nil
	}
	return nil, usageError("%s: invalid state %q: it must be queued, delayed, running, done, dead or cancelled", q.Function, args.Shown(d.State))
}

// maxAmong bounds the globs that each job is compared with.
const maxAmong = 512

// among are lists of globs; a function must match one of each.
type among [][]string

func (a *among) MayCall(function string) bool {
	for _, globs := range *a {
		if !(trust.Rights{Call: globs}).MayCall(function) {
			return false
		}
	}
	return true
}

// filter selects the jobs that a query is about, of the caller's own, or of all if the caller has a right.
func (q *asked) filter(d *bus.JobQuery, all func(*Peer) bool) (f jobs.Filter, err error) {
	f = jobs.Filter{State: jobs.State(d.State), Function: d.Function}
	if !all(q.peer) {
		f.Owner = q.peer.owner()
	}
	if l := q.peer.Lowered; l != nil && ownOf(q.Function).changes && !q.peer.admin() {
		f.May = l
	}
	if d.Among != nil {
		f.May = (*among)(&d.Among)
	}
	if d.Batch != "" {
		f.Batch, err = q.batch(d.Batch, all)
	}
	return f, err
}

// batch finds a batch with jobs: NAME is the caller's, POSTER/NAME another's, for which the caller
// needs the right to all. POSTER may be an owner.
func (q *asked) batch(text string, all func(*Peer) bool) (string, error) {
	own := q.peer.owner().Key
	owner, name := own, text
	if i := strings.LastIndexByte(text, '/'); i >= 0 {
		if owner, name = text[:i], text[i+1:]; owner == q.peer.bearer() {
			owner = own
		}
	}
	if !args.ValidName(name) {
		return "", usageError("%s: invalid name of a batch %q", q.Function, args.Shown(text))
	}
	anybody := all(q.peer)
	found := q.node.cfg.Jobs.Batches(owner, name, anybody || owner != own && q.peer.monitor())
	switch {
	case len(found) > 0 && owner != own && !anybody && q.peer.monitor():
		return "", q.denyOther("a batch")
	case len(found) == 1 && (owner == own || anybody):
		return found[0], nil
	case len(found) > 1:
		names := make([]string, 0, len(found))
		for _, key := range found[:min(len(found), 5)] {
			names = append(names, args.Shown(strings.Replace(key, "\x00", "/", 1)))
		}
		return "", args.Errorf(args.CodeUsage, "%s: %s is the name of several batches, of different owners", q.Function, args.Shown(text)).WithHint("use one of %s", strings.Join(names, ", "))
	default:
		return "", args.Errorf(args.CodeBadInput, "%s: no such batch", args.Shown(text)).WithHint("a batch is there while it has jobs: fbus jobs lists them")
	}
}

// job finds a job of the caller's, or any if the caller has the right to all. One that is absent and
// one of somebody else look alike.
func (q *asked) job(ctx context.Context, text string, all func(*Peer) bool) (*jobs.Job, error) {
	store, p := q.node.cfg.Jobs, q.peer
	absent := args.Errorf(args.CodeBadInput, "%s: no such job", args.Shown(text)).WithHint("fbus jobs lists them")
	id, ok := jobs.ParseID(text)
	if !ok && args.ValidName(text) {
		absent.Hint += fmt.Sprintf("; fbus jobs --function %s those of a function", text)
	}
	switch {
	case !ok:
		return nil, absent
	case ctx.Err() != nil: // nobody waits for the answer
		return nil, ctx.Err()
	}
	j, err := store.Get(id)
	switch {
	case err == nil && (all(p) || p.posted(id, &j.Poster)):
		if ownOf(q.Function).changes && !p.alters(j.Function) {
			return nil, q.deny(j.Function)
		}
		return j, nil
	case err == nil && p.monitor(): // it has seen the job
		return nil, q.denyOther("a job")
	case all(p) && !errors.Is(err, jobs.ErrNoJob):
		return nil, err
	}
	if err := store.Absent(id); !errors.Is(err, jobs.ErrNoJob) {
		return nil, err
	}
	return nil, absent
}

// ids finds the jobs of a query that names some.
func (q *asked) ids(ctx context.Context, d *bus.JobQuery, all func(*Peer) bool) ([]jobs.ID, error) {
	ids := make([]jobs.ID, 0, len(d.IDs))
	for _, text := range d.IDs {
		j, err := q.job(ctx, text, all)
		if err != nil {
			return nil, err
		}
		ids = append(ids, j.ID)
	}
	return ids, nil
}

func serveJobs(ctx context.Context, q *asked) error {
	d, err := jobQuery(q)
	if err != nil {
		return err
	}
	store, total := q.node.cfg.Jobs, len(d.IDs)
	for _, id := range d.IDs {
		j, err := q.job(ctx, id, (*Peer).monitor)
		if err != nil {
			return err
		}
		i := store.Info(j, true)
		q.note(j, i, true)
		if err := q.put(i); err != nil {
			return err
		}
	}
	if len(d.IDs) == 0 {
		f, err := q.filter(d, (*Peer).monitor)
		if err != nil {
			return err
		}
		after, _ := jobs.ParseID(d.After)
		total, err = store.List(ctx, &jobs.Query{Filter: f, Limit: d.Limit, After: after, Newest: d.Newest}, func(j *jobs.Job, i *bus.JobInfo) error {
			q.note(j, i, false)
			return q.put(i)
		})
		if err != nil {
			return err
		}
	}
	q.line(bus.JobTotal{Total: total})
	return nil
}

// serveResult answers what a job has written, and ends as the job did.
func serveResult(ctx context.Context, q *asked) error {
	words, err := q.Words()
	if err != nil || len(words) < 1 || len(words) > 2 {
		return usageError("fbus.result takes the id of a job, and options as a JSON object")
	}
	o := struct {
		Wait    bool    `json:"wait"`
		Timeout float64 `json:"timeout"`
		Follow  bool    `json:"follow"`
	}{Wait: true}
	if len(words) == 2 {
		if err := strict(q.Function, []byte(words[1]), &o); err != nil {
			return err
		}
	}
	store := q.node.cfg.Jobs
	j, err := q.job(ctx, words[0], (*Peer).admin)
	shown := false
	if err == nil && !j.State.Finished() && (o.Wait || o.Follow) {
		if o.Timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(min(o.Timeout, 1e9)*float64(time.Second)))
			defer cancel()
		}
		if !o.Follow {
			j, err = store.Wait(ctx, j.ID)
		} else {
			j, shown, err = store.Follow(ctx, j.ID, q.Stdout, q.Stderr)
		}
	}
	if err == nil && !j.State.Finished() || errors.Is(err, jobs.ErrUnfinished) {
		err = fmt.Errorf("%s: it is %s: %w", j.ID, store.State(j), jobs.ErrUnfinished)
	}
	if err != nil {
		return err
	}
	q.result = &bus.Result{End: bus.End{Source: args.ParseSource(j.Last.Source), Status: j.Last.Status, Code: j.Last.Code, Message: j.Last.Message}}
	if shown {
		return nil
	}
	q.take() // all of it is read
	stdout, stderr, err := store.Result(ctx, j)
	q.pass()
	if err != nil {
		return err
	}
	defer stdout.Close()
	defer stderr.Close()
	var both sync.WaitGroup // neither waits for the other
	both.Go(func() { io.Copy(q.Stderr, stderr) })
	if j.Output.Size <= wire.ChunkSize {
		_, err = q.out.ReadFrom(stdout)
	} else {
		_, err = io.Copy(q.Stdout, stdout)
	}
	both.Wait()
	return err
}

// serveRetry queues jobs again.
func serveRetry(ctx context.Context, q *asked) error {
	d, err := jobQuery(q)
	if err == nil && len(d.IDs) == 0 && !d.Dead && d.Batch == "" {
		err = usageError("fbus.retry takes ids, \"dead\": true, or a batch")
	}
	if err != nil {
		return err
	}
	store := q.node.cfg.Jobs
	ids, err := q.ids(ctx, d, (*Peer).admin)
	if err == nil && len(d.IDs) == 0 {
		if d.Dead {
			d.State = string(jobs.Dead)
		}
		f, missing := q.filter(d, (*Peer).admin)
		if missing != nil {
			return missing
		}
		_, err = store.List(ctx, &jobs.Query{Filter: f}, func(_ *jobs.Job, i *bus.JobInfo) error {
			again := i.State == jobs.Dead || i.State == jobs.Cancelled
			if again && i.Code != args.CodeDamaged { // a person has to look at that one: by its id
				id, _ := jobs.ParseID(i.ID)
				ids = append(ids, id)
			}
			return nil
		})
	}
	if err != nil {
		return err
	}
	for some := range slices.Chunk(ids, retriesAtOnce) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs := make([]error, len(some))
		var all sync.WaitGroup
		for i, id := range some {
			all.Go(func() { errs[i] = store.Retry(id) })
		}
		all.Wait()
		for i, id := range some {
			if errs[i] != nil {
				return errs[i]
			}
			fmt.Fprintf(&q.out, "{\"id\":%q}\n", id)
		}
		if err := q.flush(); err != nil {
			return err
		}
	}
	return nil
}

// retriesAtOnce is how many jobs share a commit when many are queued again.
const retriesAtOnce = 64

func servePurge(ctx context.Context, q *asked) error {
	d, err := jobQuery(q)
	if err == nil && len(d.IDs) == 0 && d.State == "" && d.Older <= 0 && d.Batch == "" {
		err = usageError("fbus.purge takes a state, an age, a batch, or ids")
	}
	if err == nil && jobs.State(d.State) == jobs.Running {
		err = usageError("a running job cannot be purged: cancel it first")
	}
	if err != nil {
		return err
	}
	store, count := q.node.cfg.Jobs, 0
	f, err := q.filter(d, (*Peer).admin)
	if err != nil {
		return err
	}
	older := time.Duration(min(d.Older, 1e9) * float64(time.Second))
	if len(d.IDs) == 0 {
		count, err = store.Purge(ctx, &f, older)
	} else if ids, missing := q.ids(ctx, d, (*Peer).admin); missing != nil {
		err = missing
	} else {
		count, err = store.PurgeThese(ctx, ids, &f, older)
	}
	if err == nil {
		fmt.Fprintf(&q.out, "{\"purged\":%d}\n", count)
	}
	return err
}

// serveBatch has the end of a batch post a job.
func serveBatch(_ context.Context, q *asked) error {
	var d bus.BatchThen
	if err := q.document(&d); err != nil {
		return err
	}
	o := jobs.Options{Retries: d.Retries, Backoff: d.Backoff, Priority: d.Priority, Keep: d.Keep, Timeout: d.Timeout, On: d.On}
	if err := o.Check(); err != nil {
		return usageError("%s: %v", q.Function, err)
	}
	switch {
	case !args.ValidName(d.Batch):
		return usageError("%s: invalid name of a batch %q", q.Function, args.Shown(d.Batch))
	case !args.ValidName(d.Then):
		return usageError("invalid function name %q", args.Shown(d.Then))
	case reserved(d.Then):
		return usageError("%s: the node's own functions cannot be posted", d.Then)
	case !q.peer.mayCall(d.Then):
		return q.deny(d.Then)
	}
	return q.node.cfg.Jobs.Then(d.Batch, &jobs.Then{Function: d.Then, Poster: q.node.poster(q.peer), Options: o}, d.Check)
}

func serveWait(ctx context.Context, q *asked) error {
	var d bus.JobWait
	if err := q.document(&d); err != nil {
		return err
	}
	if (len(d.IDs) > 0) == (d.Batch != "") {
		return usageError("%s takes ids or a batch", q.Function)
	}
	progress := func(i bus.WaitInfo) error {
		q.line(i)
		_, err := q.Stdout.Write(q.out.Bytes())
		q.out.Reset()
		return err
	}
	if d.Batch != "" {
		batch, err := q.batch(d.Batch, (*Peer).monitor)
		if err != nil {
			return err
		}
		return q.node.cfg.Jobs.WaitBatch(ctx, batch, progress)
	}
	ids, err := q.ids(ctx, &bus.JobQuery{IDs: d.IDs}, (*Peer).monitor)
	if err != nil {
		return err
	}
	return q.node.cfg.Jobs.WaitJobs(ctx, ids, progress)
}

// cancelBatch ends the jobs of a batch, as fbus.cancel does, and answers what they were.
func cancelBatch(ctx context.Context, q *asked) error {
	d, err := jobQuery(q)
	if err == nil && (d.Batch == "" || len(d.IDs) > 0) {
		err = usageError("%s takes the id of a call or a job, or an object with a batch", q.Function)
	}
	if err != nil {
		return err
	}
	f, err := q.filter(d, (*Peer).admin)
	if err != nil {
		return err
	}
	return q.node.cfg.Jobs.CancelAll(ctx, &f, func(i *bus.JobInfo) error { return q.put(i) })
}

// cancelJob ends a job, as fbus.cancel does, and answers what it was.
func cancelJob(ctx context.Context, q *asked, text string) error {
	j, err := q.job(ctx, text, (*Peer).admin)
	if err != nil {
		return err
	}
	was := q.node.cfg.Jobs.Info(j, false)
	was.Note = q.whyWaits(j, was, true)
	if _, err = q.node.cfg.Jobs.Cancel(ctx, j.ID); err == nil {
		q.line(was)
	}
	return err
}
