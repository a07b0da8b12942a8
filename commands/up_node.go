package commands

import (
	"cmp"
	"maps"
	"reflect"
	"strings"

	"fbus/bus/find"

	"github.com/urfave/cli/v2"
)

// nodeConfig is the [node] table. Without it, at is empty.
type nodeConfig struct {
	part
	serve   bool // be a node
	options serveOptions
	address string // or where one is
	worker  string
	drain   durationValue
}

// keys returns the keys of [node], by the names of the flags of fbus serve and of
// workers.
func (n *nodeConfig) keys() flagTable {
	table := tableOf(n.options.nodeFlags())
	maps.Copy(table, n.ownKeys())
	return table
}

// ownKeys returns the keys that are allowed without serve = true too.
func (n *nodeConfig) ownKeys() flagTable {
	return flagTable{
		"serve":   &cli.BoolFlag{Destination: &n.serve},
		"address": &cli.StringFlag{Destination: &n.address},
		"node":    &cli.StringFlag{Destination: &n.address},
		"worker":  &cli.StringFlag{Destination: &n.worker},
		"drain":   &cli.GenericFlag{Value: &n.drain},
	}
}

func (c *configFile) nodeOption(s setting) {
	n, key := &c.config.node, strings.Join(s.key[1:], ".")
	if c.given != nil && c.given(key) { // it must be valid all the same
		n = &newConfigFile("").config.node
	}
	n.at = cmp.Or(n.at, s.at)
	c.option(&n.part, s, 1)
	if n.places[key] != "" {
		n.places[key] = s.at
	}
	switch key {
	case "network":
		n.options.hasNetwork = true
	case "address", "node":
		if _, err := find.ParseAddr(n.address, s.value.at+": node: "+key); err != nil && n.address != "" {
			c.problems = append(c.problems, explain(err))
		}
	}
}

// checkNode finds keys of [node] that conflict.
func (c *configFile) checkNode() {
	n, p := &c.config.node, &c.problems
	own := n.ownKeys()
	for key, at := range n.places {
		switch {
		case n.serve && (key == "address" || key == "node"):
			p.add(at, "node: %s conflicts with serve = true", key)
		case !n.serve && own[key] == nil:
			p.add(at, "node: %s needs serve = true", key)
		}
	}
	rights := n.options.sharing.rights
	rights.check(p)
	switch {
	case len(*p) > 0:
	case n.serve:
		if err := n.options.check(); err != nil {
			*p = append(*p, n.locate(err, ""))
		}
	case rights != nil:
		p.add(rights.at, "rights need serve = true")
	}
}

// readConfig takes the options of a file that the command line does not set.
func (o *serveOptions) readConfig(path string, given func(flag string) bool) error {
	c := newConfigFile("")
	n := &c.config.node
	c.given, n.serve, n.options = given, true, *o
	c.readFile(path)
	for _, f := range c.config.functions {
		c.problems.add(f.part.at, "%s: only fbus up offers functions", f.name).WithHint("%s", join("fbus", "up", "-c", path))
	}
	switch {
	case len(c.problems) > 0:
	case !n.serve:
		c.problems.add(n.at, "node: serve = false conflicts with fbus serve")
	case n.worker != "":
		c.problems.add(n.at, "node: worker is for fbus up")
	}
	if err := c.problems.err(); err != nil {
		return err
	}
	*o = n.options
	if n.drain.set && !given("drain") {
		o.drain = n.drain
	}
	return nil
}

// same reports whether two nodes differ only in their position in the file.
func (n *nodeConfig) same(m *nodeConfig) bool {
	a, b := *n, *m
	a.part, b.part = part{}, part{}
	a.options.sharing.rights, b.options.sharing.rights = nil, nil // compared by themselves
	return reflect.DeepEqual(a, b)
}
