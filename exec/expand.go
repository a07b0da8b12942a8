package exec

import (
	"slices"
	"strings"
)

// expand puts a call's arguments into the command line. Without placeholders
// they follow it.
func (t *template) expand(a *arguments, allowOptions bool) ([]string, error) {
	argv := make([]string, 1, len(t.words)+len(a.values)+1)
	argv[0] = t.argv0
	if err := t.check(a); err != nil {
		return nil, err
	}
	for _, w := range t.words {
		words, err := w.expand(a)
		if err != nil {
			return nil, err
		}
		// A word that the offer itself begins is an option because the offer
		// says so; one that an argument begins must not become one.
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
	rest, err := word{{kind: partAll}}.expand(a)
	if err == nil && !allowOptions {
		err = refuseOptions(rest)
	}
	return append(argv, rest...), err
}

// check finds arguments that no placeholder uses: silence would hide a
// caller's mistake.
func (t *template) check(a *arguments) error {
	if !t.dynamic || t.all {
		return nil
	}
	if a.kind == KindMap {
		for _, key := range a.keys {
			if !slices.Contains(t.fields, key) {
				return badInput("field %q has no use here: it takes %s", key, t.uses())
			}
		}
		return nil
	}
	if n := len(a.values); n > t.numbers {
		return badInput("takes %s, got %d", count(t.numbers), n)
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
	return itoa(n) + " arguments"
}

func refuseOptions(words []string) error {
	for _, w := range words {
		if strings.HasPrefix(w, "-") {
			return badInput("%s begins with \"-\" and could be taken for an option; the function's offer can permit it: --allow-options",
				abbreviate([]byte(w)))
		}
	}
	return nil
}

func (w word) expand(a *arguments) ([]string, error) {
	if w[0].kind == partAll {
		words := make([]string, len(a.values))
		for i := range a.values {
			b, err := a.word(i)
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
		b, err := a.pick(p)
		if err != nil {
			return nil, err
		}
		out.Write(b)
	}
	return []string{out.String()}, nil
}

// pick finds the argument that a placeholder stands for.
func (a *arguments) pick(p part) ([]byte, error) {
	switch p.kind {
	case partOnly:
		if len(a.values) != 1 {
			return nil, badInput("takes 1 argument, got %d", len(a.values))
		}
		return a.word(0)
	case partNumber:
		if a.kind == KindMap || p.number > len(a.values) {
			return nil, badInput("argument %d is missing", p.number)
		}
		return a.values[p.number-1].text, nil
	}
	if a.kind == KindMap {
		if i := slices.Index(a.keys, p.text); i >= 0 {
			return a.values[i].text, nil
		}
	}
	return nil, badInput("field %q is missing", p.text)
}
