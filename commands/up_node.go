package commands

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// flags are the keys of [node], by the names of the flags of fbus serve and of
// workers.
func (n *nodeConfig) flags() flagTable {
	table := tableOf(n.options.nodeFlags())
	maps.Copy(table, flagTable{
		"serve":   &cli.BoolFlag{Destination: &n.serve},
		"address": &cli.StringFlag{Destination: &n.address},
		"node":    &cli.StringFlag{Destination: &n.address},
		"worker":  &cli.StringFlag{Destination: &n.worker},
		"drain":   &cli.GenericFlag{Value: &n.drain},
	})
	return table
}

func (c *configFile) nodeSetting(s setting) {
	n := &c.config.node
	if len(s.key) == 1 {
		c.problems.add(s.value.at, "node: a table is due, not %s", s.value.typeName())
		return
	}
	if n.at == "" {
		n.at = s.at
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
		if strings.Contains(n.address, "/") {
			n.address = under(c.base, n.address)
		}
	}
}

// check finds keys of [node] that do not go together.
func (n *nodeConfig) check(p *problems, doc *tomlFile) {
	serve := slices.Sorted(maps.Keys(tableOf(n.options.nodeFlags())))
	for _, s := range doc.settings {
		if s.key[0] != "node" || len(s.key) != 2 {
			continue
		}
		switch key := s.key[1]; {
		case n.serve && (key == "address" || key == "node"):
			p.add(s.at, "node: %s and serve = true exclude each other", key)
		case !n.serve && slices.Contains(serve, key):
			p.add(s.at, "node: %s is for serve = true", key)
		}
	}
}

// same reports whether nothing has changed but the place in the file.
func (n *nodeConfig) same(m *nodeConfig) bool {
	a, b := *n, *m
	a.at, b.at = "", ""
	return reflect.DeepEqual(a, b)
}
