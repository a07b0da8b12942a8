package commands

import (
	"maps"
	"os"
	"slices"
	"strings"

	"fbus/bus/args"

	"github.com/kballard/go-shellquote"
	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// How a command's flags and operands may be mixed.
type mixing int

const (
	interleaved     mixing = iota // flags anywhere up to --
	flagsFirst                    // flags only before the first operand; later words with - are refused
	untilDashDash                 // flags anywhere up to --, which is kept to mark the words of another command
	programOnly                   // the same; the operands are a program, and are refused without --
	nameThenProgram               // the same, but one name precedes the program
)

// programAt returns the number of operands before a program; -1: there is no program.
func (m mixing) programAt() int {
	switch m {
	case programOnly:
		return 0
	case nameThenProgram:
		return 1
	}
	return -1
}

// flagTable maps names to the flags of a command.
type flagTable map[string]cli.Flag

func tableOf(flags []cli.Flag) flagTable {
	t := make(flagTable, 2*len(flags))
	for _, f := range flags {
		name, aliases := namesOf(f)
		t[name] = f
		for _, name := range aliases {
			t[name] = f
		}
	}
	return t
}

// namesOf returns the name of a flag and its aliases. Names of the flag would do the
// same, but runs a regular expression on each, and every call needs them all.
func namesOf(f cli.Flag) (name string, aliases []string) {
	switch f := f.(type) {
	case *cli.StringFlag:
		return f.Name, f.Aliases
	case *cli.BoolFlag:
		return f.Name, f.Aliases
	case *cli.IntFlag:
		return f.Name, f.Aliases
	case *cli.GenericFlag:
		return f.Name, f.Aliases
	}
	names := f.Names()
	return names[0], names[1:]
}

// option returns a flag as normalize writes it.
func option(f cli.Flag) string {
	name, _ := namesOf(f)
	return "--" + name
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

// normalize reads words as getopt_long does and rewrites them for the flag package:
// each flag by itself under its first name, with its value after =, then --, then the
// operands. So -j4, -t5s, -qn and --x=y work, and an operand is never mistaken for a
// flag.
func normalize(command string, flags []cli.Flag, mix mixing, words []string) ([]string, error) {
	g := getopt{command: command, table: tableOf(flags), all: words, words: words}
	marked := slices.Contains(words, "--")
	for len(g.words) > 0 {
		w := g.words[0]
		g.words = g.words[1:]
		switch {
		case w == "--":
			if mix >= untilDashDash {
				g.operands = append(g.operands, "--")
			}
			g.operands = append(g.operands, g.words...)
			g.words = nil
		case len(w) < 2 || w[0] != '-':
			if mix == flagsFirst {
				if err := g.rest(w); err != nil {
					return nil, err
				}
				break
			}
			if len(g.operands) == mix.programAt() && !marked {
				if err := g.unmarked(); err != nil {
					return nil, err
				}
				break
			}
			g.operands = append(g.operands, w)
		default:
			if err := g.flag(w); err != nil {
				return nil, err
			}
		}
	}
	given := map[string]bool{}
	for _, w := range slices.Backward(g.flags) { // the last one counts
		name, value, valued := strings.Cut(w, "=")
		if valued && value == "" && !given[name] && !mayBeEmpty(name[2:]) { // often a variable that is not set
			return nil, usage("%s is empty: it needs a value", name).WithHint("fbus %s --help", command)
		}
		given[name] = true
	}
	if mix == interleaved && slices.Contains(g.operands, "") {
		return nil, usage("fbus %s: an operand is empty", command).WithHint("fbus %s --help", command)
	}
	return append(append(g.flags, "--"), g.operands...), nil
}

type getopt struct {
	command         string
	table           flagTable
	all             []string
	words           []string // the rest of all, still to be read
	flags, operands []string
}

// read returns the words before the last word that was read, and that word with the rest.
func (g *getopt) read() (before, rest []string) {
	i := len(g.all) - len(g.words) - 1
	return g.all[:i], g.all[i:]
}

// unmarked refuses a program without --: its flags would be read as those of fbus. Help
// is not refused.
func (g *getopt) unmarked() error {
	before, program := g.read()
	if slices.Contains(program, "-h") || slices.Contains(program, "--help") {
		g.flags, g.words = append(g.flags, "--help"), nil
		return nil
	}
	program = separate(program)
	marked := join("fbus", g.command, withoutSecrets(before), "--", program)
	switch {
	case len(g.operands) == 0 && program[0] == "fbus":
		return usage("the command must follow --").WithHint("%s", marked)
	case len(g.operands) == 0:
		return usage("the command must follow --").WithHint("%s; or, to call a function: %s", marked, join("fbus", "call", operands(program)))
	}
	f := usage("the program of %s must follow --", g.operands[0])
	moved, kept := g.ours(program[1:], true)
	if len(moved) == 0 {
		return f.WithHint("%s", marked)
	}
	return f.WithHint("%s; to pass %s on: %s", join("fbus", g.command, withoutSecrets(before), withoutSecrets(moved), "--", program[0], kept), moved[0], marked)
}

// withoutSecrets returns words for a hint, without the values of -e: they are often secrets.
func withoutSecrets(words []string) []string {
	shown := slices.Clone(words)
	for i, w := range words {
		prefix := ""
		switch {
		case i > 0 && (words[i-1] == "-e" || words[i-1] == "--env"):
		case strings.HasPrefix(w, "--env="):
			prefix = "--env="
		case strings.HasPrefix(w, "-e") && len(w) > 2:
			prefix = "-e"
		default:
			continue
		}
		name, _, named := strings.Cut(w[len(prefix):], "=")
		if shown[i] = prefix + "…"; named {
			shown[i] = prefix + name + "=…"
		}
	}
	return shown
}

// flag reads a word that begins with -.
func (g *getopt) flag(w string) error {
	if long, ok := strings.CutPrefix(w, "--"); ok {
		name, value, attached := strings.Cut(long, "=")
		if len(name) < 2 {
			return g.unknown("--" + name)
		}
		return g.add("--", name, value, attached)
	}
	for cluster := w[1:]; cluster != ""; {
		name := cluster[:1]
		cluster = cluster[1:]
		if f := g.table[name]; f != nil && takesValue(f) {
			return g.add("-", name, strings.TrimPrefix(cluster, "="), cluster != "")
		}
		if err := g.add("-", name, "", false); err != nil {
			return err
		}
	}
	return nil
}

// add adds a flag, and its value if it takes one: the attached one or the next word.
func (g *getopt) add(dashes, name, value string, attached bool) error {
	f := g.table[name]
	switch {
	case f == nil:
		return g.unknown(dashes + name)
	case !takesValue(f) && attached:
		return usage("--%s takes no value", name)
	case !takesValue(f):
		g.flags = append(g.flags, option(f))
		return nil
	case !attached && (len(g.words) == 0 || g.words[0] == "--"):
		return usage("%s needs a value", dashes+name).WithHint("fbus %s --help", g.command)
	case !attached:
		value, g.words = g.words[0], g.words[1:]
	}
	g.flags = append(g.flags, option(f)+"="+value)
	return nil
}

// mayBeEmpty reports whether an option has a use for an empty value, or refuses it in words of
// its own. Others would do something else than was meant: an empty -o would write to stdout.
func mayBeEmpty(name string) bool {
	return oneOf("arg description prefix data call offer env name", name)
}

func (g *getopt) unknown(flag string) error {
	f := usage("fbus %s has no flag %s", g.command, flag)
	if g.command == "hold" && oneOf("--off --release --remove --delete --end", flag) {
		return f.WithHint("%s ends it", join("fbus", "release", g.operands, g.words))
	}
	if before, rest := g.read(); g.command == "unit" && len(g.operands) > 0 { // it takes those of another command
		return f.WithHint("flags of fbus %s follow --: %s", g.operands[0], join("fbus", g.command, before, "--", rest))
	}
	for _, ours := range synonyms(strings.TrimLeft(flag, "-")) {
		if g.table[ours] != nil {
			return f.WithHint("did you mean fbus %s --%s?", g.command, ours)
		}
	}
	if near := nearest(strings.TrimLeft(flag, "-"), slices.Collect(maps.Keys(g.table))); near != "" && len(near) > 1 {
		return f.WithHint("did you mean fbus %s --%s?", g.command, near)
	}
	return f.WithHint("fbus %s --help lists them", g.command)
}

// synonyms returns our names of a flag that other programs have, the likeliest first.
func synonyms(flag string) []string {
	switch flag {
	case "P", "max-procs", "procs", "concurrency", "parallel", "threads", "processes", "instances":
		return []string{"jobs", "slots"}
	case "n", "L", "max-lines":
		return []string{"max-args"}
	case "progress", "eta":
		return []string{"bar"}
	case "s", "silent":
		return []string{"quiet"}
	case "debug":
		return []string{"verbose"}
	case "m", "max-time", "time-limit", "deadline":
		return []string{"timeout"}
	case "retry", "tries":
		return []string{"retries"}
	case "port", "p", "bind", "host", "address", "addr", "server", "url":
		return []string{"listen", "node"}
	case "directory", "dir", "cwd", "workdir":
		return []string{"chdir"}
	case "body", "payload", "data-raw", "args", "params":
		return []string{"data"}
	case "stdin", "file", "infile":
		return []string{"input", "arg-file", "config"}
	case "out", "outfile", "results":
		return []string{"output"}
	case "format":
		return []string{"json"}
	case "f", "tail":
		return []string{"follow"}
	case "all", "failed":
		return []string{"dead"}
	case "expires", "expiry", "valid", "duration":
		return []string{"ttl"}
	}
	return nil
}

// rest reads everything from the first operand on. A word that begins with - is refused
// unless it follows --, because it may be for fbus or for the function.
func (g *getopt) rest(first string) error {
	g.operands = append(g.operands, first)
	i := slices.Index(g.words, "--")
	free := g.words
	if i >= 0 {
		free = g.words[:i]
	}
	for k, w := range free {
		if len(w) > 1 && w[0] == '-' {
			return g.misplaced(first, free, k)
		}
	}
	g.operands = append(g.operands, free...)
	if i >= 0 {
		g.operands = append(g.operands, g.words[i+1:]...)
	}
	g.words = nil
	return nil
}

// misplaced refuses a word with - after the name. Its hint has both corrected commands.
func (g *getopt) misplaced(name string, words []string, k int) error {
	w := words[k]
	f := usage("%s after %s: is it for fbus or for the function?", w, name)
	typed := g.all[:len(g.all)-len(g.words)-1]
	pass := slices.DeleteFunc(slices.Clone(g.words), func(w string) bool { return w == "--" })
	forFunction := join("fbus", g.command, typed, name, "--", pass)
	moved, kept := g.ours(words, false)
	if len(moved) == 0 {
		return f.WithHint("to pass it on: %s", forFunction)
	}
	if rest := g.words[len(words):]; len(rest) > 0 { // behind --
		kept = append(kept, rest[1:]...)
	}
	if slices.ContainsFunc(kept, func(w string) bool { return len(w) > 1 && w[0] == '-' }) {
		kept = append([]string{"--"}, kept...)
	}
	return f.WithHint("for fbus: %s; to pass it on: %s", join("fbus", g.command, typed, moved, name, kept), forFunction)
}

// ours splits words into the flags of the command, with their values, and all others. With sure,
// only long flags with a value are the command's: others are as likely a program's.
func (g *getopt) ours(words []string, sure bool) (flags, others []string) {
	for len(words) > 0 {
		w, n := words[0], 1
		known, next := g.known(w)
		if next {
			n = 2
		}
		fits := !sure || strings.HasPrefix(w, "--") && (next || strings.Contains(w, "="))
		if known && fits && n <= len(words) {
			flags = append(flags, words[:n]...)
		} else {
			others, n = append(others, w), 1
		}
		words = words[n:]
	}
	return flags, others
}

// known reports whether a word is a flag, or several short ones, of the command, and whether
// the next word is its value.
func (g *getopt) known(w string) (known, next bool) {
	if len(w) < 2 || w[0] != '-' {
		return false, false
	}
	if long, ok := strings.CutPrefix(w, "--"); ok {
		name, _, attached := strings.Cut(long, "=")
		f := g.table[name]
		return f != nil && len(name) > 1 && (takesValue(f) || !attached), f != nil && takesValue(f) && !attached
	}
	for i, c := range w[1:] {
		f := g.table[string(c)]
		switch {
		case f == nil:
			return false, false
		case takesValue(f):
			return true, i == len(w)-2
		}
	}
	return true, false
}

// separate returns a program that is given as one word, as a shell would take it: its words,
// or a shell that runs it. Others are returned as they are.
func separate(program []string) []string {
	if len(program) != 1 || !strings.Contains(program[0], " ") {
		return program
	}
	if _, err := os.Stat(program[0]); err == nil {
		return program
	}
	words, err := shellquote.Split(program[0])
	if err != nil || len(words) < 2 || strings.ContainsAny(program[0], "|&;<>()$`*?[#~") || strings.Contains(words[0], "=") {
		return []string{"sh", "-c", program[0]}
	}
	return words
}

// operands puts -- before words that begin with - and follow a name.
func operands(words []string) []string {
	for _, w := range words[1:] {
		if len(w) > 1 && w[0] == '-' && !strings.HasPrefix(words[0], "-") {
			return slices.Concat(words[:1], []string{"--"}, words[1:])
		}
	}
	return words
}

// join quotes words, or lists of words, as one line for the shell.
func join(parts ...any) string {
	var words []string
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			words = append(words, p)
		case []string:
			words = append(words, p...)
		}
	}
	return args.Quote(words...)
}

// nearest returns the candidate that is most like a mistyped word, "" if none is near.
func nearest(word string, candidates []string) string {
	best, bestDistance := "", 3
	slices.Sort(candidates)
	for _, c := range candidates {
		if d := smetrics.WagnerFischer(word, c, 1, 1, 1); d < bestDistance && d < len(word) {
			best, bestDistance = c, d
		}
	}
	return best
}
