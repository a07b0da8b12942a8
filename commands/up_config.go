package commands

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// upConfig is the contents of a file of functions, or of a directory.
type upConfig struct {
	functions []*function
	node      nodeConfig
	notes     []string // which files were skipped, and why
}

// part is a table of a file whose keys are options: [node], a function, or an entry of
// [rights].
type part struct {
	name   string // for messages
	at     string // its position, FILE:LINE:COLUMN
	flags  flagTable
	places map[string]string // positions of the options that it sets
	wrong  bool              // an option is wrong
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
	read     []*function            // in the order of the file
	strange  string                 // the last unknown table
	problems problems
}

// newConfigFile returns a reader that has read nothing yet.
func newConfigFile(base string) *configFile {
	c := &configFile{base: base}
	n := &c.config.node
	n.options = *newServeOptions()
	n.part = part{name: "node", flags: n.keys(), places: map[string]string{}}
	return c
}

// readConfig reads a file of functions. If there are problems, it returns the functions
// without one, for further checks.
func readConfig(path string) (*upConfig, problems) {
	c := newConfigFile("")
	c.readFile(path)
	return &c.config, c.problems
}

func (c *configFile) readFile(path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		c.problems = problems{usage("%v", args.PathReason(err))}
		return
	}
	abs, err := filepath.Abs(path)
	c.base = filepath.Dir(abs)
	var doc []setting
	if err == nil {
		doc, err = parseTOML(path, data)
	}
	if err != nil {
		c.problems = problems{explain(err)}
		return
	}
	c.readAll(doc)
	c.problems.order(path)
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

func (c *configFile) readAll(doc []setting) {
	for _, s := range doc {
		switch table := s.key[0]; {
		case table == "node":
			c.nodeOption(s)
		case table == "functions" && len(s.key) > 1:
			if len(s.key) > 2 || c.isTable(s) {
				c.option(c.function(s.key[1], s.at).part, s, 2)
			}
		case table == "rights" && len(s.key) > 1:
			c.option(&c.grant(s.key[1], s.at).part, s, 2)
		case table == "functions", table == "rights":
			if c.isTable(s) && table == "rights" {
				c.rights(s.at)
			}
		case c.strange != table: // an unknown table is refused once, not each of its keys
			c.strange = table
			c.unknown(s.at, "", table, []string{"node", "functions", "rights"})
		}
	}
	c.checkNode()
	for _, f := range c.read {
		c.finish(f)
	}
}

// option sets an option of a part by the name and the parser of its flag. The keys from
// depth on name it.
func (c *configFile) option(p *part, s setting, depth int) {
	before, key := len(c.problems), strings.Join(s.key[depth:], ".")
	flag := p.flags[key]
	switch {
	case len(s.key) == depth:
		c.isTable(s)
	case flag != nil && len(key) > 1:
		p.places[key] = s.value.at
		if key != "env" || s.value.kind != aTable {
			c.apply(p.name, key, flag, s.value)
		}
	case p.flags["env"] != nil && len(s.key) == depth+2 && s.key[depth] == "env":
		p.places["env"] = s.value.at
		c.variable(p, s)
	case p.flags["command"] != nil && placeOfAll(key) != "":
		c.problems.add(s.at, "%s: unknown key %s: it is for all functions, %s", p.name, key, placeOfAll(key))
	default:
		c.unknown(s.at, p.name, key, longNames(p.flags))
	}
	p.wrong = p.wrong || len(c.problems) > before
}

// isTable reports whether a key is a table, and refuses it otherwise.
func (c *configFile) isTable(s setting) bool {
	if s.value.kind != aTable {
		c.problems.add(s.value.at, "%s must be a table, not %s", strings.Join(s.key, "."), s.value.kind)
	}
	return s.value.kind == aTable
}

// unknown refuses a key, and names the known key that is most like it.
func (c *configFile) unknown(at, in, key string, known []string) {
	if in != "" {
		in += ": "
	}
	msg := in + "unknown key " + key
	if near := nearest(key, known); near != "" {
		msg += fmt.Sprintf(", did you mean %s?", near)
	}
	c.problems.add(at, "%s", msg)
}

// longNames returns the names of flags that a file may use.
func longNames(table flagTable) []string {
	return slices.DeleteFunc(slices.Collect(maps.Keys(table)), func(name string) bool { return len(name) < 2 })
}

// path makes the value of an option absolute if it is a path relative to the file.
func (c *configFile) path(key, value string) string {
	switch key {
	case "socket", "tls-cert", "tls-key", "tls-ca", "chdir", "schema":
		return under(c.base, value)
	case "log":
		if value != "-" {
			return under(c.base, value)
		}
	case "address", "node":
		if _, err := find.ParseAddr(value, key); err == nil && wire.IsPath(value) {
			return under(c.base, value)
		}
	}
	return value
}

// apply sets a flag to a value.
func (c *configFile) apply(in, key string, flag cli.Flag, v tomlValue) {
	want, ok := "a string", false
	switch f := flag.(type) {
	case *cli.BoolFlag:
		want = "true or false"
		*f.Destination, ok = v.v.(bool)
	case *cli.StringFlag:
		*f.Destination, ok = v.v.(string)
		*f.Destination = c.path(key, *f.Destination)
	case *cli.IntFlag:
		want = "a whole number"
		var n int64
		n, ok = v.v.(int64)
		*f.Destination = int(n)
	case *cli.GenericFlag:
		set := func(v tomlValue) {
			if err := f.Value.Set(fmt.Sprint(v.v)); err != nil {
				c.problems.add(v.at, "%s: %s", in, valueError(key, fmt.Sprint(v.v), err))
			}
		}
		_, text := v.v.(string)
		_, number := v.v.(int64)
		array, list := v.v.([]tomlValue)
		switch f.Value.(type) {
		case *listValue, *globsValue:
			if ok = list; text && key != "command" { // one string needs no brackets
				array, ok = []tomlValue{v}, true
			}
			want = "an array of strings"
			for _, e := range array {
				if _, text := e.v.(string); !text {
					c.wrongType(in, key, e, "a string")
					return
				}
				set(e)
			}
		case *countValue:
			if ok = number; ok {
				set(v)
			}
			want = "a whole number"
		default: // a duration or size: Set explains what is wrong with a number
			if ok = text || number; ok {
				set(v)
			}
		}
	}
	if !ok {
		c.wrongType(in, key, v, want)
	}
}

func (c *configFile) wrongType(in, key string, v tomlValue, want string) {
	c.problems.add(v.at, "%s: %s must be %s, not %s", in, key, want, v.kind)
}

// locate adds to an error the position of the first option that it names, or else the
// given one, and names options as the file does.
func (p *part) locate(err error, at string) *args.Error {
	e := *explain(err)
	if entry, ok := strings.CutPrefix(e.Message, "-e "); ok {
		e.Message = "--env: " + entry
	}
	names := flagNames()
	for _, name := range names.FindAllString(e.Message, -1) {
		if place := p.places[name[2:]]; place != "" {
			at = place
			break
		}
	}
	if at == "" {
		return &e
	}
	rename := func(text string) string {
		return names.ReplaceAllStringFunc(text, func(name string) string {
			if p.flags[name[2:]] == nil {
				return name
			}
			return name[2:]
		})
	}
	e.Message, e.Hint = fmt.Sprintf("%s: %s: %s", at, p.name, rename(e.Message)), rename(e.Hint)
	return &e
}

var flagNames = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`--[a-z]+(?:-[a-z]+)*`) })
