package bus

import (
	"encoding/binary"
	"encoding/json"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// Args are the arguments of a call, ready for the wire (PROTOCOL.md, section 6).
// The zero Args are none: the input is all the function gets.
type Args struct {
	kind Kind
	data []byte
}

// Kind says what the arguments are.
func (a Args) Kind() Kind { return a.kind }

// Len is how many bytes the arguments take; more than [MaxArgs] are refused.
func (a Args) Len() int { return len(a.data) }

// Data are the arguments as they stand on the wire.
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
// as it stands, digit for digit.
type Field struct {
	Name  string
	Value string
	JSON  bool // Value is a JSON document
}

// Fields makes named arguments, in the order given.
func Fields(fields ...Field) Args {
	a := Args{kind: KindMap}
	a.data = appendMapHeader(nil, len(fields))
	for _, f := range fields {
		a.data = appendStr(a.data, f.Name)
		if f.JSON {
			a.data = appendBin(a.data, []byte(f.Value))
		} else {
			a.data = appendStr(a.data, f.Value)
		}
	}
	return a
}

// JSON makes arguments of one JSON document, which is passed on as it stands.
// It panics if doc is not JSON: check what comes from elsewhere with
// [json.Valid].
func JSON(doc []byte) Args {
	if !json.Valid(doc) {
		panic("bus.JSON: not a JSON document")
	}
	return Args{kind: KindJSON, data: doc}
}

// RawArgs makes arguments of what a CALL has brought, or will bring: Args of an
// [Invocation], and its Kind.
func RawArgs(kind Kind, data []byte) Args { return Args{kind: kind, data: data} }

// appendStr appends a str of any length.
func appendStr(dst []byte, s string) []byte {
	return append(appendStrHeader(dst, len(s)), s...)
}

func appendArrayHeader(dst []byte, n int) []byte {
	switch {
	case n < 16:
		return append(dst, msgpcode.FixedArrayLow|byte(n))
	case n < 1<<16:
		return append(dst, msgpcode.Array16, byte(n>>8), byte(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, msgpcode.Array32), uint32(n))
}

func appendMapHeader(dst []byte, n int) []byte {
	switch {
	case n < 16:
		return append(dst, msgpcode.FixedMapLow|byte(n))
	case n < 1<<16:
		return append(dst, msgpcode.Map16, byte(n>>8), byte(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, msgpcode.Map32), uint32(n))
}

// Words returns the arguments of an invocation as strings: those of a list, of
// a JSON array of strings, or none. It is for handlers that take only words;
// others decode Args by PROTOCOL.md, section 6.
func (inv *Invocation) Words() ([]string, error) {
	switch inv.Kind {
	case KindRaw:
		return nil, nil
	case KindList:
		return words(inv.Args)
	case KindJSON:
		var list []string
		if err := json.Unmarshal(inv.Args, &list); err != nil {
			return nil, errorf(CodeBadInput, "an array of strings is due")
		}
		return list, nil
	}
	return nil, errorf(CodeBadInput, "fields are not taken: give words")
}

func words(data []byte) ([]string, error) {
	r := reader{b: data}
	r.left = r.arrayLen()
	var list []string
	for r.err == nil && r.left > 0 {
		list = append(list, string(r.bytes(len(data))))
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes after the last element", len(r.b))
	}
	return list, r.err
}
