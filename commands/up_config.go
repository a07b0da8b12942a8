package commands

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// upConfig is the contents of a file of functions, or of a directory.
type upConfig struct {
	functions []*function
	node      nodeConfig
	notes     []string // which files were skipped, and why
}

// nodeConfig is the [node] table.
type nodeConfig struct {
	at      string // empty: there is none
	serve   bool   // be a node
	options serveOptions
	address string // or where one is
	worker  string
	drain   durationValue
}

// problems are the errors in a file, each with its position first.
type problems []*args.Error

func (p *problems) add(at, format string, args ...any) *args.Error {
	f := usage("%s: %s", at, fmt.Sprintf(format, args...))
	*p = append(*p, f)
	return f
}

// err returns all problems as one error, or nil. A usage error decides the status; if
// there is none, the first problem does.
func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	all := *p[0]
	for _, f := range p[1:] {
		all.Message += "\n" + f.Message
		all.Hint = ""
		if f.Status() == args.StatusOf(args.CodeUsage) {
			all.Code = f.Code
		}
	}
	return &all
}

// configFile reads a file of functions.
type configFile struct {
	base     string // the directory of relative paths
	config   upConfig
	given    func(flag string) bool // on the command line, which takes precedence; nil: none
	declared []*declared            // in the order of the file
	strange  string                 // the last unknown table
	problems problems
}

// readConfig reads a file of functions. If there are problems, it returns the functions
// without one, for further checks.
func readConfig(path string) (*upConfig, problems) {
	c := &configFile{config: upConfig{node: nodeConfig{options: *newServeOptions()}}}
	c.readFile(path)
	return &c.config, c.problems
}

func (c *configFile) readFile(path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		c.problems = problems{usage("%v", args.PathReason(err))}
		return
	}
	doc, err := parseTOML(path, data)
	if err == nil {
		c.base, err = absDir(path)
	}
	if err != nil {
		c.problems = problems{explain(err)}
		return
	}
	c.read(doc)
	c.problems.order(path) // tables were read before their keys
}

// order sorts problems by their position in the file.
func (p problems) order(path string) {
	slices.SortStableFunc(p, func(a, b *args.Error) int {
		return cmp.Compare(placeIn(path, a.Message), placeIn(path, b.Message))
	})
}

// placeIn returns a position in a file, taken from a message, as a number to compare.
func placeIn(path, msg string) (at int64) {
	var line, column int64
	if rest, ok := strings.CutPrefix(msg, path); ok {
		fmt.Sscanf(rest, ":%d:%d:", &line, &column)
	}
	return line<<32 + column
}

func absDir(path string) (string, error) {
	abs, err := filepath.Abs(path)
	return filepath.Dir(abs), err
}

func (c *configFile) read(doc *tomlFile) {
	for _, t := range doc.tables {
		c.table(t)
	}
	for _, s := range doc.settings {
		switch s.key[0] {
		case "node":
			c.nodeSetting(s)
		case "functions":
			c.functionSetting(s)
		case "rights":
			c.rightsSetting(s)
		default:
			c.unknownTable(s)
		}
	}
	c.config.node.check(&c.problems, doc, c.given)
	for _, d := range c.declared {
		c.finish(d)
	}
}

// finish adds a complete function, unless something is wrong with it.
func (c *configFile) finish(d *declared) {
	before := len(c.problems)
	d.finish(c.base, &c.problems)
	if !d.wrong && len(c.problems) == before {
		c.config.functions = append(c.config.functions, d.function)
	}
}

// table reads the header of a table, which may be empty.
func (c *configFile) table(t setting) {
	switch {
	case t.key[0] == "node" && len(t.key) == 1:
		c.config.node.at = t.at
	case t.key[0] == "rights" && len(t.key) < 3:
		c.rightsTable(t.key, t.at)
	case t.key[0] == "rights":
		c.unknown(t.at, "rights: "+t.key[1], t.key[2], nil)
	case t.key[0] == "functions" && len(t.key) == 1:
	case t.key[0] == "functions" && len(t.key) == 2:
		c.function(t.key[1], t.at)
	case t.key[0] == "functions" && len(t.key) == 3 && t.key[2] == "env":
	case t.key[0] == "functions":
		c.unknown(t.at, t.key[1], t.key[2], nil)
	case t.key[0] == "node":
		c.unknown(t.at, "node", t.key[1], nil)
	default:
		c.unknownTable(t)
	}
}

// unknownTable refuses a table once, not each of its keys.
func (c *configFile) unknownTable(s setting) {
	if c.strange != s.key[0] {
		c.strange = s.key[0]
		c.unknown(s.at, "", s.key[0], []string{"node", "functions", "rights"})
	}
}

// unknown refuses a key, and names the known key that is most like it.
func (c *configFile) unknown(at, in, key string, known []string) {
	where := ""
	if in != "" {
		where = in + ": "
	}
	msg := fmt.Sprintf("%sunknown key %s", where, key)
	if near := nearest(key, known); near != "" {
		msg += fmt.Sprintf(", did you mean %s?", near)
	}
	c.problems.add(at, "%s", msg)
}

// function finds or makes the entry of a function.
func (c *configFile) function(name, at string) *declared {
	for _, d := range c.declared {
		if d.name == name {
			return d
		}
	}
	d := newDeclared(name, at)
	c.declared = append(c.declared, d)
	return d
}

func (c *configFile) functionSetting(s setting) {
	if len(s.key) < 3 {
		c.problems.add(s.value.at, "%s must be a table, not %s", strings.Join(s.key, "."), s.value.typeName())
		return
	}
	d, before := c.function(s.key[1], s.at), len(c.problems)
	d.set(s, c)
	d.wrong = d.wrong || len(c.problems) > before
}

// longNames returns the names of flags that a file may use.
func longNames(table flagTable) []string {
	var list []string
	for name := range table {
		if len(name) > 1 {
			list = append(list, name)
		}
	}
	return list
}

// apply sets a flag to a value.
func (c *configFile) apply(in, key string, flag cli.Flag, v tomlValue) {
	text, isText := v.text()
	_, isString := v.v.(string)
	switch f := flag.(type) {
	case *cli.BoolFlag:
		if b, ok := v.v.(bool); ok {
			*f.Destination = b
			return
		}
		c.wrongType(in, key, v, "true or false")
	case *cli.StringFlag:
		if isString {
			*f.Destination = text
			return
		}
		c.wrongType(in, key, v, "a string")
	case *cli.IntFlag:
		if n, ok := v.v.(int64); ok {
			*f.Destination = int(n)
			return
		}
		c.wrongType(in, key, v, "a whole number")
	case *cli.GenericFlag:
		switch dest := f.Value.(type) {
		case *listValue:
			if isString { // one needs no brackets
				*dest.list = []string{text}
			} else if list, ok := c.strings(in, key, v); ok {
				*dest.list = list
			}
			return
		case *countValue:
			if isString || !isText {
				c.wrongType(in, key, v, "a whole number")
				return
			}
		default: // a duration or size: Set explains what is wrong with a number
			if !isText {
				c.wrongType(in, key, v, "a string")
				return
			}
		}
		if err := f.Value.(interface{ Set(string) error }).Set(text); err != nil {
			c.problems.add(v.at, "%s: %s", in, valueError(key, text, err.Error()))
		}
	}
}

func (c *configFile) wrongType(in, key string, v tomlValue, want string) {
	c.problems.add(v.at, "%s: %s must be %s, not %s", in, key, want, v.typeName())
}

// strings reads an array of strings.
func (c *configFile) strings(in, key string, v tomlValue) ([]string, bool) {
	array, ok := v.v.([]tomlValue)
	if !ok {
		c.wrongType(in, key, v, "an array of strings")
		return nil, false
	}
	list := []string{}
	for _, e := range array {
		s, ok := e.v.(string)
		if !ok {
			c.wrongType(in, key, e, "a string")
			return nil, false
		}
		list = append(list, s)
	}
	return list, true
}
