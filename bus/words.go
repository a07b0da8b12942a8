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
		r := args.Reader{B: inv.Args}
		r.Left = r.ArrayLen()
		var list []string
		for r.Err == nil && r.Left > 0 {
			list = append(list, string(r.Bytes(len(inv.Args))))
		}
		r.Skip() // there is nothing more
		return list, r.Err
	case args.KindJSON:
		var list []string
		if err := json.Unmarshal(inv.Args, &list); err != nil {
			return nil, args.Errorf(args.CodeBadInput, "expected an array of strings")
		}
		return list, nil
	}
	return nil, args.Errorf(args.CodeBadInput, "expected words, not fields")
}
