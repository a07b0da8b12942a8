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
	return 0, fmt.Errorf("unknown argument mode %q (known: stdin, argv)", s)
}

func (m ArgMode) String() string {
	if m == ArgsArgv {
		return "argv"
	}
	return "stdin"
}

// Protocol is how calls are put to a resident process, and how it answers.
type Protocol int

// The protocols.
const (
	NotResident Protocol = iota // one process per call
	LineByLine                  // a line in, a line out
	JSONRPC                     // JSON-RPC 2.0, one message a line
)

// ParseProtocol reads "lines" or "json".
func ParseProtocol(s string) (Protocol, error) {
	switch s {
	case "lines":
		return LineByLine, nil
	case "json":
		return JSONRPC, nil
	}
	return 0, fmt.Errorf("unknown protocol %q (known: lines, json)", s)
}

func (p Protocol) String() string { return [...]string{"", "lines", "json"}[p] }
