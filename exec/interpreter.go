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
var interpreters = lazily(`^(?:sh|ash|bash|dash|zsh|[km]?ksh|t?csh|fish|busybox|ssh|su|runuser|eval|sed|jq|expect|` +
	`[gmn]?awk|Rscript|julia|octave|(?:perl|python|pypy|ruby|node|nodejs|php|lua|luajit|tclsh)[0-9.]*)$`)

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

// runners lists programs that run other programs, or code among other words. Their
// braces are not code, unlike those of interpreters.
var runners = [...]runner{
	{"watch make gmake parallel", "", "", everyWord},
	{"env", "-u --unset -C --chdir", "-S --split-string", 0},
	{"nohup setsid time doas sudo busybox toybox", "-u -g -h -p -C -D -r -t -T -U -f -o", "", 0},
	{"nice ionice stdbuf chrt strace ltrace unshare nsenter setpriv systemd-run", "-n -c -i -o -e -s -u -S -G -t -p --reuid --regid --unit", "", 0},
	{"timeout chroot taskset", "-k -s --kill-after --signal", "", 1},
	{"flock", "-w -E --timeout --conflict-exit-code", "-c --command", 1},
	{"xargs", "-a -d -E -I -L -n -P -s", "", 0},
	{"git", "-C --git-dir --work-tree --namespace", "-c --config-env --exec-path", 0},
	{"sqlite3", "-separator -newline -nullvalue -vfs -maxsize -mmap", "-cmd -init", 1},
	{"script", "", "-c --command", noOperand},
	{"find", "", "-exec -execdir -ok -okdir", noOperand},
	{"tar bsdtar", "", "-I -F --use-compress-program --to-command --checkpoint-action --info-script --new-volume-script --rsh-command", noOperand},
	{"rsync", "", "-e --rsh --rsync-path", noOperand},
	{"vi vim nvim view ex", "", "-c --cmd -S", noOperand},
	{"emacs", "", "-l -f --load --eval --execute --funcall", noOperand},
	{"gdb", "", "-x -ex -ix -iex --command --eval-command", noOperand},
	{"psql", "", "-c --command", noOperand},
	{"mysql mariadb", "", "-e --execute --init-command", noOperand},
	{"sort", "", "--compress-program", noOperand},
	{"split", "", "--filter", noOperand},
}

// runner describes where programs expect code or another program.
type runner struct {
	names    string
	values   string // options with a harmless value
	code     string // options with code or a program as value
	operands int    // number of operands before one that is code or a program
}

const (
	noOperand = -1
	everyWord = -2 // options too
)

// role is how a program uses a word of its command line.
type role int

const (
	data      role = iota
	code           // code, or a program
	ownBraces      // {} has a meaning of the program's own
)

var (
	codeOption   = lazily(`^(?:-[A-Za-z0-9]*[ceEr]|--eval|--print|--command)$`)
	scriptOption = lazily(`^(?:-[A-Za-z]*e|--expression|--source)$`)
	assignment   = lazily(`^[A-Za-z_][A-Za-z0-9_]*=`)
)

// codeWords finds the words of argv that are code or name a program to run, also behind
// env, timeout and the like. Braces: argv has an interpreter, whose words often contain
// braces.
func codeWords(argv []string) (roles map[int]role, braces bool) {
	roles = map[int]role{}
	programs := map[int]bool{0: true} // where programs are known to stand
	for i, w := range argv {
		name := path.Base(w)
		if programs[i] {
			for k := range runners {
				if slices.Contains(strings.Fields(runners[k].names), name) {
					runners[k].mark(argv, i+1, roles, programs)
				}
			}
		}
		if !interpreters().MatchString(name) {
			continue
		}
		braces = true
		script := slices.IndexFunc(scripted[:], func(c struct{ name, values, instead string }) bool { return c.name == name })
		switch {
		case script >= 0:
			c := scripted[script]
			markScript(roles, argv, i+1, name == "jq", strings.Fields(c.values), strings.Fields(c.instead))
		case joining(name):
			for j := i + 1; j < len(argv); j++ {
				roles[j] = code
			}
		default:
			markOptions(roles, argv, i+1, name, programs[i])
		}
	}
	return roles, braces
}

// mark marks the code of a runner, and the programs that it runs.
func (r *runner) mark(argv []string, from int, roles map[int]role, programs map[int]bool) {
	valued, coded := strings.Fields(r.values), strings.Fields(r.code)
	left, options := r.operands, true
	for j := from; j < len(argv); j++ {
		w := argv[j]
		name, _, attached := strings.Cut(w, "=")
		option := options && strings.HasPrefix(w, "-")
		switch {
		case r.operands == everyWord && w == ":::": // parallel quotes what follows
			return
		case r.operands == everyWord, option && attached && slices.Contains(coded, name):
			roles[j] = code
		case option && slices.Contains(coded, w):
			j++
			roles[j], programs[j] = code, true
			for k := j + 1; r.names == "find" && k < len(argv); k++ {
				roles[k] = ownBraces
			}
		case option && len(w) > 2 && w[1] != '-' && slices.Contains(coded, w[:2]): // -cCODE
			roles[j] = code
		case option && slices.Contains(valued, w):
			j++
		case option:
			options = w != "--"
		case left == 0 && assignment().MatchString(w):
		case left == 0:
			roles[j], programs[j] = code, true
			return
		case left > 0:
			left--
		}
	}
}

// markOptions marks what follows -c and its like, up to the script file: the
// options behind that are the script's own. A word after an option may be
// that option's value, and does not count as the script. The script is code too if program
// is set: the interpreter is known to be what runs.
func markOptions(roles map[int]role, argv []string, from int, name string, program bool) {
	noScript := name == "su" || name == "runuser" || name == "busybox"
	for j := from; j < len(argv); j++ {
		w, before := argv[j], argv[j-1]
		afterOption := j > from && strings.HasPrefix(before, "-")
		module := afterOption && before == "-m" && strings.HasPrefix(name, "python")
		switch {
		case afterOption && codeOption().MatchString(before):
			roles[j] = code
			program = false // there is no script
		case noScript, strings.HasPrefix(w, "-") && !module:
		default:
			if program {
				roles[j] = code
			}
			if module || !afterOption || before == "--" {
				return
			}
		}
	}
}

// markScript marks the script of awk, sed or jq.
func markScript(roles map[int]role, argv []string, from int, jq bool, values, instead []string) {
	named := false
	for i := from; i < len(argv); i++ {
		w := argv[i]
		switch {
		case !jq && scriptOption().MatchString(w):
			named = true
			i++
			roles[i] = code
		case slices.Contains(instead, w):
			named = true
			i++
		case slices.Contains(values, w):
			i++
		case jq && slices.Contains([]string{"--arg", "--argjson", "--slurpfile", "--rawfile"}, w):
			i += 2
		case w == "--" || len(w) > 1 && w[0] == '-':
		case !named:
			roles[i] = code
			return
		}
	}
}
