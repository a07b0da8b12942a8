package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"fbus/bus/args"
)

// demo prints a command line that calls a function of the bus, as soon as there is one.
func (g *gateway) demo(ctx context.Context, stdout io.Writer) {
	for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) { // ends with ctx
		g.link.mu.RLock()
		var names []string
		for name := range g.link.functions {
			names = append(names, name)
		}
		g.link.mu.RUnlock()
		if len(names) > 0 {
			name := slices.Min(names)
			fmt.Fprintf(stdout, "%s\n", args.Quote("curl", "--unix-socket", g.cfg.Socket, "-d", "hello bus", "http://x/call/"+name))
			return
		}
	}
}
