package commands

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"fbus/bus/args"
)

// Codes of JSON-RPC 2.0, section 5.1, and of the Language Server Protocol for a
// request that its sender has cancelled.
const (
	rpcParse     = -32700
	rpcInvalid   = -32600
	rpcNoMethod  = -32601
	rpcParams    = -32602
	rpcCancelled = -32800
)

// cancelMethod is the notification that ends a call, as in the Language Server
// Protocol.
const cancelMethod = "$/cancelRequest"

// maxBatch is how many requests a batch may hold.
const maxBatch = 10000

// rpcError is why a request is answered with an error.
type rpcError struct {
	code    int
	message string
	data    *rpcData // nil: it was no request
}

func (e *rpcError) Error() string { return e.message }

func rpcErrorf(code int, format string, args ...any) *rpcError {
	return &rpcError{code: code, message: fmt.Sprintf(format, args...)}
}

// refusalf is the error of a request that is refused as a call would be.
func refusalf(code, format string, a ...any) *rpcError {
	status := args.StatusOf(code)
	e := rpcErrorf(status, format, a...)
	e.data = &rpcData{source: args.FromBus.String(), status: status, code: code}
	return e
}

// rpcRequest is one request or notification, not yet checked further than that
// it is JSON. Its parts are cut from the line as they stand there, so that
// numbers keep their digits.
type rpcRequest struct {
	id       []byte // nil: a notification
	method   string
	params   []byte // nil: none
	input    []byte
	raw      bool // there is an input
	unpaired bool // which was half of a surrogate pair, and so is not what was meant
}

// splitBatch reads one line: a request, or a batch of them. An empty batch is an
// error, as JSON-RPC has it.
func splitBatch(line []byte) (docs [][]byte, batch bool, err error) {
	switch {
	case !utf8.Valid(line):
		return nil, false, rpcErrorf(rpcParse, "the line is not UTF-8")
	case !json.Valid(line):
		return nil, false, rpcErrorf(rpcParse, "the line is not JSON: %s", shorten(line))
	}
	line = bytes.TrimSpace(line)
	if line[0] != '[' {
		return [][]byte{line}, false, nil
	}
	docs = elements(line, maxBatch+1)
	switch {
	case len(docs) == 0:
		return nil, true, rpcErrorf(rpcInvalid, "the batch is empty")
	case len(docs) > maxBatch:
		return nil, true, rpcErrorf(rpcInvalid, "the batch exceeds the limit of %d requests", maxBatch)
	}
	return docs, true, nil
}

// parseRequest reads one request from a JSON document. With an error the request
// has its id, if one could be found.
func parseRequest(doc []byte) (rpcRequest, error) {
	var r rpcRequest
	if doc[0] != '{' {
		return r, rpcErrorf(rpcInvalid, "a request is an object: %s", shorten(doc))
	}
	var version, method, input, encoded []byte
	for key, value := range members(doc) {
		switch key {
		case "jsonrpc":
			version = value
		case "id":
			r.id = value
		case "method":
			method = value
		case "params":
			r.params = value
		case "input":
			input = value
		case "input_base64":
			encoded = value
		}
	}
	r.id = bytes.Clone(r.id) // the line is not to be kept for it
	if r.id != nil && r.id[0] != '"' && !isNumber(r.id) && string(r.id) != "null" {
		r.id = []byte("null")
		return r, rpcErrorf(rpcInvalid, "id is no string and no number")
	}
	switch {
	case string(version) != `"2.0"`:
		return r, rpcErrorf(rpcInvalid, `"jsonrpc":"2.0" is missing`)
	case method == nil || method[0] != '"':
		return r, rpcErrorf(rpcInvalid, "method is missing, or no string")
	}
	r.method = unquote(method)
	if string(r.params) == "null" {
		r.params = nil
	}
	if r.params != nil && r.params[0] != '[' && r.params[0] != '{' {
		return r, rpcErrorf(rpcInvalid, "params is no array and no object")
	}
	return r, r.takeInput(input, encoded)
}

// takeInput reads the two members that JSON-RPC does not have.
func (r *rpcRequest) takeInput(text, encoded []byte) error {
	switch {
	case text != nil && encoded != nil:
		return rpcErrorf(rpcInvalid, "input and input_base64 exclude each other")
	case text != nil:
		if text[0] != '"' {
			return rpcErrorf(rpcInvalid, "input is no string")
		}
		r.input, r.raw, r.unpaired = []byte(unquote(text)), true, args.Unpaired(text)
	case encoded != nil:
		if encoded[0] != '"' {
			return rpcErrorf(rpcInvalid, "input_base64 is no string")
		}
		data, err := base64.StdEncoding.DecodeString(unquote(encoded))
		if err != nil {
			return rpcErrorf(rpcInvalid, "input_base64: %v", err)
		}
		r.input, r.raw = data, true
	}
	return nil
}

// arguments are the params: a list of strings, fields, or, for an array that
// holds other values too, that document. So it is with a string that is no text.
func (r *rpcRequest) arguments() args.Args {
	switch {
	case r.params == nil:
		return args.Args{}
	case r.params[0] == '{':
		var fields []args.Field
		for key, value := range members(r.params) {
			if strings.ContainsRune(key, utf8.RuneError) && args.Unpaired(r.params) {
				return args.JSON(r.params)
			}
			if value[0] == '"' && !args.Unpaired(value) {
				fields = append(fields, args.Field{Name: key, Value: unquote(value)})
			} else {
				fields = append(fields, args.Field{Name: key, Value: string(value), JSON: true})
			}
		}
		return args.Fields(fields...)
	}
	var words []string
	for _, value := range elements(r.params, len(r.params)) {
		if value[0] != '"' || args.Unpaired(value) {
			return args.JSON(r.params)
		}
		words = append(words, unquote(value))
	}
	return args.List(words...)
}

// idKey makes ids comparable: "a" and "\u0061" are one, "1" and 1 are two. It is
// empty for what can not be told apart: a notification, and null.
func idKey(id []byte) string {
	switch {
	case id == nil || string(id) == "null":
		return ""
	case id[0] == '"' && args.Unpaired(id):
		return "u" + string(id)
	case id[0] == '"':
		return "s" + unquote(id)
	}
	return "n" + string(id)
}

func isNumber(doc []byte) bool { return doc[0] == '-' || doc[0] >= '0' && doc[0] <= '9' }

// unquote is the text of a valid JSON string.
func unquote(doc []byte) string {
	if bytes.IndexByte(doc, '\\') < 0 {
		return string(doc[1 : len(doc)-1])
	}
	var s string
	json.Unmarshal(doc, &s) // it is valid
	return s
}

// elements cuts a valid JSON array into its values, the first few of them.
func elements(doc []byte, most int) [][]byte {
	var list [][]byte
	rest := skipSpace(doc[1:])
	for rest[0] != ']' && len(list) < most {
		n := valueLen(rest)
		list = append(list, rest[:n:n])
		if rest = skipSpace(rest[n:]); rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
	}
	return list
}

// members yields the names and values of a valid JSON object, in their order.
func members(doc []byte) func(yield func(string, []byte) bool) {
	return func(yield func(string, []byte) bool) {
		rest := skipSpace(doc[1:])
		for rest[0] != '}' {
			n := valueLen(rest)
			key := unquote(rest[:n])
			rest = skipSpace(rest[n:])
			rest = skipSpace(rest[1:]) // the colon
			n = valueLen(rest)
			if !yield(key, rest[:n:n]) {
				return
			}
			if rest = skipSpace(rest[n:]); rest[0] == ',' {
				rest = skipSpace(rest[1:])
			}
		}
	}
}

func skipSpace(p []byte) []byte { return bytes.TrimLeft(p, " \t\r\n") }

// valueLen is the length of the value that valid JSON begins with.
func valueLen(p []byte) int {
	switch p[0] {
	case '"':
		return stringLen(p)
	case '[', '{':
		depth := 0
		for i := 0; ; i++ {
			switch p[i] {
			case '"':
				i += stringLen(p[i:]) - 1
			case '[', '{':
				depth++
			case ']', '}':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
	}
	if i := bytes.IndexAny(p, ",]} \t\r\n"); i >= 0 {
		return i
	}
	return len(p)
}

func stringLen(p []byte) int {
	for i := 1; ; i++ {
		switch p[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
}

// appendQuoted appends s, which is UTF-8, as a JSON string with no more escapes
// than JSON asks for.
func appendQuoted[T string | []byte](dst []byte, s T) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

// appendText appends bytes as a JSON string or, if they are not UTF-8, as
// {"base64":"…"}.
func appendText(dst, p []byte) []byte {
	if utf8.Valid(p) {
		return appendQuoted(dst, p)
	}
	dst = append(dst, `{"base64":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, p)
	return append(dst, `"}`...)
}

// appendResult appends a function's output as the result: as it stands if it is
// one JSON document, on one line, else as text.
func appendResult(dst, output []byte, text bool) []byte {
	if !text && utf8.Valid(output) {
		b := bytes.NewBuffer(dst)
		if json.Compact(b, output) == nil {
			return b.Bytes()
		}
	}
	return appendText(dst, output)
}

// lastLine is the last line of what a program wrote to stderr that says
// something.
func lastLine(stderr string) string {
	stderr = strings.TrimSpace(stderr)
	return strings.TrimSpace(stderr[strings.LastIndexByte(stderr, '\n')+1:])
}
