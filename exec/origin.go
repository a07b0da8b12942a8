package exec

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"fbus/bus/args"
)

// origin is the job whose end has posted another one: what Call.Origin says.
type origin struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Status   int    `json:"status"`
	Attempts int    `json:"attempts"`
}

// originOf reads Call.Origin. The node has written it: one that makes no sense
// counts as none.
func originOf(c *Call) *origin {
	if c.Origin == "" {
		return nil
	}
	p := &origin{}
	if json.Unmarshal([]byte(c.Origin), p) != nil {
		return nil
	}
	return p
}

// params are the parameters of a request about that job's end: what there is to
// know of it, and its output as a string, in base64 where it is not UTF-8.
func (p *origin) params(output []byte) []byte {
	out := make([]byte, 0, len(output)+256)
	out = args.AppendString(append(out, `{"id":`...), []byte(p.ID))
	out = args.AppendString(append(out, `,"function":`...), []byte(p.Function))
	out = append(out, `,"status":`+strconv.Itoa(p.Status)+`,"attempts":`+strconv.Itoa(p.Attempts)+`,"output":`...)
	if utf8.Valid(output) {
		return append(args.AppendString(out, output), '}')
	}
	out = append(base64.StdEncoding.AppendEncode(append(out, '"'), output), '"')
	return append(out, `,"encoding":"base64"}`...)
}
