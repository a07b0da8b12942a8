package exec

import (
	"slices"
	"strconv"
	"strings"

	"fbus/bus/args"
)

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
			return args.BadInput("%s begins with \"-\" and could be taken for an option; the function's offer can permit it: `allow-options`",
				args.Abbreviate([]byte(w)))
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
	if value, ok := v.Field(p.text); ok {
		return value.Text, nil
	}
	return nil, args.BadInput("field %q is missing", p.text)
}
