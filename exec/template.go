package exec

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"fbus/bus/args"
)

// template is the offered command line, parsed into text and placeholders.
type template struct {
	words   []word // Argv[1:]
	argv0   string
	dynamic bool // there are placeholders
	all     bool // `{}` is one of them, so no argument is without a use
	numbers int  // the highest {N}
	fields  []string
}

// word is one word of a command line, a row of literal text and placeholders.
type word []part

type partKind int

const (
	partText   partKind = iota
	partAll             // {} as a whole word: every argument, each a word
	partOnly            // {} within a word: the only argument
	partNumber          // {1}
	partField           // {name}
)

type part struct {
	kind   partKind
	text   string // as it stands in the command line
	field  string // the field's name
	number int
}

var (
	placeholder = lazily(`\{(?:([1-9][0-9]{0,3})|([A-Za-z_][A-Za-z0-9_-]*))?\}`)
	numbered    = lazily(`\{[1-9][0-9]{0,3}\}`)
	attached    = lazily(`^(?:-[A-Za-z]|--?[A-Za-z][A-Za-z0-9-]*=|[A-Za-z_]+=)\{[1-9][0-9]{0,3}\}`)
	optionWord  = lazily(`^--?[A-Za-z][A-Za-z0-9-]*=\{[1-9][0-9]{0,3}\}$`)
)

// codeChars are common in code and in regular expressions, where braces mean
// something else: text with one of these holds no placeholder.
const codeChars = "$\\^[]()*+?|;&<>\"'`\n"

// parseTemplate finds the placeholders. With --args stdin asked for there are
// none.
func parseTemplate(spec *Spec) (template, error) {
	t := template{argv0: spec.Argv[0]}
	off := spec.ArgsSet && spec.Args == ArgsStdin
	roles, braces := codeWords(append(slices.Clip(spec.Argv), "{}")) // as if an argument followed
	for i, w := range spec.Argv[1:] {
		var parsed word
		switch as := roles[i+1]; {
		case off, as == ownBraces && w == "{}":
			parsed = literal(w)
		case !braces && as != code:
			parsed = parseWord(w)
		case !braces && parseWord(w).dynamic():
			return t, becomesCode(w)
		default:
			var err error
			if parsed, err = parseShellWord(w, as == code); err != nil {
				return t, err
			}
		}
		t.words = append(t.words, parsed)
		t.note(parsed)
	}
	if spec.Args == ArgsArgv && !t.dynamic && roles[len(spec.Argv)] == code {
		return t, usage("leave `args argv` out: the arguments then arrive on stdin", "arguments at the end of this command line would be run as code or as a program")
	}
	return t, nil
}

// note records which arguments the placeholders use.
func (t *template) note(w word) {
	for _, p := range w {
		switch p.kind {
		case partText:
			continue
		case partAll, partOnly:
			t.all = true
		case partNumber:
			t.numbers = max(t.numbers, p.number)
		case partField:
			t.fields = append(t.fields, p.field)
		}
		t.dynamic = true
	}
}

// uses lists the placeholders, for people.
func (t template) uses() string {
	var list []string
	for _, p := range slices.Concat(t.words...) {
		if p.kind != partText && !slices.Contains(list, p.text) {
			list = append(list, p.text)
		}
	}
	return strings.Join(list, " ")
}

func (w word) dynamic() bool { return len(w) > 1 || w[0].kind != partText }

func literal(w string) word { return word{{kind: partText, text: w}} }

func parseWord(w string) word {
	if w == "{}" {
		return word{{kind: partAll, text: w}}
	}
	if strings.ContainsAny(w, codeChars) {
		return literal(w)
	}
	return splitWord(w)
}

func splitWord(w string) word {
	var parts word
	at := 0
	for _, m := range placeholder().FindAllStringSubmatchIndex(w, -1) {
		if m[0] > at {
			parts = append(parts, part{kind: partText, text: w[at:m[0]]})
		}
		p := part{kind: partOnly, text: w[m[0]:m[1]]}
		switch {
		case m[2] >= 0:
			p.kind = partNumber
			p.number, _ = strconv.Atoi(w[m[2]:m[3]])
		case m[4] >= 0:
			p.kind, p.field = partField, w[m[4]:m[5]]
		}
		parts = append(parts, p)
		at = m[1]
	}
	if at < len(w) || len(parts) == 0 {
		parts = append(parts, part{kind: partText, text: w[at:]})
	}
	return parts
}

// parseShellWord reads a word of a command that runs an interpreter. Braces
// are everyday text there, so only words that can hardly mean anything else
// are placeholders; and an argument must never become code.
func parseShellWord(w string, code bool) (word, error) {
	whole := w == "{}" || numbered().FindString(w) == w && w != ""
	switch {
	case code && (whole || attached().MatchString(w)):
		return nil, becomesCode(w)
	case w == "{}":
		return word{{kind: partAll, text: w}}, nil
	case whole, !code && optionWord().MatchString(w):
		return splitWord(w), nil
	case strings.ContainsAny(w, " \t\n") && meansArgument(w):
		return nil, usage(shellHint, "a placeholder within the code %s would let an argument be run as code", args.Abbreviate(w))
	}
	return literal(w), nil
}

func becomesCode(w string) error {
	return usage(shellHint, "%s is where the command expects code or a program: the argument would be run", w)
}

const shellHint = `pass it as the code's own argument: sh -c 'echo "$1"' sh {1}`

// meansArgument distinguishes {1} for an argument from the {1} of a regular
// expression, which is in code and repeats the character before it.
func meansArgument(w string) bool {
	found := numbered().FindAllStringIndex(w, -1)
	if !strings.ContainsAny(w, codeChars) {
		return len(found) > 0
	}
	return slices.ContainsFunc(found, func(m []int) bool {
		return m[0] == 0 || strings.IndexByte(" \t\n\"'`=/:,", w[m[0]-1]) >= 0
	})
}

// expand puts a call's arguments into the command line. Without placeholders
// they follow it.
func (t *template) expand(v *args.Values, allowOptions bool) ([]string, error) {
	argv := make([]string, 1, len(t.words)+len(v.List)+1)
	argv[0] = t.argv0
	if err := t.check(v); err != nil {
		return nil, err
	}
	for _, w := range t.words {
		words, err := w.expand(v)
		if err != nil {
			return nil, err
		}
		// A word that begins with the offer's own text is an option if the offer wants
		// it; one that begins with an argument must not become one.
		if !allowOptions && w[0].kind != partText {
			if err := refuseOptions(words); err != nil {
				return nil, err
			}
		}
		argv = append(argv, words...)
	}
	if t.dynamic {
		return argv, nil
	}
	rest, err := word{{kind: partAll}}.expand(v)
	if err == nil && !allowOptions {
		err = refuseOptions(rest)
	}
	return append(argv, rest...), err
}

// check finds arguments that no placeholder uses: silence would hide a
// caller's mistake.
func (t *template) check(v *args.Values) error {
	if !t.dynamic || t.all {
		return nil
	}
	if v.Kind == args.KindMap {
		for _, key := range v.Keys {
			if !slices.Contains(t.fields, key) {
				return args.BadInput("field %q has no use here: it takes %s", key, t.uses())
			}
		}
		return nil
	}
	if n := len(v.List); n > t.numbers {
		return args.BadInput("takes %s, got %d", count(t.numbers), n)
	}
	return nil
}

func count(n int) string {
	switch n {
	case 0:
		return "no arguments"
	case 1:
		return "1 argument"
	}
	return strconv.Itoa(n) + " arguments"
}

func refuseOptions(words []string) error {
	for _, w := range words {
		if strings.HasPrefix(w, "-") {
			return args.BadInput("%s begins with \"-\" and could be taken for an option; the function's offer can permit it: `allow-options`", args.Abbreviate(w))
		}
	}
	return nil
}

func (w word) expand(v *args.Values) ([]string, error) {
	if w[0].kind == partAll {
		words := make([]string, len(v.List))
		for i := range v.List {
			b, err := v.Word(i)
			if err != nil {
				return nil, err
			}
			words[i] = string(b)
		}
		return words, nil
	}
	var out strings.Builder
	for _, p := range w {
		if p.kind == partText {
			out.WriteString(p.text)
			continue
		}
		b, err := p.pick(v)
		if err != nil {
			return nil, err
		}
		out.Write(b)
	}
	return []string{out.String()}, nil
}

// pick returns the argument that a placeholder names.
func (p part) pick(v *args.Values) ([]byte, error) {
	switch p.kind {
	case partOnly:
		if len(v.List) != 1 {
			return nil, args.BadInput("takes 1 argument, got %d", len(v.List))
		}
		return v.Word(0)
	case partNumber:
		if v.Kind == args.KindMap || p.number > len(v.List) {
			return nil, args.BadInput("argument %d is missing", p.number)
		}
		return v.List[p.number-1].Text, nil
	}
	if value, ok := v.Field(p.field); ok {
		return value.Text, nil
	}
	return nil, args.BadInput("field %q is missing", p.field)
}

// lazily compiles an expression when it is first used: every fbus call links
// this package, and pays for what it initialises.
func lazily(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// interpreters read code from their command line. What runs it elsewhere or
// as somebody else, ssh and su, is one of them.
var interpreters = lazily(`^(?:sh|ash|bash|dash|zsh|[km]?ksh|t?csh|fish|busybox|ssh|su|runuser|eval|sed|jq|expect|` +
	`[gmn]?awk|Rscript|julia|octave|(?:perl|python|pypy|ruby|node|nodejs|php|lua|luajit|tclsh)[0-9.]*)$`)

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
		case name == "eval" || name == "ssh": // they put all their words together and have a shell read them
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
