package args

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// Encoding is how arguments are written for a program.
type Encoding int

// The encodings.
const (
	EncodeJSON    Encoding = iota // one document and a newline
	EncodeMsgpack                 // one value
	EncodeLines                   // each argument and a newline
	EncodeNUL                     // each argument and a NUL byte
)

var encodings = [...]string{EncodeJSON: "json", EncodeMsgpack: "msgpack", EncodeLines: "lines", EncodeNUL: "nul"}

// ParseEncoding returns the encoding of a name.
func ParseEncoding(s string) (Encoding, error) {
	for i, name := range encodings {
		if name == s {
			return Encoding(i), nil
		}
	}
	return 0, fmt.Errorf("unknown encoding %q (known: json, msgpack, lines, nul)", s)
}

func (e Encoding) String() string { return encodings[e] }

// Encode writes the arguments. Those that the encoding cannot express are refused
// with [CodeBadInput].
func (v *Values) Encode(e Encoding) ([]byte, error) {
	switch e {
	case EncodeMsgpack:
		return v.msgpack()
	case EncodeLines:
		return v.text('\n')
	case EncodeNUL:
		return v.text(0)
	}
	return v.json()
}

// json writes one document and a newline, numbers as the caller wrote them.
func (v *Values) json() ([]byte, error) {
	if v.Kind == KindJSON {
		doc := bytes.TrimSuffix(v.Doc, []byte("\n"))
		return append(doc[:len(doc):len(doc)], '\n'), nil
	}
	brackets := "[]"
	if v.Kind == KindMap {
		brackets = "{}"
	}
	out := []byte{brackets[0]}
	for i, value := range v.List {
		if i > 0 {
			out = append(out, ',')
		}
		if v.Kind == KindMap {
			if !utf8.ValidString(v.Keys[i]) {
				return nil, BadInput("field %q is not UTF-8, which JSON needs", v.Keys[i])
			}
			out = append(AppendString(out, []byte(v.Keys[i])), ':')
		}
		switch {
		case value.JSON:
			out = append(out, value.Text...)
		case utf8.Valid(value.Text):
			out = AppendString(out, value.Text)
		default:
			return nil, BadInput("%s is not UTF-8, which JSON needs", v.Name(i))
		}
	}
	return append(out, brackets[1], '\n'), nil
}

// text writes each argument and end, a newline or a NUL. An argument that holds end
// itself would be ambiguous, and is refused.
func (v *Values) text(end byte) ([]byte, error) {
	flat, err := v.Flat()
	if err != nil {
		return nil, err
	}
	var out []byte
	for i, value := range flat.List {
		if value.Nested() {
			return nil, BadInput("%s is an array or an object, which cannot be a line of text", flat.Name(i))
		}
		word, err := flat.Word(i)
		if err != nil {
			return nil, err
		}
		if bytes.IndexByte(word, end) >= 0 {
			what := "a newline"
			if end == 0 {
				what = "a NUL byte"
			}
			return nil, BadInput("%s holds %s, which ends an argument here", flat.Name(i), what)
		}
		out = append(append(out, word...), end)
	}
	return out, nil
}

// msgpack writes one value. JSON numbers become integers if they are, otherwise
// floats. It is our own because the library's encoder fills tables of types at every
// start of fbus.
func (v *Values) msgpack() ([]byte, error) {
	if v.Kind == KindJSON {
		return appendDocument(nil, v.Doc)
	}
	var out []byte
	if v.Kind == KindMap {
		out = AppendMapHeader(out, len(v.List))
	} else {
		out = appendArrayHeader(out, len(v.List))
	}
	for i, value := range v.List {
		if v.Kind == KindMap {
			out = appendText(out, []byte(v.Keys[i]))
		}
		if !value.JSON {
			out = appendText(out, value.Text)
			continue
		}
		var err error
		if out, err = appendDocument(out, value.Text); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// appendText writes UTF-8 as str and other bytes as bin: a str that is not UTF-8
// breaks most decoders.
func appendText(out, s []byte) []byte {
	if !utf8.Valid(s) {
		return AppendBin(out, s)
	}
	return append(AppendStrHeader(out, len(s)), s...)
}

// appendDocument converts a JSON document. It reads the document twice, since in
// msgpack the length of a container comes before its elements.
func appendDocument(out, doc []byte) ([]byte, error) {
	if Unpaired(doc) {
		return nil, errUnpaired
	}
	counts, err := containerLengths(doc)
	if err != nil {
		return nil, err
	}
	err = tokens(doc, func(t json.Token) error {
		switch t := t.(type) {
		case json.Delim:
			switch t {
			case '{':
				out = AppendMapHeader(out, counts[0]/2)
				counts = counts[1:]
			case '[':
				out = appendArrayHeader(out, counts[0])
				counts = counts[1:]
			}
		case json.Number:
			var err error
			out, err = appendNumber(out, string(t))
			return err
		case string:
			out = appendText(out, []byte(t))
		case bool:
			code := msgpcode.False
			if t {
				code = msgpcode.True
			}
			out = append(out, code)
		default:
			out = append(out, msgpcode.Nil)
		}
		return nil
	})
	return out, err
}

// containerLengths counts the tokens directly in each array and object, in
// the order in which those begin; an object's fields count twice.
func containerLengths(doc []byte) ([]int, error) {
	var counts, open []int
	err := tokens(doc, func(t json.Token) error {
		d, isDelim := t.(json.Delim)
		if isDelim && (d == ']' || d == '}') {
			open = open[:len(open)-1]
			return nil
		}
		if len(open) > 0 {
			counts[open[len(open)-1]]++
		}
		if isDelim {
			open = append(open, len(counts))
			counts = append(counts, 0)
		}
		return nil
	})
	return counts, err
}

// tokens calls f for each token of a valid document.
func tokens(doc []byte, f func(json.Token) error) error {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	for {
		t, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return BadInput("%v", err)
		}
		if err := f(t); err != nil {
			return err
		}
	}
}

func appendNumber(out []byte, s string) ([]byte, error) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return AppendUint(out, n), nil
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		switch {
		case n >= 0: // -0
			return AppendUint(out, uint64(n)), nil
		case n >= -32:
			return append(out, byte(n)), nil // its own code
		case n >= math.MinInt8:
			return append(out, msgpcode.Int8, byte(n)), nil
		case n >= math.MinInt16:
			return binary.BigEndian.AppendUint16(append(out, msgpcode.Int16), uint16(n)), nil
		case n >= math.MinInt32:
			return binary.BigEndian.AppendUint32(append(out, msgpcode.Int32), uint32(n)), nil
		}
		return binary.BigEndian.AppendUint64(append(out, msgpcode.Int64), uint64(n)), nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) {
		return nil, BadInput("the number %s does not fit msgpack", Abbreviate(s))
	}
	return binary.BigEndian.AppendUint64(append(out, msgpcode.Double), math.Float64bits(f)), nil
}

// AppendString writes s, valid UTF-8, as a JSON string with no more escapes
// than JSON needs.
func AppendString(out, s []byte) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c == '\n':
			out = append(out, '\\', 'n')
		case c == '\t':
			out = append(out, '\\', 't')
		case c == '\r':
			out = append(out, '\\', 'r')
		case c < 0x20:
			out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}

// Unpaired reports whether a string in a valid JSON document holds an escape for
// half of a surrogate pair. Such a document can be passed on, but the string cannot
// be converted to text.
func Unpaired(doc []byte) bool {
	for {
		i := bytes.IndexByte(doc, '\\')
		if i < 0 {
			return false
		}
		half := escaped(doc[i:])
		switch {
		case half < 0: // another escape, of which the second byte may be a backslash
			doc = doc[i+2:]
		case !utf16.IsSurrogate(half):
			doc = doc[i+6:]
		case utf16.DecodeRune(half, escaped(doc[i+6:])) == utf8.RuneError:
			return true
		default:
			doc = doc[i+12:]
		}
	}
}

var errUnpaired = BadInput("a string holds half of a surrogate pair, which is not text")

// escaped returns the character of the \uXXXX that valid JSON begins with, -1 if it
// begins otherwise.
func escaped(doc []byte) rune {
	if !bytes.HasPrefix(doc, []byte(`\u`)) {
		return -1
	}
	n, _ := strconv.ParseUint(string(doc[2:6]), 16, 32) // it is valid
	return rune(n)
}
