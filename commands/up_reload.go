package commands

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// reloader applies changes of the file to the functions that run.
type reloader struct {
	o      upOptions // from the command line
	config *upConfig // the last one read; its node is the running one
	w      *worker
	name   string        // of the worker
	drain  time.Duration // for calls of changed or removed functions
}

// changes counts functions by what a reload did to them.
type changes struct{ added, changed, removed, unchanged, failed int }

func (c changes) String() string {
	line := fmt.Sprintf("%d added, %d changed, %d removed, %d unchanged", c.added, c.changed, c.removed, c.unchanged)
	if c.failed > 0 {
		line += fmt.Sprintf(", %d failed", c.failed)
	}
	return line
}

// reload reads the file again. Functions that have not changed are not disturbed. A file
// with errors changes nothing, and a function that cannot be started stays as it was.
func (r *reloader) reload(ctx context.Context) {
	config, wrong := r.o.read()
	if len(wrong) > 0 {
		r.w.log("%s", explain(wrong.err()).Message)
		r.w.log("not reloaded: the functions stay as they were")
		return
	}
	if !config.node.same(&r.config.node) {
		r.w.log("%s: [node] has changed: that needs a restart", r.o.config)
	}
	if !config.node.options.sharing.rights.same(r.config.node.options.sharing.rights) {
		r.w.log("%s: [rights] have changed: that needs a restart", r.o.config)
	}
	config.node = r.config.node
	r.config = config
	var n changes
	for _, f := range config.functions {
		r.place(ctx, f, &n)
		if ctx.Err() != nil {
			return // the process ends
		}
	}
	for _, name := range r.w.names() {
		if !slices.ContainsFunc(config.functions, func(f *function) bool { return f.name == name }) {
			r.w.remove(ctx, name, r.drain)
			r.note("no longer offering %s", name)
			n.removed++
		}
	}
	if !r.o.quiet {
		r.w.log("reloaded: %s", n)
	}
}

// place adds a function, or replaces the one of its name unless they are the same.
func (r *reloader) place(ctx context.Context, f *function, n *changes) {
	old := r.w.get(f.name)
	if old != nil && old.f.same(f) {
		n.unchanged++
		return
	}
	err := r.w.put(ctx, f, r.drain)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		n.failed++
		r.w.log("%s", explain(err).Message)
		if old != nil {
			r.w.log("%s stays as it was", f.name)
		} else {
			r.w.log("%s is not offered", f.name)
		}
		return
	}
	r.note("%s", r.w.get(f.name).ready(r.name))
	if old != nil {
		n.changed++
	} else {
		n.added++
	}
}

// note reports a change of one function if -v asks for it.
func (r *reloader) note(format string, args ...any) {
	if r.o.verbose {
		r.w.log(format, args...)
	}
}
