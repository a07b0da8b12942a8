package commands

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

// reloader makes what runs what the file says now.
type reloader struct {
	o      upOptions // as the command line has them
	config *upConfig // as it was read last
	w      *worker
	drain  time.Duration
	stderr io.Writer
}

// reload reads again. What has not changed is not touched; what does not parse
// changes nothing, and a function that can not be made stays as it was.
func (r *reloader) reload(ctx context.Context) {
	config, wrong := r.o.read()
	if len(wrong) > 0 {
		f := explain(wrong.err())
		r.w.log("%s", f.msg)
		r.w.log("not reloaded: what was offered still is")
		return
	}
	if !config.node.same(&r.config.node) {
		r.w.log("%s: [node] has changed: that needs a restart", r.o.config)
	}
	var added, changed, removed, unchanged, failed int
	for _, f := range config.functions {
		old := r.w.function(f.name)
		if old != nil && old.same(f) {
			unchanged++
			continue
		}
		switch err := r.w.put(ctx, f, r.drain); {
		case ctx.Err() != nil:
			return
		case err != nil && old != nil:
			failed++
			r.w.log("%s", explain(err).msg)
			r.w.log("%s stays as it was", f.name)
		case err != nil:
			failed++
			r.w.log("%s", explain(err).msg)
			r.w.log("%s is not offered", f.name)
		case old != nil:
			changed++
		default:
			added++
		}
	}
	for _, name := range r.w.names() {
		if !slices.ContainsFunc(config.functions, func(f *function) bool { return f.name == name }) {
			r.w.remove(ctx, name, r.drain)
			removed++
		}
	}
	node := r.config.node
	r.config = config
	r.config.node = node // the one that runs
	if r.o.quiet {
		return
	}
	line := fmt.Sprintf("reloaded: %d added, %d changed, %d removed, %d unchanged", added, changed, removed, unchanged)
	if failed > 0 {
		line += fmt.Sprintf(", %d failed", failed)
	}
	r.w.log("%s", line)
}
