package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"fbus/bus"
	"fbus/bus/args"
)

// Bounds of the jobs that are on their way to the node. Most of the time is that of
// its disk: many share a write.
const (
	maxPosting      = 64
	maxPostingBytes = 32 << 20 // of items; one may be longer
)

// postLine is a line of --json.
type postLine struct {
	ID           string `json:"id"`
	Item         any    `json:"item,omitempty"`          // a string, or an array of them with -N
	ItemEncoding string `json:"item_encoding,omitempty"` // "base64" if item is not UTF-8
}

// postItems posts a job for each item. Ids come out in the order of the items, each
// when its job is on disk.
func postItems(o *postOptions, stdout, stderr io.Writer) error {
	items, err := o.open(o.args)
	if err != nil {
		return err
	}
	client, p, err := connect(context.Background(), o.node, o.wait, &bus.Options{Name: hostname(), KeepAlive: o.keepAlive.d})
	if err != nil {
		return err
	}
	defer client.Close()
	if o.verbose {
		say(stderr, fmt.Sprintf("node: %s (%s)", p.Addr, p.Why))
	}
	if !o.quiet {
		items.sayWhence(stderr)
	}
	ctx, stop := endedBySignal()
	defer stop()
	w := newPoster(o, client, stdout)
	defer context.AfterFunc(ctx, func() { w.stop(context.Cause(ctx)) })()
	go w.feed(items) // ends with the items, stop, or the process
	return w.finish(stderr)
}

// poster posts items, many at once.
type poster struct {
	o      *postOptions
	client *bus.Client
	out    *flusher
	queue  chan *posted // what was begun, in the order of the items

	mu      sync.Mutex // protects the fields below
	room    *sync.Cond // is told when they change
	open    int        // begun and not printed
	held    int        // bytes of their items
	stopped bool
	cause   error // of an end before the last item

	// Only finish uses these.
	count  int             // jobs that were posted
	ids    map[string]bool // theirs, with --unique
	behind int             // of them, behind the first that was not
	lost   int             // of which nobody knows
	first  *posted         // that was not posted
}

// posted is one item on its way.
type posted struct {
	item  int // its number, of several that make a job the first's
	words []string
	id    string
	err   error
	done  chan struct{} // closed when id or err is there
}

func newPoster(o *postOptions, client *bus.Client, stdout io.Writer) *poster {
	w := &poster{o: o, client: client, out: newFlusher(stdout), queue: make(chan *posted, maxPosting)}
	w.room = sync.NewCond(&w.mu)
	return w
}

// stop lets no further job begin.
func (w *poster) stop(cause error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.stopped, w.cause = true, cause
		close(w.queue)
		w.room.Broadcast()
	}
}

// feed begins a job for each item.
func (w *poster) feed(items *itemReader) {
	for item := 1; w.awaitRoom(); item += w.o.per {
		words, err := items.next()
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			w.stop(err)
			return
		}
		w.begin(&posted{item: item, words: words, done: make(chan struct{})})
	}
}

// awaitRoom waits until another job may begin; false: none may.
func (w *poster) awaitRoom() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.stopped && (w.open >= maxPosting || w.open > 0 && w.held >= maxPostingBytes) {
		w.room.Wait()
	}
	return !w.stopped
}

// begin posts a job, unless it is too late for that. It returns when the job is on
// its way, so that the items' order is that of the jobs' ages.
func (w *poster) begin(p *posted) {
	if !w.enter(p) {
		return
	}
	opened := make(chan struct{}, 1)
	go func() { // ends with the node's answer
		defer close(p.done)
		p.id, p.err = w.post(p.words, func() {
			select {
			case opened <- struct{}{}:
			default: // it is sent again
			}
		})
	}()
	select {
	case <-opened:
	case <-p.done:
	}
}

// enter takes an item in, unless none is any more.
func (w *poster) enter(p *posted) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return false
	}
	w.open++
	w.held += p.size()
	w.queue <- p // there is room: it holds what is open
	return true
}

func (p *posted) size() (n int) {
	for _, word := range p.words {
		n += len(word)
	}
	return n
}

func (w *poster) post(words []string, opened func()) (string, error) {
	req, file, err := w.o.itemOptions.request(words)
	if err != nil {
		return "", err
	}
	if file != nil {
		defer file.Close()
	}
	req.Opened = opened
	return w.o.post(w.client, req)
}

// ended makes room for another job.
func (w *poster) ended(p *posted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open--
	w.held -= p.size()
	w.room.Signal()
}

// finish prints the ids as they come, and says how it all ended. After a failure
// nothing further is begun, but what is under way is waited for: it may be posted.
func (w *poster) finish(stderr io.Writer) error {
	var output error
	for p := range w.queue {
		<-p.done
		err := p.err
		if err == nil {
			w.add(p.id)
			if err = w.print(p); err != nil && output == nil {
				output = outputError(err)
			}
			if w.first != nil {
				w.behind++
			}
		} else if w.first == nil {
			w.first = p
		}
		if explainedAs(p.err, args.CodeNodeLost) {
			w.lost++
		}
		if err != nil {
			w.stop(nil)
		}
		w.ended(p)
	}
	if err := w.out.close(); err != nil && output == nil {
		output = outputError(err)
	}
	return w.end(output, stderr)
}

// add counts a job: one for each item, unless the key of --unique is that of another.
func (w *poster) add(id string) {
	if !w.o.hasUnique {
		w.count++
		return
	}
	if w.ids == nil {
		w.ids = map[string]bool{}
	}
	w.ids[id] = true
	w.count = len(w.ids)
}

func explainedAs(err error, code string) bool { return err != nil && explain(err).Code == code }

func (w *poster) print(p *posted) error {
	if !w.o.json {
		_, err := io.WriteString(w.out, p.id+"\n")
		return errors.Join(err, w.out.soon())
	}
	l := postLine{ID: p.id}
	l.Item, l.ItemEncoding = itemJSON(p.words, w.o.per > 1)
	line, err := marshal(l)
	if err != nil {
		return err
	}
	_, err = w.out.Write(append(line, '\n'))
	return errors.Join(err, w.out.soon())
}

// end says how many jobs were posted, where that is not all.
func (w *poster) end(output error, stderr io.Writer) error {
	sofar := plural(w.count, "job") + map[bool]string{true: " was", false: " were"}[w.count == 1] + " posted"
	if w.o.hasUnique {
		sofar += ", or there already"
	}
	var sig *interrupted
	switch {
	case w.lost > 0:
		f := explain(w.first.err)
		return &args.Error{Code: args.CodeNodeLost, Message: fmt.Sprintf("%s: %s; the last %d may have been", f.Message, sofar, w.lost), Hint: "fbus jobs shows what is there; " + w.o.doctor()}
	case w.first != nil:
		return w.refused(sofar)
	case output != nil:
		f := explain(output)
		f.Message += ": " + sofar
		return f.WithHint("fbus jobs shows their ids")
	case errors.As(w.cause, &sig):
		if !w.o.quiet {
			say(stderr, "interrupted: "+sofar)
		}
		return sig
	case w.cause != nil:
		f := explain(w.cause)
		f.Message += ": " + sofar
		return f
	}
	if w.o.verbose {
		say(stderr, sofar)
	}
	return nil
}

// refused says which item was the first that was not posted.
func (w *poster) refused(sofar string) error {
	f := w.o.explain(w.first.err)
	msg := fmt.Sprintf("item %d, %s, was not posted: %s; %s", w.first.item, oneLine(shorten([]byte(label(w.first.words)))), f.Message, sofar)
	if w.behind > 0 {
		msg += fmt.Sprintf(", the last %d of items behind it", w.behind)
	}
	f.Message = msg
	return f
}
