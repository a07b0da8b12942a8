package commands

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// flags returns the keys of [node], by the names of the flags of fbus serve and of
// workers.
func (n *nodeConfig) flags() flagTable {
	table := tableOf(n.options.nodeFlags())
	maps.Copy(table, n.ownFlags())
	return table
}

// ownFlags returns the keys that are allowed without serve = true too.
func (n *nodeConfig) ownFlags() flagTable {
	return flagTable{
		"serve":   &cli.BoolFlag{Destination: &n.serve},
		"address": &cli.StringFlag{Destination: &n.address},
		"node":    &cli.StringFlag{Destination: &n.address},
		"worker":  &cli.StringFlag{Destination: &n.worker},
		"drain":   &cli.GenericFlag{Value: &n.drain},
	}
}

func (c *configFile) nodeSetting(s setting) {
	n := &c.config.node
	if len(s.key) == 1 {
		c.problems.add(s.value.at, "node must be a table, not %s", s.value.typeName())
		return
	}
	if n.at == "" {
		n.at = s.at
	}
	if c.given != nil && c.given(s.key[1]) { // it must be valid all the same
		n = &nodeConfig{options: *newServeOptions()}
	}
	key, table := s.key[1], n.flags()
	flag := table[key]
	if flag == nil || len(s.key) > 2 {
		c.unknown(s.at, "node", strings.Join(s.key[1:], "."), longNames(table))
		return
	}
	c.apply("node", key, flag, s.value)
	switch key {
	case "network":
		n.options.hasNetwork = true
	case "socket":
		n.options.socket = under(c.base, n.options.socket)
	case "tls-cert", "tls-key", "tls-ca":
		t := &n.options.tcp
		file := map[string]*string{"tls-cert": &t.cert, "tls-key": &t.key, "tls-ca": &t.ca}[key]
		*file = under(c.base, *file)
	case "log":
		if n.options.log != "-" {
			n.options.log = under(c.base, n.options.log)
		}
	case "address", "node":
		if _, err := find.ParseAddr(n.address, s.value.at+": node: "+key); err != nil && n.address != "" {
			c.problems = append(c.problems, explain(err))
		}
		if wire.IsPath(n.address) {
			n.address = under(c.base, n.address)
		}
	}
}

// check finds keys of [node] that conflict.
func (n *nodeConfig) check(p *problems, doc *tomlFile, given func(string) bool) {
	serve := slices.Sorted(maps.Keys(tableOf(n.options.nodeFlags())))
	places := map[string]string{}
	for _, s := range doc.settings {
		if s.key[0] != "node" || len(s.key) != 2 {
			continue
		}
		if given == nil || !given(s.key[1]) {
			places[s.key[1]] = s.at
		}
		switch key := s.key[1]; {
		case n.serve && (key == "address" || key == "node"):
			p.add(s.at, "node: %s conflicts with serve = true", key)
		case !n.serve && slices.Contains(serve, key):
			p.add(s.at, "node: %s needs serve = true", key)
		}
	}
	rights := n.options.sharing.rights
	rights.check(p)
	switch {
	case len(*p) > 0:
	case n.serve:
		if err := n.options.check(); err != nil {
			*p = append(*p, nodeError(err, places))
		}
	case rights != nil:
		p.add(rights.at, "rights need serve = true")
	}
}

// nodeError adds the position in the file to an error about a node, and names options as
// the file does.
func nodeError(err error, places map[string]string) *args.Error {
	e := *explain(err)
	first, at := len(e.Message), ""
	for name, place := range places {
		if i := strings.Index(e.Message, "--"+name); i >= 0 && i < first {
			first, at = i, place
		}
	}
	if at != "" {
		e.Message = fmt.Sprintf("%s: node: %s", at, strings.ReplaceAll(e.Message, "--", ""))
	}
	return &e
}

// readConfig takes the options of a file that the command line does not set.
func (o *serveOptions) readConfig(path string, given func(flag string) bool) error {
	c := &configFile{given: given, config: upConfig{node: nodeConfig{serve: true, options: *o}}}
	c.readFile(path)
	n := &c.config.node
	for _, f := range c.config.functions {
		c.problems.add(f.where, "%s: only fbus up offers functions", f.name).WithHint("%s", join("fbus", "up", "-c", path))
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
	a.at, b.at = "", ""
	a.options.sharing.rights, b.options.sharing.rights = nil, nil // compared by themselves
	return reflect.DeepEqual(a, b)
}
