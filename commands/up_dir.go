package commands

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

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
	if errors.Is(err, syscall.ENOTDIR) {
		e := usage("%s: not a directory", dir)
		if st, err := os.Stat(dir); err == nil && st.Mode().IsRegular() {
			e = usage("%s: not a directory, but a program", dir).WithHint("%s", join("fbus", "offer", functionName(dir), "--", asPath(dir)))
			if isConfig(dir) {
				e = usage("%s: not a directory, but a second file", dir).WithHint("fbus up takes one file: %s", join("fbus", "up", dir))
			}
		}
		return nil, problems{e}
	}
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
		if why, usual := notFunction(path); why != "" {
			mark := ""
			if !usual {
				mark = warningMark
			}
			c.config.notes = append(c.config.notes, mark+path+": skipped: "+why)
			continue
		}
		name := functionName(path)
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

// functionName returns the name of a program without its extension.
func functionName(path string) string {
	base := filepath.Base(path)
	return cmp.Or(strings.TrimSuffix(base, filepath.Ext(base)), base)
}

// asPath makes a file in the current directory a path, which is not searched on PATH.
func asPath(file string) string {
	if strings.Contains(file, "/") {
		return file
	}
	return "./" + file
}

// leftovers match, in lower case, files that editors, package managers and people leave
// next to a program. They would otherwise become functions.
var leftovers = []string{
	"#*#", "*.bak", "*.backup", "*.old", "*.orig", "*.rej", "*.save", "*.swp", "*.swo", "*.swx", "*.tmp", "*.temp", "*.disabled", "*.off",
	"*.dpkg-*", "*.ucf-*", "*.rpmsave", "*.rpmnew", "*.rpmorig", "*.pacsave", "*.pacnew", "*.pacorig", "*.cfsaved", "*,v",
	"*.bak[0-9]*", "*.bak.*", "*.disable", "*.part", "*.crdownload", "*.new", "*.dist", "*.*[_\\-]backup", "*.*[_\\-]old", "*.*[_\\-]orig", "*.*[_\\-]copy",
	"*.*.[0-9]*", "4913",
}

// notFunction returns why a file is not a function, "" if it is one, and whether that is
// usual in such a directory.
func notFunction(path string) (why string, usual bool) {
	name := filepath.Base(path)
	if strings.HasPrefix(name, ".") {
		return "hidden", true
	}
	if strings.HasSuffix(name, "~") {
		return "a backup", true
	}
	for _, pattern := range leftovers {
		if left, _ := filepath.Match(pattern, strings.ToLower(name)); left {
			return "a leftover, by its name: " + pattern, true
		}
	}
	st, err := os.Stat(path)
	target, _ := os.Readlink(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && target != "":
		return "the link leads nowhere: " + target + " does not exist", false
	case err != nil:
		return args.Plain(args.WithoutPath(err)), false
	case !st.Mode().IsRegular():
		return "not a regular file", true
	case unix.Access(path, unix.X_OK) != nil:
		return "not executable", true
	case !args.ValidName(functionName(path)):
		return "a function's name has letters, digits, _ . and - only, and begins with a letter, a digit or _", false
	}
	return "", true
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
		case isTable && (len(s.key) != 1 || !isTableOption(s.key[0])):
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
