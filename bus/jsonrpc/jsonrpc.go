// Package jsonrpc reads and writes JSON-RPC 2.0, one message a line. It neither
// connects nor calls: fbus pipe, resident programs and companions use it.
//
// Documents are cut from a line and passed on unchanged, so that numbers keep their
// digits.
package jsonrpc

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"fbus/bus/args"
)

// Codes of JSON-RPC 2.0, section 5.1, and of the Language Server Protocol for a
// request that its sender has cancelled.
const (
	CodeParse     = -32700
	CodeInvalid   = -32600
	CodeNoMethod  = -32601
	CodeCancelled = -32800
)

// MaxBatch limits the requests of one batch.
const MaxBatch = 10000

// Error answers a request that has failed.
type Error struct {
	Code    int
	Message string
	Data    *Data // nil if the line was not a valid request
}

// Data describes the end of a call, as the data of an [Error].
type Data struct {
	Source args.Source
	Status int
	Code   string
	Call   string
	Worker string
	Stderr string
	Output []byte // from before the end
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Errorf returns an Error without data.
func Errorf(code int, format string, a ...any) *Error {
	return &Error{Code: code, Message: args.Sprintf(format, a...)}
}

// Refusal returns the Error of a request that fbus refuses as it would refuse the
// call.
func Refusal(e *args.Error) *Error {
	return &Error{Code: e.Status(), Message: e.Error(), Data: &Data{Source: args.FromBus, Status: e.Status(), Code: e.Code}}
}

// Request is one request or notification. Its parts alias the line, except ID.
type Request struct {
	ID       []byte // nil: a notification
	Method   string
	Params   []byte // nil: none
	Input    []byte // member input or input_base64, which JSON-RPC does not have
	HasInput bool

	// Unpaired means that Input was a string with half of a surrogate pair, which no
	// bytes can represent.
	Unpaired bool
}

// Split returns the requests of a line: one, or those of a batch. JSON-RPC does not
// allow an empty batch.
func Split(line []byte) (docs [][]byte, batch bool, err *Error) {
	line = args.WithoutBOM(line)
	if err := args.CheckJSON(line); err != nil {
		return nil, false, Errorf(CodeParse, "%v", err)
	}
	line = bytes.TrimSpace(line)
	if line[0] != '[' {
		return [][]byte{line}, false, nil
	}
	docs = elements(line, MaxBatch+1)
	switch {
	case len(docs) == 0:
		return nil, true, Errorf(CodeInvalid, "the batch is empty")
	case len(docs) > MaxBatch:
		return nil, true, Errorf(CodeInvalid, "the batch exceeds the limit of %d requests", MaxBatch)
	}
	return docs, true, nil
}

// ParseRequest reads one request from a JSON document, as [Split] returns it. With an
// error, the request still has its ID if there was one.
func ParseRequest(doc []byte) (r Request, err *Error) {
	if doc[0] != '{' {
		return r, Errorf(CodeInvalid, "a request must be an object: %s", args.Shorten(doc))
	}
	var version, method, text, encoded []byte
	for key, value := range members(doc) {
		switch key {
		case "jsonrpc":
			version = value
		case "id":
			r.ID = bytes.Clone(value) // or it would keep the line in memory
		case "method":
			method = value
		case "params":
			r.Params = value
		case "input":
			text = value
		case "input_base64":
			encoded = value
		}
	}
	if r.ID != nil && r.ID[0] != '"' && !isNumber(r.ID) && string(r.ID) != "null" {
		r.ID = []byte("null")
		return r, Errorf(CodeInvalid, "id must be a string or a number")
	}
	switch {
	case string(version) != `"2.0"`:
		return r, Errorf(CodeInvalid, `"jsonrpc":"2.0" is missing`)
	case method == nil || method[0] != '"':
		return r, Errorf(CodeInvalid, "method is missing, or not a string")
	}
	r.Method = unquote(method)
	if string(r.Params) == "null" {
		r.Params = nil
	}
	switch {
	case r.Params != nil && r.Params[0] != '[' && r.Params[0] != '{':
		return r, Errorf(CodeInvalid, "params must be an array or an object")
	case text != nil && encoded != nil:
		return r, Errorf(CodeInvalid, "input and input_base64 exclude each other")
	case text != nil && text[0] != '"':
		return r, Errorf(CodeInvalid, "input must be a string")
	case text != nil:
		r.Input, r.HasInput, r.Unpaired = []byte(unquote(text)), true, args.Unpaired(text)
	case encoded != nil && encoded[0] != '"':
		return r, Errorf(CodeInvalid, "input_base64 must be a string")
	case encoded != nil:
		data, err := base64.StdEncoding.DecodeString(unquote(encoded))
		if err != nil {
			return r, Errorf(CodeInvalid, "input_base64: %v", err)
		}
		r.Input, r.HasInput = data, true
	}
	return r, nil
}

// Args returns the params as arguments: an array of strings as a list, an object as
// fields, anything else as that JSON document. A string with half of a surrogate pair
// stays JSON too, for it is not text.
func (r *Request) Args() args.Args {
	switch {
	case r.Params == nil:
		return args.Args{}
	case r.Params[0] == '{':
		var fields []args.Field
		for key, value := range members(r.Params) {
			if strings.ContainsRune(key, utf8.RuneError) && args.Unpaired(r.Params) {
				return args.JSON(r.Params)
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
	for _, value := range elements(r.Params, len(r.Params)) {
		if value[0] != '"' || args.Unpaired(value) {
			return args.JSON(r.Params)
		}
		words = append(words, unquote(value))
	}
	return args.List(words...)
}

// Key identifies the request by its id: "a" and "\u0061" have one key, "1" and 1 have
// two. It is empty for a notification and for the id null.
func (r *Request) Key() string { return idKey(r.ID) }

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

// cancelMethod is the notification of the Language Server Protocol that ends a call.
const cancelMethod = "$/cancelRequest"

// Cancels returns the [Request.Key] of the request that r cancels, or "".
func (r *Request) Cancels() string {
	if r.Method == cancelMethod && r.Params != nil && r.Params[0] == '{' {
		for name, value := range members(r.Params) {
			if name == "id" && (value[0] == '"' || isNumber(value)) {
				return idKey(value)
			}
		}
	}
	return ""
}

// AppendAnswer appends the answer to a request: e, or else output as the result. The
// output stays as it is if it is one JSON document, unless text is set. Output that is
// neither JSON nor UTF-8 becomes {"base64":"…"}.
func AppendAnswer(dst, id []byte, e *Error, output []byte, text bool) []byte {
	if id == nil {
		id = []byte("null")
	}
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	if e == nil {
		dst = append(dst, `,"result":`...)
		return append(appendResult(dst, output, text), '}')
	}
	dst = strconv.AppendInt(append(dst, `,"error":{"code":`...), int64(e.Code), 10)
	dst = appendMember(dst, "message", e.Message)
	if d := e.Data; d != nil {
		dst = append(append(dst, `,"data":{"source":"`...), d.Source.String()...)
		dst = strconv.AppendInt(append(dst, `","status":`...), int64(d.Status), 10)
		dst = appendMember(dst, "code", d.Code)
		dst = appendMember(dst, "call", d.Call)
		dst = appendMember(dst, "worker", d.Worker)
		dst = appendMember(dst, "stderr", d.Stderr)
		dst = append(appendText(append(dst, `,"output":`...), d.Output), '}')
	}
	return append(dst, "}}"...)
}

func appendMember(dst []byte, name, value string) []byte {
	dst = append(append(append(dst, `,"`...), name...), `":`...)
	return append(dst, args.SafeJSON(args.AppendString(nil, []byte(value)))...)
}

func appendResult(dst, output []byte, text bool) []byte {
	if !text && utf8.Valid(output) {
		b := bytes.NewBuffer(dst)
		if json.Compact(b, args.WithoutBOM(output)) == nil {
			return b.Bytes()
		}
	}
	return appendText(dst, output)
}

func appendText(dst, p []byte) []byte {
	if utf8.Valid(p) {
		return args.AppendString(dst, p)
	}
	dst = base64.StdEncoding.AppendEncode(append(dst, `{"base64":"`...), p)
	return append(dst, `"}`...)
}

// Message is any message of a peer that is called, such as a resident program.
type Message struct {
	ID     json.RawMessage
	Method json.RawMessage
	Params json.RawMessage
	Result json.RawMessage
	Error  json.RawMessage
}

// ParseMessage reads a message, which must be an object with each name at most once.
// Names are compared exactly: encoding/json would take "ID" for "id", and the last of
// two, and so an answer for that of another call.
func ParseMessage(line []byte) (*Message, error) {
	line = bytes.TrimSpace(args.WithoutBOM(line))
	if err := args.CheckJSON(line); err != nil {
		return nil, err
	}
	if line[0] != '{' {
		return nil, errors.New("not a JSON object")
	}
	m := &Message{}
	for name, value := range members(line) {
		var part *json.RawMessage
		switch name {
		case "id":
			part = &m.ID
		case "method":
			part = &m.Method
		case "params":
			part = &m.Params
		case "result":
			part = &m.Result
		case "error":
			part = &m.Error
		default:
			continue
		}
		if *part != nil {
			return nil, fmt.Errorf("more than one %q", name)
		}
		*part = value
	}
	if string(m.Method) == "null" {
		m.Method = nil
	}
	return m, nil
}

// AppendRequest appends a request with its newline. The id comes first, so that a
// program that quotes a request which it could not read quotes the id.
func AppendRequest(dst []byte, id uint64, method string, params []byte) []byte {
	dst = strconv.AppendUint(append(dst, `{"jsonrpc":"2.0","id":`...), id, 10)
	dst = args.AppendString(append(dst, `,"method":`...), []byte(method))
	dst = append(append(dst, `,"params":`...), params...)
	return append(dst, "}\n"...)
}

// AppendProgress appends a notification of the progress of the request with an id.
func AppendProgress(dst, id []byte, done, total uint64, text string) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","method":"$/progress","params":{"id":`...), id...)
	dst = strconv.AppendUint(append(dst, `,"done":`...), done, 10)
	dst = strconv.AppendUint(append(dst, `,"total":`...), total, 10)
	return append(args.AppendString(append(dst, `,"text":`...), []byte(text)), "}}"...)
}

// AppendCancel appends the notification that the answer to a request is not needed
// any more.
func AppendCancel(dst []byte, id uint64) []byte {
	return fmt.Appendf(dst, `{"jsonrpc":"2.0","method":"%s","params":{"id":%d}}`+"\n", cancelMethod, id)
}

// The functions below take valid JSON.

func isNumber(doc []byte) bool { return doc[0] == '-' || doc[0] >= '0' && doc[0] <= '9' }

func unquote(doc []byte) string {
	if bytes.IndexByte(doc, '\\') < 0 {
		return string(doc[1 : len(doc)-1])
	}
	var s string
	json.Unmarshal(doc, &s) // it is valid
	return s
}

// elements returns the first values of a JSON array.
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

// members yields the names and values of a JSON object, in their order.
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

// valueLen returns the length of the first value in p.
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
