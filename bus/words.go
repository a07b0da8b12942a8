package bus

import (
	"encoding/json"

	"fbus/bus/args"
)

// Words returns the arguments of an invocation as strings: those of a list, of
// a JSON array of strings, or none. It is for handlers that take only words;
// others decode Args by PROTOCOL.md, section 6.
func (inv *Invocation) Words() ([]string, error) {
	if inv.Kind == args.KindMap {
		return nil, args.BadInput("expected words, not fields")
	}
	v, err := args.Decode(inv.Kind, inv.Args)
	if err != nil {
		return nil, err
	}
	var list []string
	if inv.Kind == args.KindJSON {
		if err := json.Unmarshal(v.Doc, &list); err != nil {
			return nil, args.BadInput("expected an array of strings")
		}
		return list, nil
	}
	for _, value := range v.List {
		word := string(value.Text)
		if value.JSON {
			if err := json.Unmarshal(value.Text, &word); err != nil {
				return nil, args.BadInput("expected strings, not %s", args.Abbreviate(value.Text))
			}
		}
		list = append(list, word)
	}
	return list, nil
}
