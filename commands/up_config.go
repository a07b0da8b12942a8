package commands

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// upConfig is the contents of a file of functions, or of a directory.
type upConfig struct {
	functions []*function
	node      nodeConfig
	notes     []string // which files were skipped, and why; some begin with warningMark
}

// warningMark begins notes that are shown without -v too.
const warningMark = "warning: "

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

// Error returns the messages, each on a line.
func (p problems) Error() string {
	lines := make([]string, len(p))
	for i, f := range p {
		lines[i] = args.OneLine(f.Message)
	}
	return strings.Join(lines, "\n")
}

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
		all.Message, all.Err = "", p
		if f.Hint != all.Hint {
			all.Hint = ""
		}
		if f.Status() == args.StatusOf(args.CodeUsage) {
			all.Code = f.Code
		}
	}
	return &all
}

type configFile struct {
	base     string // the directory of relative paths
	owners   *owners
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
	n.part = part{name: "node", flags: tableOf(n.options.nodeFlags()), places: map[string]string{}}
	maps.Copy(n.flags, n.ownKeys())
	return c
}

// readConfig reads a file of functions. If there are problems, it returns the functions
// without one, for further checks.
func readConfig(path string, o *owners) (*upConfig, problems) {
	c := newConfigFile("")
	c.owners = o
	c.readFile(path)
	return &c.config, c.problems
}

func (c *configFile) readFile(path string) {
	if err := c.owners.check(path); err != nil {
		c.problems = problems{explain(err)}
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		e := usage("%v", err)
		if errors.Is(err, syscall.EISDIR) {
			e.Hint = join("fbus", "up", path)
		}
		c.problems = problems{e}
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

// meshKeys are those of the table [mesh].
var meshKeys = []string{"share", "accept", "name", "advertise", "nats-service"}

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
		case table == "mesh": // fbus mesh reads it
			if len(s.key) == 1 {
				c.isTable(s)
			} else if !slices.Contains(meshKeys, s.key[1]) {
				c.unknown(s.at, "mesh", s.key[1], meshKeys)
			}
		case c.strange != table: // an unknown table is refused once, not each of its keys
			c.strange = table
			c.unknown(s.at, "", table, []string{"node", "functions", "rights", "mesh"})
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
		if !isTableOption(key) || s.value.kind != aTable {
			c.apply(p.name, key, flag, s.value)
		}
	case len(s.key) == depth+2 && isTableOption(s.key[depth]) && p.flags[s.key[depth]] != nil:
		p.places[s.key[depth]] = s.value.at
		c.entry(p, s)
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
	case "socket", "tls-cert", "tls-key", "tls-ca", "tls-crl", "chdir", "schema", "env-file":
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

func (c *configFile) apply(in, key string, flag cli.Flag, v tomlValue) {
	want, ok := "a string", false
	switch f := flag.(type) {
	case *cli.BoolFlag:
		want = "true or false"
		*f.Destination, ok = v.v.(bool)
	case *cli.StringFlag:
		*f.Destination, ok = v.v.(string)
		if ok && *f.Destination == "" && !mayBeEmpty(key) {
			c.problems.add(v.at, "%s: %s is empty: it needs a value", in, key)
		}
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
		case *listValue:
			if ok = list; text && key != "command" { // one string needs no brackets
				array, ok = []tomlValue{v}, true
			}
			want = "an array of strings"
			for _, e := range array {
				if _, text := e.v.(string); !text {
					c.wrongType(in, key, e, "a string")
					return
				}
				e.v = c.path(key, e.v.(string))
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
		e := c.wrongType(in, key, v, want)
		if line, text := v.v.(string); text && key == "command" {
			if list, err := marshal(separate([]string{line})); err == nil {
				e.Hint = "command = " + string(list)
			}
		}
	}
}

func (c *configFile) wrongType(in, key string, v tomlValue, want string) *args.Error {
	return c.problems.add(v.at, "%s: %s must be %s, not %s", in, key, want, v.kind)
}

// locate adds to an error the position of the first option that it names, or else the
// given one, and names options as the file does.
func (p *part) locate(err error, at string) *args.Error {
	e := *explain(err)
	if entry, ok := strings.CutPrefix(e.Message, "-e"); ok {
		e.Message = "--env:" + strings.TrimPrefix(entry, ":")
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

// nodeConfig is the [node] table. Without it, at is empty.
type nodeConfig struct {
	part
	serve      bool // be a node
	options    serveOptions
	address    string // or where one is
	worker     string
	drain      durationValue
	maxRunning countValue // programs at once, over all functions
}

// ownKeys returns the keys that are allowed without serve = true too. The others are those of
// the flags of fbus serve.
func (n *nodeConfig) ownKeys() flagTable {
	return flagTable{
		"serve":   &cli.BoolFlag{Destination: &n.serve},
		"address": &cli.StringFlag{Destination: &n.address},
		"node":    &cli.StringFlag{Destination: &n.address},
		"worker":  &cli.StringFlag{Destination: &n.worker},
		"drain":   &cli.GenericFlag{Value: &n.drain},

		"max-running": &cli.GenericFlag{Value: &n.maxRunning},
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
	if n.maxRunning.set && n.maxRunning.n < 1 {
		p.add(n.places["max-running"], "node: max-running must be at least 1")
	}
	if err := checkWorkerName(n.worker); err != nil {
		p.add(n.places["worker"], "node: %v", err)
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
	o.owners.first = []string{"fbus", "serve", "-c", path}
	c := newConfigFile("")
	n := &c.config.node
	c.owners, c.given, n.serve, n.options = &o.owners, given, true, *o
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
	case n.maxRunning.set:
		c.problems.add(n.places["max-running"], "node: max-running is for fbus up")
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

func (c *configFile) function(name, at string) *function {
	for _, f := range c.read {
		if f.name == name {
			return f
		}
	}
	f := newFunction()
	f.name = name
	command := &cli.GenericFlag{Name: "command", Value: &listValue{list: &f.argv}}
	f.part = &part{name: name, at: at, flags: tableOf(append(f.flags(), command)), places: map[string]string{}}
	c.read = append(c.read, f)
	return f
}

// isTableOption reports whether an option may be a table of strings: NAME=VALUE each, on a
// command line.
func isTableOption(name string) bool { return name == "env" || name == "attr" }

// entry sets an entry of such a table.
func (c *configFile) entry(f *part, s setting) {
	option, name := s.key[len(s.key)-2], s.key[len(s.key)-1]
	word := name
	value, ok := s.value.v.(string)
	if flag, isFlag := s.value.v.(bool); isFlag && flag && option == "attr" { // one without a value
		ok = true
	} else if ok {
		word += "=" + value
	}
	switch {
	case name == "" || strings.Contains(name, "="):
		c.problems.add(s.at, "%s: %s: invalid %s name %q", f.name, option, map[string]string{"env": "variable", "attr": "attribute"}[option], name)
	case !ok:
		c.wrongType(f.name, option+"."+name, s.value, "a string")
	default:
		if file, isFile := strings.CutPrefix(value, "@"); isFile && option == "attr" {
			word = name + "=@" + under(c.base, file)
		}
		f.flags[option].(*cli.GenericFlag).Value.Set(word)
	}
}

// placeOfAll returns where to set an option of fbus offer that concerns the worker, and
// so all its functions; "" for other options.
func placeOfAll(key string) string {
	switch {
	case len(key) < 2 || tableOf(new(workerOptions).flags())[key] == nil:
		return ""
	case new(nodeConfig).ownKeys()[key] != nil:
		return "in [node]"
	}
	return "a flag of fbus up"
}

// finish checks a function as a whole, and adds it unless something is wrong with it.
func (c *configFile) finish(f *function) {
	if len(f.argv) == 0 || f.argv[0] == "" {
		if !f.part.wrong || f.part.places["command"] == "" { // not reported yet
			c.problems.add(f.part.at, "%s: no command: set command = [\"PROGRAM\", \"ARG\", …]", f.name)
		}
		return
	}
	var err error
	if strings.Contains(f.argv[0], "/") { // PATH is the user's own choice
		f.argv[0] = under(c.base, f.argv[0])
		err = c.owners.check(f.argv[0])
	}
	for _, file := range f.envFiles {
		if err == nil {
			err = c.owners.check(file)
		}
	}
	if err == nil {
		err = f.check()
	}
	if err == nil {
		_, err = f.spec(nil)
	}
	switch {
	case err != nil:
		c.problems = append(c.problems, f.at(err))
	case !f.part.wrong:
		f.stamp()
		c.config.functions = append(c.config.functions, f)
	}
}

// under makes a relative path absolute, below dir; "" stays.
func under(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// optionNames matches an option of a function as package exec names it: `slots`, or
// `slots 2`.
var optionNames = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile("`([a-z]+(?:-[a-z]+)*)((?: [^`]*)?)`") })

// asFlags spells the options that package exec names in a message as flags.
func asFlags(text string) string {
	if !strings.Contains(text, "`") {
		return text
	}
	flags := tableOf(newFunction().flags())
	return optionNames().ReplaceAllStringFunc(text, func(s string) string {
		if m := optionNames().FindStringSubmatch(s); flags[m[1]] != nil {
			return "--" + m[1] + m[2]
		}
		return s
	})
}

// at adds the position in the file to an error about a function, and names options as
// the file does. If the function is not in a file, they are flags.
func (f *function) at(err error) *args.Error {
	e := explain(err)
	e.Message, e.Hint = asFlags(e.Message), asFlags(e.Hint)
	if words := separate(f.argv); e.Code == args.CodeNotFound && len(words) > len(f.argv) {
		e.Hint = join("fbus", "offer", f.name, "--", words)
		if list, err := marshal(words); err == nil && f.part != nil {
			e.Hint = "command = " + string(list)
		}
	}
	if f.part == nil {
		return e
	}
	return f.part.locate(e, f.part.at)
}

// fileStamp identifies a version of a file.
type fileStamp struct {
	path  string
	inode uint64
	size  int64
	time  time.Time
}

// stamp records the files on the command line of a program whose processes are kept, so
// that a reload restarts it after an edit. A program that is started for each call needs
// no restart.
func (f *function) stamp() {
	f.files = nil
	if !f.warm.set && f.resident == "" {
		return
	}
	for _, w := range f.argv {
		if !strings.ContainsAny(w, "/.") {
			continue
		}
		if st, err := os.Stat(under(f.dir, w)); err == nil && st.Mode().IsRegular() {
			f.files = append(f.files, fileStamp{w, st.Sys().(*syscall.Stat_t).Ino, st.Size(), st.ModTime()})
		}
	}
}

// same reports whether two functions differ only in their position in the file.
func (f *function) same(g *function) bool {
	a, b := *f, *g
	a.part, b.part = nil, nil
	return reflect.DeepEqual(a, b)
}
