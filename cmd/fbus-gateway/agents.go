package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"fbus/bus"
	"fbus/cmd/mcp"
)

// serveMCP gives AI agents the functions with the attribute tool, at /mcp. An agent sees those that its
// caller may call.
func (g *gateway) serveMCP() {
	g.tools = &mcp.Catalog{
		Connect: func(context.Context) (*bus.Client, error) { return g.link.connected() },
		Note:    g.note,
		Away:    func(error) {}, // the link has said it
	}
	g.agents = mcp.NewHandler(g.tools, func(r *http.Request) (mcp.Access, error) {
		c := callerOf(r)
		recheck := func(ctx context.Context) error {
			if err := g.holds(r.WithContext(ctx), c); err != nil && isRefusal(err) {
				return err
			}
			return c.ended()
		}
		a := mcp.Access{Key: c.shown(), Valid: c.valid, Ended: c.ended, Recheck: recheck, Config: mcp.Config{
			Allowed: func(function string) bool { return g.mayCall(c, function) },
			Caller:  func(client string) string { return c.agent(client) },
			Begin:   func() (func(), error) { return g.beginTool(c) },

			HidesStderr: !g.cfg.showsStderr(c),
		}}
		return a, nil
	}, true)
	g.mux.HandleFunc("/mcp", func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(wholeTime))
		}
		g.agents.ServeHTTP(w, r) // the library checks methods, versions and headers
	})
}

// beginTool counts a call of a tool as a call of its caller.
func (g *gateway) beginTool(c *caller) (done func(), err error) {
	done, err = g.limits.begin(c, false)
	if limit := (*httpError)(nil); errors.As(err, &limit) {
		return nil, fmt.Errorf("%w; try again in %d s", err, limit.seconds())
	}
	return done, err
}

// agent returns the name under which the node shows the caller's agent. Calls of a token are the token's own:
// its bearer can end them and read their results.
func (c *caller) agent(client string) string {
	switch {
	case c.name == "":
		return "mcp:" + client
	case strings.HasPrefix(c.name, "ticket:"): // its jobs would be the agent's alone
		return c.name
	}
	agent := c.name + "/mcp:" + client
	return agent[:min(len(agent), 128)] // what a node accepts
}
