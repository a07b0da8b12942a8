package commands

import (
	"bytes"
	"cmp"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"fbus/bus/args"
)

// optionLines is how many lines of a script are searched for options.
const optionLines = 64

// readDir makes a function of each executable file in a directory. If there are problems,
// it returns the functions without one.
func readDir(dir string, o *owners) (*upConfig, problems) {
	if err := o.check(dir + "/."); err != nil {
		return nil, problems{explain(err)}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, problems{usage("%v", err)}
	}
	base, err := filepath.Abs(dir)
	if err != nil {
		return nil, problems{explain(err)}
	}
	c := newConfigFile(base)
	c.owners = o
	files := map[string]string{} // by the function's name
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if skip := notFunction(path); skip != "" {
			c.config.notes = append(c.config.notes, path+": "+skip)
			continue
		}
		name := cmp.Or(strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())), e.Name())
		if other := files[name]; other != "" {
			c.problems.add(path, "function name %s is also that of %s: the extension does not count", name, other)
			continue
		}
		files[name] = path
		f, before := c.function(name, path), len(c.problems)
		f.argv = []string{filepath.Join(base, e.Name())}
		c.scriptOptions(f.part, path)
		f.part.wrong = len(c.problems) > before
		c.finish(f)
	}
	return &c.config, c.problems
}

// notFunction returns why a file is not a function, "" if it is one.
func notFunction(path string) string {
	name := filepath.Base(path)
	st, err := os.Stat(path)
	switch {
	case strings.HasPrefix(name, "."):
		return "skipped: hidden"
	case strings.HasSuffix(name, "~"):
		return "skipped: a backup"
	case err != nil:
		return "skipped: " + args.Plain(err)
	case !st.Mode().IsRegular():
		return "skipped: not a regular file"
	case unix.Access(path, unix.X_OK) != nil:
		return "skipped: not executable"
	}
	return ""
}

// scriptOptions reads the options in a script's comments.
func (c *configFile) scriptOptions(p *part, path string) {
	f, err := os.Open(path)
	if err != nil {
		return // it may be executable all the same
	}
	defer f.Close()
	head, _ := io.ReadAll(io.LimitReader(f, 64<<10))
	doc, err := parseTOML(path, optionComments(head))
	if err != nil {
		c.problems = append(c.problems, explain(err))
		return
	}
	for _, s := range doc {
		switch isTable := s.value.kind == aTable; {
		case isTable && (len(s.key) != 1 || s.key[0] != "env"):
			c.problems.add(s.at, "%s: comments can hold options only, not tables", p.name)
		case s.key[0] == "command":
			c.problems.add(s.at, "%s: unknown key command: the script is the command", p.name)
		default:
			c.option(p, s, 0)
		}
	}
}

// optionComments blanks everything but the options in a script, so that their positions
// stay the same.
func optionComments(script []byte) []byte {
	if !bytes.HasPrefix(script, []byte("#!")) {
		return nil
	}
	var doc bytes.Buffer
	n := 0
	for line := range bytes.Lines(script) {
		if n++; n > optionLines {
			break
		}
		line = bytes.TrimRight(line, "\r\n")
		if lead := optionLead().Find(line); lead != nil {
			doc.Write(bytes.Repeat([]byte(" "), len(lead)))
			doc.Write(line[len(lead):])
		}
		doc.WriteByte('\n')
	}
	return doc.Bytes()
}

// optionLead matches what is before an option in a line of a script.
var optionLead = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[ \t]*(?:#|//|--)[ \t]*fbus:`) })
