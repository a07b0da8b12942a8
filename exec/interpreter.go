package exec

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// lazily compiles an expression when it is first used: every fbus call links
// this package, and pays for what it initialises.
func lazily(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// interpreters read code from their command line. What runs it elsewhere or
// as somebody else, ssh and su, is one of them.
var interpreters = lazily(`^(?:sh|ash|bash|dash|zsh|[km]?ksh|t?csh|fish|busybox|ssh|su|eval|sed|jq|` +
	`[gmn]?awk|(?:perl|python|pypy|ruby|node|nodejs|php|lua|luajit|tclsh)[0-9.]*)$`)

// joining commands put all their words together and have a shell read them:
// every place in them is code.
func joining(name string) bool { return name == "eval" || name == "ssh" }

// scripted lists the commands that take code as their first argument: the options in
// values have a value of their own; those in instead name the code, so that no argument
// does.
var scripted = [...]struct{ name, values, instead string }{
	{"awk", "-F -v", "-f -e"},
	{"gawk", "-F -v -i -l", "-f -e"},
	{"mawk", "-F -v -W", "-f -e"},
	{"nawk", "-F -v", "-f"},
	{"sed", "-l", "-f -e"},
	{"jq", "--indent -L", "-f --from-file"},
}

var (
	codeOption   = lazily(`^(?:-[A-Za-z0-9]*[ceEr]|--eval|--print|--command)$`)
	scriptOption = lazily(`^(?:-[A-Za-z]*e|--expression|--source)$`)
)

// codeWords marks the words of argv that an interpreter takes as code. It is
// nil if argv holds no interpreter, also not behind env, timeout and the like.
func codeWords(argv []string) map[int]bool {
	var code map[int]bool
	for i, w := range argv {
		name := path.Base(w)
		if !interpreters().MatchString(name) {
			continue
		}
		if code == nil {
			code = make(map[int]bool)
		}
		script := slices.IndexFunc(scripted[:], func(c struct{ name, values, instead string }) bool { return c.name == name })
		switch {
		case script >= 0:
			c := scripted[script]
			markScript(code, argv, i+1, name == "jq", strings.Fields(c.values), strings.Fields(c.instead))
		case joining(name):
			for j := i + 1; j < len(argv); j++ {
				code[j] = true
			}
		default:
			markOptions(code, argv, i+1, name)
		}
	}
	return code
}

// markOptions marks what follows -c and its like, up to the script file: the
// options behind that are the script's own. A word after an option may be
// that option's value, and does not count as the script.
func markOptions(code map[int]bool, argv []string, from int, name string) {
	for j := from; j < len(argv); j++ {
		w, before := argv[j], argv[j-1]
		afterOption := j > from && strings.HasPrefix(before, "-")
		switch {
		case afterOption && codeOption().MatchString(before):
			code[j] = true
		case afterOption && before == "-m" && strings.HasPrefix(name, "python"):
			return
		case !afterOption && !strings.HasPrefix(w, "-") && name != "su" && name != "busybox":
			return
		}
	}
}

// markScript marks the script of awk, sed or jq.
func markScript(code map[int]bool, argv []string, from int, jq bool, values, instead []string) {
	named := false
	for i := from; i < len(argv); i++ {
		w := argv[i]
		switch {
		case !jq && scriptOption().MatchString(w):
			named = true
			i++
			code[i] = true
		case slices.Contains(instead, w):
			named = true
			i++
		case slices.Contains(values, w):
			i++
		case jq && slices.Contains([]string{"--arg", "--argjson", "--slurpfile", "--rawfile"}, w):
			i += 2
		case w == "--" || len(w) > 1 && w[0] == '-':
		case !named:
			code[i] = true
			return
		}
	}
}
