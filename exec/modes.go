package exec

import "fmt"

// ArgMode is where a program finds a call's arguments.
type ArgMode int

// The argument modes.
const (
	ArgsStdin ArgMode = iota // serialized on stdin
	ArgsArgv                 // on the command line
)

// ParseArgMode reads "stdin" or "argv".
func ParseArgMode(s string) (ArgMode, error) {
	switch s {
	case "stdin":
		return ArgsStdin, nil
	case "argv":
		return ArgsArgv, nil
	}
	return 0, fmt.Errorf("%q is not a way to pass arguments: stdin or argv", s)
}

func (m ArgMode) String() string {
	if m == ArgsArgv {
		return "argv"
	}
	return "stdin"
}

// Encoding is how arguments are written to a program's stdin.
type Encoding int

// The encodings.
const (
	JSON    Encoding = iota // one document and a newline
	Msgpack                 // one value
	Lines                   // one argument a line
	NUL                     // one argument, then a NUL byte
)

var encodings = [...]struct{ name, phrase string }{
	JSON:    {"json", "JSON"},
	Msgpack: {"msgpack", "msgpack"},
	Lines:   {"lines", "lines"},
	NUL:     {"nul", "NUL-terminated strings"},
}

// ParseEncoding reads an encoding's name.
func ParseEncoding(s string) (Encoding, error) {
	for i, e := range encodings {
		if e.name == s {
			return Encoding(i), nil
		}
	}
	return 0, fmt.Errorf("%q is not an encoding: json, msgpack, lines or nul", s)
}

func (e Encoding) String() string { return encodings[e].name }
func (e Encoding) phrase() string { return encodings[e].phrase }

// Kind is the form in which a call's arguments travel. The numbers are the
// wire's.
type Kind int

// The kinds.
const (
	KindRaw  Kind = 0 // no arguments: the input is everything
	KindList Kind = 1 // a msgpack array of values
	KindMap  Kind = 2 // a msgpack map with string keys, in the caller's order
	KindJSON Kind = 3 // one JSON document, verbatim
)
