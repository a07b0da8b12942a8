package exec

import "errors"

// Protocol is how calls are put to a resident process, and what it answers.
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
	return 0, errors.New("unknown protocol")
}

func (p Protocol) String() string { return [...]string{"", "lines", "json"}[p] }
