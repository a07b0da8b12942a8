package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/cmd/schema"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// Catalog knows the functions on the bus that can be tools, and follows their changes. When the node
// is away it stays as it was.
type Catalog struct {
	// Connect returns a connection to the node, which may be one that others use too.
	Connect func(context.Context) (*bus.Client, error)
	// Wanted selects the functions by name and attributes; nil: those with the attribute tool.
	Wanted func(*bus.FunctionInfo) bool
	// Note prints a message for the user, one line.
	Note func(format string, a ...any)
	// Away is called when the node is away, instead of Note.
	Away func(error)
	// Linger is how long a function is listed that nobody offers any more; 0: a minute.
	Linger time.Duration

	mu      sync.Mutex // protects the fields below
	tools   map[string]*function
	seen    map[string]bool // names of all that have been tools: they may have jobs
	ready   chan struct{}   // closed when the functions are known
	changed map[int]func()
	lastID  int
}

// function is a function that can be a tool.
type function struct {
	info  *bus.FunctionInfo
	first bus.WorkerInfo // the worker whose description and attributes count
	form  *schema.Form
	out   *schema.Schema // of its output; nil: none
	err   error          // why it cannot be a tool
	gone  time.Time      // since when nobody offers it; zero: somebody does
}

// Run follows the bus until ctx is done, or the node refuses the connection for good.
func (c *Catalog) Run(ctx context.Context) error {
	for said := ""; ; {
		client, err := c.Connect(ctx)
		if err == nil {
			said = ""
			err = c.follow(ctx, client)
		}
		if ctx.Err() != nil {
			return nil
		}
		if !args.Retryable(err) && args.AsError(err, args.CodeNodeLost).Code != args.CodeNodeLost {
			return err
		}
		if text := err.Error(); c.Away != nil {
			c.Away(err)
		} else if text != said {
			c.Note("%s: looking for the node", text)
			said = text
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
}

// follow watches the offers of functions, until the connection ends. Whatever changes, the function is
// asked for anew: only fbus.functions has its schema.
func (c *Catalog) follow(ctx context.Context, client *bus.Client) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	w := &watched{concerns: c.concerns, names: map[string]bool{}, wake: make(chan struct{}, 1)}
	opened := make(chan struct{})
	begun := sync.OnceFunc(func() { close(opened) })
	go func() { // ends with ctx, or the connection
		_, err := client.Call(ctx, &bus.Request{
			Function: "fbus.watch", Args: bus.JSON([]byte(`{"types":["worker"]}`)), Stdout: &lines{each: w.line},
			Opened: func(string) { begun() },
		})
		if err == nil {
			err = args.Errorf(args.CodeNodeLost, "the node has ended fbus.watch")
		}
		stop(err)
	}()
	select {
	case <-opened: // what changes from now on is seen
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	w.reset()
	for {
		names, all := w.take()
		if err := c.ask(ctx, client, names, all); err != nil {
			return err
		}
		select {
		case <-w.wake:
		case <-c.expiry():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watched collects the functions whose offers have changed.
type watched struct {
	concerns func(*bus.FunctionInfo) bool

	mu    sync.Mutex // protects the fields below
	names map[string]bool
	all   bool
	wake  chan struct{} // has room for one: there are some
}

// line takes a line of fbus.watch.
func (w *watched) line(text []byte) {
	var change struct {
		Type       string            `json:"type"`
		Function   string            `json:"function"`
		Attributes map[string]string `json:"attributes"`
	}
	if json.Unmarshal(text, &change) != nil {
		return
	}
	resync := change.Type == "resync"
	if !resync && !w.concerns(&bus.FunctionInfo{Name: change.Function, Attributes: change.Attributes}) {
		return
	}
	w.mu.Lock()
	if resync {
		w.all = true
	} else {
		w.names[change.Function] = true
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watched) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = true
}

func (w *watched) take() (names []string, all bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	names, all = slices.Sorted(maps.Keys(w.names)), w.all
	clear(w.names)
	w.all = false
	return names, all
}

// mostNames is how many functions fbus.functions takes at once.
const mostNames = 1000

// ask asks the node for these functions, or all, and updates the catalog.
func (c *Catalog) ask(ctx context.Context, client *bus.Client, names []string, all bool) error {
	if all {
		list, err := functions(ctx, client, nil)
		if err != nil {
			return err
		}
		names = nil
		for _, f := range list {
			if c.wants(f) {
				names = append(names, f.Name)
			}
		}
		c.mu.Lock()
		for name := range c.tools { // some may be gone
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		c.mu.Unlock()
	}
	found := map[string]*bus.FunctionInfo{}
	for some := range slices.Chunk(names, mostNames) {
		list, err := functions(ctx, client, some)
		if err != nil {
			return err
		}
		for _, f := range list {
			if c.wants(f) {
				found[f.Name] = f
			}
		}
	}
	c.update(names, found)
	return nil
}

func (c *Catalog) wants(f *bus.FunctionInfo) bool {
	if c.Wanted != nil {
		return c.Wanted(f)
	}
	_, tool := f.Attributes["tool"]
	return tool
}

// concerns reports whether an offer of a function can change the catalog.
func (c *Catalog) concerns(f *bus.FunctionInfo) bool { return c.get(f.Name) != nil || c.wants(f) }

// functions asks for functions by name, all of them without names.
func functions(ctx context.Context, client *bus.Client, names []string) (list []*bus.FunctionInfo, err error) {
	var out bytes.Buffer
	req := &bus.Request{Function: "fbus.functions", Stdout: &out}
	if len(names) > 0 {
		req.Args = bus.List(names...)
	}
	if _, err := client.Call(ctx, req); err != nil {
		return nil, err
	}
	for d := json.NewDecoder(&out); d.More(); {
		f := &bus.FunctionInfo{}
		if err := d.Decode(f); err != nil {
			return nil, args.Errorf(args.CodeProtocol, "fbus.functions: %v", err)
		}
		list = append(list, f)
	}
	return list, nil
}

// update takes what the node says of the functions with these names. Only follow calls it.
func (c *Catalog) update(names []string, found map[string]*bus.FunctionInfo) {
	c.mu.Lock()
	if c.tools == nil {
		c.tools, c.seen = map[string]*function{}, map[string]bool{}
	}
	before := maps.Clone(c.tools)
	c.mu.Unlock()
	// A client waits for the first list, and schemas take the most time of it.
	made := make([]*function, len(names))
	var next atomic.Int64
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() { // ends with the names
			for i := next.Add(1) - 1; i < int64(len(names)); i = next.Add(1) - 1 {
				if now := found[names[i]]; now != nil && len(now.Workers) > 0 {
					made[i] = newFunction(before[names[i]], now)
				}
			}
		})
	}
	all.Wait()
	c.mu.Lock()
	changed := false
	for i, name := range names {
		old, f := c.tools[name], made[i]
		switch {
		case f != nil:
			changed = changed || old == nil || !sameTool(old, f)
			c.tools[name], c.seen[name] = f, true
		case old != nil && old.gone.IsZero():
			gone := *old // others read it
			gone.gone = time.Now()
			c.tools[name] = &gone
		}
	}
	for name, f := range c.tools {
		if !f.gone.IsZero() && time.Since(f.gone) >= c.linger() {
			delete(c.tools, name)
			changed = true
		}
	}
	first := !isClosed(c.readyLocked())
	var tell []func()
	if changed || first {
		tell = slices.Collect(maps.Values(c.changed))
	}
	c.mu.Unlock()
	for _, f := range tell {
		f()
	}
	if first {
		close(c.ready) // whoever has waited finds the tools listed
	}
}

// newFunction makes a function of what the node says. If several workers offer it and do not agree,
// the first counts until it goes.
func newFunction(old *function, now *bus.FunctionInfo) *function {
	f := &function{info: now, first: now.Workers[0]}
	if old != nil {
		for _, w := range now.Workers[1:] {
			if w.ID == old.first.ID {
				f.first = w
			}
		}
	}
	if old != nil && len(now.Workers) > 1 && f.first.ID == old.first.ID && sameOffer(&f.first, &old.first) {
		f.form, f.out, f.err = old.form, old.out, old.err // the schema that came may be another worker's
		return f
	}
	described := *now
	described.Arguments, described.Takes = f.first.Arguments, f.first.Takes
	if f.form, f.err = schema.FormOf(&described); f.err != nil {
		return f
	}
	if f.err = f.form.Exact(); f.err != nil { // an agent would be told that wrong arguments are good, or that good ones are wrong
		return f
	}
	if f.form.Text, f.err = cleanSchema(f.form.Text); f.err != nil {
		return f
	}
	if text := f.first.Attributes["output-schema"]; text != "" {
		if f.out, f.err = schema.Compile([]byte(text)); f.err == nil {
			if f.err = f.out.Exact(); f.err == nil {
				f.out.Text, f.err = cleanSchema(f.out.Text)
			}
		}
		if f.err != nil {
			f.err = args.Errorf(args.CodeUsage, "output-schema: %v", f.err)
			return f
		}
	}
	f.err = f.accepted()
	return f
}

// scratch is a server with which the library checks tools. Nobody uses it.
var scratch = sync.OnceValue(func() *sdk.Server { return sdk.NewServer(&sdk.Implementation{Name: "scratch"}, nil) })

// accepted returns an error if the library does not accept the function as a tool, for instance since its schema
// has wrong annotations. It panics then.
func (f *function) accepted() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New(strings.TrimPrefix(fmt.Sprint(r), `AddTool "checked": `))
		}
	}()
	tool := &sdk.Tool{Name: "checked", InputSchema: f.form.Text}
	if f.out != nil {
		tool.OutputSchema = f.out.Text
	}
	scratch().AddTool(tool, nil)
	return nil
}

// sameOffer reports whether two offers say the same of a function.
func sameOffer(a, b *bus.WorkerInfo) bool {
	return a.Description == b.Description && a.Arguments == b.Arguments && a.Takes == b.Takes && a.Idempotent == b.Idempotent && maps.Equal(a.Attributes, b.Attributes)
}

// sameTool reports whether agents see no difference.
func sameTool(a, b *function) bool {
	text := func(f *function) string {
		if f.form == nil {
			return ""
		}
		return string(f.form.Text)
	}
	return sameOffer(&a.first, &b.first) && text(a) == text(b) && reflect.DeepEqual(a.err, b.err)
}

// expiry returns a channel that has something when a function must be forgotten; nil: none.
func (c *Catalog) expiry() <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var next time.Time
	for _, f := range c.tools {
		if !f.gone.IsZero() && (next.IsZero() || f.gone.Before(next)) {
			next = f.gone
		}
	}
	if next.IsZero() {
		return nil
	}
	return time.After(time.Until(next.Add(c.linger())))
}

func (c *Catalog) linger() time.Duration {
	if c.Linger > 0 {
		return c.Linger
	}
	return time.Minute
}

// Ready is closed when the functions are known.
func (c *Catalog) Ready() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readyLocked()
}

func (c *Catalog) readyLocked() chan struct{} {
	if c.ready == nil {
		c.ready = make(chan struct{})
	}
	return c.ready
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// onChange has f called after each change, until the function that it returns is called.
func (c *Catalog) onChange(f func()) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed == nil {
		c.changed = map[int]func(){}
	}
	c.lastID++
	id := c.lastID
	c.changed[id] = f
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.changed, id)
	}
}

// get returns a function, nil if it is not a tool.
func (c *Catalog) get(name string) *function {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tools[name]
}

// knows reports whether a function is or was a tool.
func (c *Catalog) knows(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[name]
}

// list returns the functions, by name.
func (c *Catalog) list() []*function {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*function
	for _, name := range slices.Sorted(maps.Keys(c.tools)) {
		list = append(list, c.tools[name])
	}
	return list
}

// lines passes on what is written to it line by line. A line that is too long is dropped.
type lines struct {
	each func(line []byte)
	rest []byte
	drop bool
}

const longestLine = 1 << 20

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		if !l.drop {
			l.rest = append(l.rest, line...)
		}
		if len(l.rest) > longestLine {
			l.rest, l.drop = nil, true
		}
		if !whole {
			return n, nil
		}
		if !l.drop {
			l.each(l.rest)
		}
		l.rest, l.drop, p = l.rest[:0], false, rest
	}
}
