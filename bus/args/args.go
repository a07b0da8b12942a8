// Package args defines what a call carries and how it ends: the kinds of arguments
// and their encodings, the end status, the codes of errors and the error type.
// Packages bus and exec share it.
package args

import (
	"encoding/json"
	"strings"
)

// Args are the arguments of a call, ready for the wire (PROTOCOL.md, section 6).
// The zero Args are none: the input is all the function gets.
type Args struct {
	kind Kind
	data []byte
}

// Kind returns the kind of the arguments.
func (a Args) Kind() Kind { return a.kind }

// Data returns the arguments as the wire carries them; nodes refuse more than a limit.
func (a Args) Data() []byte { return a.data }

// List makes arguments of strings, which may hold any bytes.
func List(words ...string) Args {
	a := Args{kind: KindList}
	a.data = appendArrayHeader(nil, len(words))
	for _, w := range words {
		a.data = appendStr(a.data, w)
	}
	return a
}

// A Field is a named argument: a string, or a JSON document that is passed on
// unchanged, digit for digit.
type Field struct {
	Name  string
	Value string
	JSON  bool // Value is a JSON document
}

// Fields makes named arguments, in the order given.
func Fields(fields ...Field) Args {
	a := Args{kind: KindMap}
	a.data = AppendMapHeader(nil, len(fields))
	for _, f := range fields {
		a.data = appendStr(a.data, f.Name)
		if f.JSON {
			a.data = AppendBin(a.data, []byte(f.Value))
		} else {
			a.data = appendStr(a.data, f.Value)
		}
	}
	return a
}

// JSON makes arguments of one JSON document, which is passed on unchanged. It panics
// if doc is not JSON: check foreign documents with [json.Valid] first.
func JSON(doc []byte) Args {
	if !json.Valid(doc) {
		panic("bus.JSON: not a JSON document")
	}
	return Args{kind: KindJSON, data: doc}
}

// Kind is the form of a call's arguments (PROTOCOL.md, section 6).
type Kind uint8

// Kinds of arguments.
const (
	KindRaw  Kind = 0 // none: the input is all the function gets
	KindList Kind = 1 // a msgpack array of values
	KindMap  Kind = 2 // a msgpack map from strings to values
	KindJSON Kind = 3 // one JSON document, UTF-8
)

// appendStr appends a str of any length.
func appendStr(dst []byte, s string) []byte {
	return append(AppendStrHeader(dst, len(s)), s...)
}

// maxTrace bounds a traceparent and a tracestate, each.
const maxTrace = 512

// Trace returns the trace of a call as the wire has it: the traceparent and, on a second
// line, the tracestate (W3C Trace Context, sections 3.2 and 3.3). It is empty if the
// traceparent is not valid, and without a tracestate that is not.
func Trace(parent, state string) string {
	switch {
	case !validParent(parent):
		return ""
	case state == "" || len(state) > maxTrace || strings.ContainsFunc(state, notPrinted):
		return parent
	}
	return parent + "\n" + state
}

// SplitTrace is the reverse of Trace. A trace that is not valid counts as none.
func SplitTrace(trace string) (parent, state string) {
	parent, state, _ = strings.Cut(trace, "\n")
	parent, state, _ = strings.Cut(Trace(parent, state), "\n")
	return parent, state
}

// validParent reports whether text is a traceparent of version 00, or could be one of a later
// version, which may have more after a dash.
func validParent(text string) bool {
	const least = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if len(text) < least || len(text) > maxTrace || text[:2] == "ff" || strings.ContainsFunc(text, notPrinted) {
		return false
	}
	for i := range least {
		c := text[i]
		if dash := i == 2 || i == 35 || i == 52; dash != (c == '-') || !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	if len(text) > least && (text[:2] == "00" || text[least] != '-') {
		return false
	}
	return strings.Trim(text[3:35], "0") != "" && strings.Trim(text[36:52], "0") != ""
}

func notPrinted(r rune) bool { return (r < ' ' || r > '~') && r != '\t' }
