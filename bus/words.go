package bus

import (
	"encoding/json"
	"fbus/bus/args"
)

// Words returns the arguments of an invocation as strings: those of a list, of
// a JSON array of strings, or none. It is for handlers that take only words;
// others decode Args by PROTOCOL.md, section 6.
func (inv *Invocation) Words() ([]string, error) {
	switch inv.Kind {
	case args.KindRaw:
		return nil, nil
	case args.KindList:
		return args.Words(inv.Args)
	case args.KindJSON:
		var list []string
		if err := json.Unmarshal(inv.Args, &list); err != nil {
			return nil, args.Errorf(args.CodeBadInput, "expected an array of strings")
		}
		return list, nil
	}
	return nil, args.Errorf(args.CodeBadInput, "expected words, not fields")
}
