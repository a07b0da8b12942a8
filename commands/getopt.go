package commands

import (
	"maps"
	"slices"
	"strings"

	"fbus/bus/args"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// How a command's flags and operands may be mixed.
type mixing int

const (
	interleaved   mixing = iota // flags anywhere up to --
	flagsFirst                  // flags only before the first operand; later words with - are refused
	untilDashDash               // flags anywhere up to --, which is kept to mark the program
)

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

// takesValue reports whether a flag is followed by a value.
func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

// normalize reads words as getopt_long does and rewrites them for the flag package:
// each flag by itself under its first name, with its value after =, then --, then the
// operands. So -j4, -t5s, -qn and --x=y work, and an operand is never mistaken for a
// flag.
func normalize(command string, flags []cli.Flag, mix mixing, words []string) ([]string, error) {
	g := getopt{command: command, table: tableOf(flags), words: words}
	for len(g.words) > 0 {
		w := g.words[0]
		g.words = g.words[1:]
		switch {
		case w == "--":
			if mix == untilDashDash {
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
			g.operands = append(g.operands, w)
		default:
			if err := g.flag(w); err != nil {
				return nil, err
			}
		}
	}
	return append(append(g.flags, "--"), g.operands...), nil
}

type getopt struct {
	command         string
	table           flagTable
	words           []string // still to be read
	flags, operands []string
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
	case !attached && len(g.words) == 0:
		return usage("%s needs a value", dashes+name).WithHint("fbus %s --help", g.command)
	case !attached:
		value, g.words = g.words[0], g.words[1:]
	}
	g.flags = append(g.flags, option(f)+"="+value)
	return nil
}

func (g *getopt) unknown(flag string) error {
	f := usage("fbus %s has no flag %s", g.command, flag)
	if near := nearest(strings.TrimLeft(flag, "-"), slices.Collect(maps.Keys(g.table))); near != "" && len(near) > 1 {
		return f.WithHint("did you mean fbus %s --%s?", g.command, near)
	}
	return f.WithHint("fbus %s --help lists them", g.command)
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
	pass := slices.DeleteFunc(slices.Clone(g.words), func(w string) bool { return w == "--" })
	forFunction := join("fbus", g.command, g.flags, name, "--", pass)
	known := g.known(w)
	if known == nil {
		return f.WithHint("to pass it on: %s", forFunction)
	}
	moved, rest := []string{w}, slices.Clone(words[k+1:])
	if takesValue(known) && (w[:2] == "--" && !strings.Contains(w, "=") || w[:2] != "--" && len(w) == 2) && len(rest) > 0 {
		moved, rest = append(moved, rest[0]), rest[1:]
	}
	return f.WithHint("for fbus: %s; to pass it on: %s",
		join("fbus", g.command, g.flags, moved, name, words[:k], rest), forFunction)
}

func (g *getopt) known(w string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimPrefix(w, "--"), "=")
	if w[:2] != "--" {
		name = w[1:2]
	}
	return g.table[name]
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
