package exec

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"fbus/bus/args"
)

// template is the offered command line with its placeholders found.
type template struct {
	words   []word // Argv[1:], where a placeholder may stand
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
	partAll             // {} as a whole word: every argument, a word each
	partOnly            // {} within a word: the only argument
	partNumber          // {1}
	partField           // {name}
)

type part struct {
	kind   partKind
	text   string // literal text, or the field's name
	number int
}

var (
	placeholder = lazily(`\{(?:([1-9][0-9]{0,3})|([A-Za-z_][A-Za-z0-9_-]*))?\}`)
	numbered    = lazily(`\{[1-9][0-9]{0,3}\}`)
	optionWord  = lazily(`^--?[A-Za-z][A-Za-z0-9-]*=\{[1-9][0-9]{0,3}\}$`)
)

// codeChars stand in code and in regular expressions, where braces mean
// something else: text with one of these holds no placeholder.
const codeChars = "$\\^[]()*+?|;&<>\"'`\n"

// parseTemplate finds the placeholders. With --args stdin asked for there are
// none.
func parseTemplate(spec *Spec) (template, error) {
	t := template{argv0: spec.Argv[0]}
	off := spec.ArgsSet && spec.Args == ArgsStdin
	code := codeWords(spec.Argv)
	for i, w := range spec.Argv[1:] {
		var parsed word
		switch {
		case off:
			parsed = literal(w)
		case code == nil:
			parsed = parseWord(w)
		default:
			var err error
			if parsed, err = parseShellWord(w, code[i+1]); err != nil {
				return t, err
			}
		}
		t.words = append(t.words, parsed)
		t.note(parsed)
	}
	if spec.Args == ArgsArgv && !t.dynamic && slices.ContainsFunc(spec.Argv, func(w string) bool { return joining(path.Base(w)) }) {
		return t, usage("leave `args argv` out: the arguments then arrive on stdin", "arguments at the end of this command line would be read as code by a shell")
	}
	return t, nil
}

// note keeps account of what the placeholders use.
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
			if !slices.Contains(t.fields, p.text) {
				t.fields = append(t.fields, p.text)
			}
		}
		t.dynamic = true
	}
}

// uses lists the placeholders, for people.
func (t template) uses() string {
	var list []string
	for _, w := range t.words {
		for _, p := range w {
			if s := p.String(); p.kind != partText && !slices.Contains(list, s) {
				list = append(list, s)
			}
		}
	}
	return strings.Join(list, " ")
}

func (p part) String() string {
	switch p.kind {
	case partAll, partOnly:
		return "{}"
	case partNumber:
		return "{" + strconv.Itoa(p.number) + "}"
	case partField:
		return "{" + p.text + "}"
	}
	return p.text
}

func literal(w string) word { return word{{kind: partText, text: w}} }

func parseWord(w string) word {
	if w == "{}" {
		return word{{kind: partAll}}
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
		switch {
		case m[2] >= 0:
			n, _ := strconv.Atoi(w[m[2]:m[3]])
			parts = append(parts, part{kind: partNumber, number: n})
		case m[4] >= 0:
			parts = append(parts, part{kind: partField, text: w[m[4]:m[5]]})
		default:
			parts = append(parts, part{kind: partOnly})
		}
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
	case whole && code:
		return nil, usage(shellHint, "%s stands where the command expects code: the argument would be run", w)
	case w == "{}":
		return word{{kind: partAll}}, nil
	case whole, !code && optionWord().MatchString(w):
		return splitWord(w), nil
	case strings.ContainsAny(w, " \t\n") && meansArgument(w):
		return nil, usage(shellHint, "a placeholder within the code %s would let an argument be run as code", args.Abbreviate([]byte(w)))
	}
	return literal(w), nil
}

const shellHint = `pass it as the code's own argument: sh -c 'echo "$1"' sh {1}`

// meansArgument tells {1} for an argument from the {1} of a regular
// expression, which stands in code and repeats what is right before it.
func meansArgument(w string) bool {
	found := numbered().FindAllStringIndex(w, -1)
	if !strings.ContainsAny(w, codeChars) {
		return len(found) > 0
	}
	return slices.ContainsFunc(found, func(m []int) bool {
		return m[0] == 0 || strings.IndexByte(" \t\n\"'`=/:,", w[m[0]-1]) >= 0
	})
}
