package commands

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// declared is a function and the positions of its options.
type declared struct {
	*function
	flags flagTable
	wrong bool // an option is wrong, so the function as a whole is not checked
}

func newDeclared(name, at string) *declared {
	d := &declared{function: newFunction()}
	d.name, d.where, d.places = name, at, map[string]string{}
	d.flags = tableOf(d.function.flags())
	return d
}

// set sets one option, by the name and the parser of its flag in fbus offer.
func (d *declared) set(s setting, c *configFile) {
	key := s.key[2]
	d.places[key] = s.value.at
	switch {
	case key == "command" && len(s.key) == 3:
		if list, ok := c.strings(d.name, key, s.value); ok {
			d.argv = list
		}
		return
	case key == "env" && len(s.key) == 4 && (s.key[3] == "" || strings.Contains(s.key[3], "=")):
		c.problems.add(s.at, "%s: env: invalid variable name %q", d.name, s.key[3])
		return
	case key == "env" && len(s.key) == 4:
		if v, ok := s.value.v.(string); ok {
			d.env = append(d.env, s.key[3]+"="+v)
		} else {
			c.wrongType(d.name, "env."+s.key[3], s.value, "a string")
		}
		return
	}
	flag := d.flags[key]
	switch place := placeOfAll(key); {
	case flag == nil && place != "" && len(s.key) == 3:
		c.problems.add(s.at, "%s: unknown key %s: it is for all functions, %s", d.name, key, place)
	case flag == nil || len(key) < 2 || len(s.key) > 3:
		c.unknown(s.at, d.name, strings.Join(s.key[2:], "."), append(longNames(d.flags), "command"))
	default:
		c.apply(d.name, key, flag, s.value)
	}
}

// placeOfAll returns where to set an option of fbus offer that concerns the worker, and
// so all its functions; "" for other options.
func placeOfAll(key string) string {
	worker, node := new(workerOptions), new(nodeConfig)
	switch {
	case len(key) < 2 || tableOf(worker.flags())[key] == nil:
		return ""
	case node.ownFlags()[key] != nil:
		return "in [node]"
	}
	return "a flag of fbus up"
}

// finish makes relative paths absolute, and checks the function as a whole.
func (d *declared) finish(base string, p *problems) {
	if len(d.argv) == 0 || d.argv[0] == "" {
		if d.places["command"] != "" && d.argv == nil {
			return // it is reported already
		}
		p.add(d.where, "%s: no command: set command = [\"PROGRAM\", \"ARG\", …]", d.name)
		return
	}
	if strings.Contains(d.argv[0], "/") {
		d.argv[0] = under(base, d.argv[0])
	}
	d.dir, d.schemaFile = under(base, d.dir), under(base, d.schemaFile)
	err := d.check()
	if err == nil {
		_, err = d.spec(nil)
	}
	if err != nil {
		*p = append(*p, explain(d.at(err)))
		return
	}
	d.stamp()
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
func (f *function) at(err error) error {
	e := *explain(err)
	e.Message, e.Hint = asFlags(e.Message), asFlags(e.Hint)
	if f.where == "" {
		return &e
	}
	at, first := f.where, len(e.Message)
	if entry, ok := strings.CutPrefix(e.Message, "-e "); ok && f.places["env"] != "" {
		at, first, e.Message = f.places["env"], 0, "env: "+entry
	}
	for name, place := range f.places {
		if i := strings.Index(e.Message, "--"+name); i >= 0 && i < first {
			at, first = place, i
		}
	}
	names := longNames(tableOf(f.flags()))
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
	for _, name := range names {
		e.Message = strings.ReplaceAll(e.Message, "--"+name, name)
		e.Hint = strings.ReplaceAll(e.Hint, "--"+name, name)
	}
	e.Message = fmt.Sprintf("%s: %s: %s", at, f.name, e.Message)
	return &e
}
