package commands

import (
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// function returns the function of that name, or a new one.
func (c *configFile) function(name, at string) *function {
	for _, f := range c.read {
		if f.name == name {
			return f
		}
	}
	f := newFunction()
	f.name = name
	command := &cli.GenericFlag{Name: "command", Value: &listValue{&f.argv}}
	f.part = &part{name: name, at: at, flags: tableOf(append(f.flags(), command)), places: map[string]string{}}
	c.read = append(c.read, f)
	return f
}

// variable sets a variable of a function's environment.
func (c *configFile) variable(f *part, s setting) {
	name := s.key[len(s.key)-1]
	value, ok := s.value.v.(string)
	switch {
	case name == "" || strings.Contains(name, "="):
		c.problems.add(s.at, "%s: env: invalid variable name %q", f.name, name)
	case !ok:
		c.wrongType(f.name, "env."+name, s.value, "a string")
	default:
		f.flags["env"].(*cli.GenericFlag).Value.Set(name + "=" + value)
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
	if strings.Contains(f.argv[0], "/") {
		f.argv[0] = under(c.base, f.argv[0])
	}
	err := f.check()
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
	if f.part == nil {
		return e
	}
	return f.part.locate(e, f.part.at)
}
