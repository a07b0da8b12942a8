package args

import (
	"encoding/json"
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
