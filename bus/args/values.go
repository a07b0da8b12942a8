package args

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// Values are a call's arguments, decoded.
type Values struct {
	Kind Kind
	Keys []string // KindMap, in the caller's order
	List []Value  // KindList and KindMap
	Doc  []byte   // KindJSON
}

// Value is one argument: text of any bytes, or a JSON document as the caller
// wrote it.
type Value struct {
	Text []byte
	JSON bool
}

// Nested reports whether v is an array or an object.
func (v Value) Nested() bool { return v.JSON && (v.Text[0] == '[' || v.Text[0] == '{') }

// BadInput returns an error with [CodeBadInput].
func BadInput(format string, a ...any) *Error { return Errorf(CodeBadInput, format, a...) }

// Decode reads a call's arguments from the wire (PROTOCOL.md, section 6). It
// aliases data, and allocates nothing by a length that data claims. What our own
// clients do not send, such as msgpack numbers, becomes the JSON that it means.
func Decode(kind Kind, data []byte) (*Values, error) {
	v := &Values{Kind: kind}
	switch kind {
	case KindRaw:
		return v, nil
	case KindJSON:
		v.Doc = WithoutBOM(data)
		return v, checkJSON(v.Doc)
	case KindList, KindMap:
	default:
		return nil, BadInput("arguments of unknown kind %d", kind)
	}
	r := Reader{B: data}
	n, isMap, ok := r.container(r.code())
	if !ok || isMap != (kind == KindMap) {
		r.Fail("not an array or a map as announced")
	}
	var seen map[string]bool
	if isMap {
		seen = make(map[string]bool)
	}
	for ; n > 0 && r.Err == nil; n-- {
		if isMap {
			key := r.key()
			if seen[key] {
				r.refuse("field %q is given twice", key)
			}
			seen[key] = true
			v.Keys = append(v.Keys, key)
		}
		v.List = append(v.List, r.value())
	}
	if r.Err == nil && len(r.B) > 0 {
		r.Fail("%d bytes follow them", len(r.B))
	}
	if _, ours := r.Err.(*Error); r.Err != nil && !ours {
		return nil, BadInput("malformed arguments: %s", strings.TrimPrefix(r.Err.Error(), ErrMalformed.Error()+": "))
	}
	return v, r.Err
}

// refuse is Fail for arguments that are well-formed and still cannot be taken.
func (r *Reader) refuse(format string, a ...any) {
	if r.Err == nil {
		r.Err = BadInput(format, a...)
	}
	r.B = nil
}

// text reads a str or bin. If the next element is neither, ok is false and nothing
// was read.
func (r *Reader) text() (b []byte, bin, ok bool) {
	if len(r.B) == 0 {
		r.Fail("ends early")
		return nil, false, false
	}
	c, rest := r.B[0], r.B
	r.B = r.B[1:]
	n, ok := r.bytesLen(c)
	if !ok {
		if r.Err == nil {
			r.B = rest
		}
		return nil, false, false
	}
	b = r.take(n)
	return b, c >= msgpcode.Bin8 && c <= msgpcode.Bin32, r.Err == nil
}

func (r *Reader) key() string {
	b, bin, ok := r.text()
	if !ok || bin {
		r.Fail("a field's name is not a string")
	}
	return string(b)
}

func (r *Reader) value() Value {
	b, bin, ok := r.text()
	if ok {
		if bin {
			b = r.document(b)
		}
		return Value{Text: b, JSON: bin}
	}
	return Value{Text: r.appendJSON(nil, 1), JSON: true}
}

// appendJSON converts the next element, whatever it is.
func (r *Reader) appendJSON(out []byte, depth int) []byte {
	b, bin, ok := r.text()
	switch {
	case r.Err != nil:
		return nil
	case depth > MaxDepth:
		r.Fail("nested deeper than %d", MaxDepth)
		return nil
	case ok && bin:
		return append(out, r.document(b)...)
	case ok && !utf8.Valid(b):
		r.refuse("%s is not UTF-8, and cannot be part of a JSON document", Abbreviate(b))
		return nil
	case ok:
		return AppendString(out, b)
	}
	c := r.code()
	n, isMap, ok := r.container(c)
	if !ok {
		return r.appendScalar(out, c)
	}
	brackets := "[]"
	if isMap {
		brackets = "{}"
	}
	out = append(out, brackets[0])
	for i := range n {
		if r.Err != nil {
			return nil
		}
		if i > 0 {
			out = append(out, ',')
		}
		if isMap {
			key := r.key()
			if !utf8.ValidString(key) {
				r.refuse("field %q is not UTF-8", key)
			}
			out = append(AppendString(out, []byte(key)), ':')
		}
		out = r.appendJSON(out, depth+1)
	}
	return append(out, brackets[1])
}

func (r *Reader) appendScalar(out []byte, c byte) []byte {
	switch {
	case c == msgpcode.Nil:
		return append(out, "null"...)
	case c == msgpcode.False:
		return append(out, "false"...)
	case c == msgpcode.True:
		return append(out, "true"...)
	case msgpcode.IsFixedNum(c):
		return strconv.AppendInt(out, int64(int8(c)), 10)
	case c >= msgpcode.Uint8 && c <= msgpcode.Uint64:
		return strconv.AppendUint(out, r.size(1<<(c-msgpcode.Uint8)), 10)
	case c >= msgpcode.Int8 && c <= msgpcode.Int64:
		w := uint64(1) << (c - msgpcode.Int8)
		shift := 64 - 8*w // sign-extends
		return strconv.AppendInt(out, int64(r.size(w)<<shift)>>shift, 10)
	case c == msgpcode.Float:
		return r.appendFloat(out, float64(math.Float32frombits(uint32(r.size(4)))), 32)
	case c == msgpcode.Double:
		return r.appendFloat(out, math.Float64frombits(r.size(8)), 64)
	}
	r.Fail("type 0x%02x has no meaning here", c)
	return nil
}

func (r *Reader) appendFloat(out []byte, f float64, bits int) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		r.refuse("the number %v cannot be written as JSON", f)
		return nil
	}
	return strconv.AppendFloat(out, f, 'g', -1, bits)
}

// document returns a JSON document that travels as a bin. It must be valid.
func (r *Reader) document(b []byte) []byte {
	b = WithoutBOM(b)
	if r.Err == nil {
		r.Err = checkJSON(b)
	}
	return b
}

func checkJSON(doc []byte) error {
	if err := CheckJSON(doc); err != nil {
		return BadInput("%v", err)
	}
	return nil
}

// Abbreviate quotes the beginning of an argument, for messages.
func Abbreviate[T string | []byte](text T) string { return AbbreviateTo(text, 40) }

// AbbreviateTo quotes foreign text, of a longer one that many bytes, for messages.
func AbbreviateTo[T string | []byte](text T, most int) string {
	if len(text) <= most {
		return strconv.Quote(string(text))
	}
	return strconv.Quote(string(text[:most])) + "…"
}

// Name names argument i in messages.
func (v *Values) Name(i int) string {
	if v.Kind == KindMap {
		return "field " + Abbreviate(v.Keys[i])
	}
	return "argument " + strconv.Itoa(i+1)
}

// Word returns argument i as text, a field as key=value.
func (v *Values) Word(i int) ([]byte, error) {
	if v.Kind != KindMap {
		return v.List[i].Text, nil
	}
	key := v.Keys[i]
	if strings.Contains(key, "=") {
		return nil, BadInput("field %q holds =, which ends a field's name here", key)
	}
	return append([]byte(key+"="), v.List[i].Text...), nil
}

// Field returns the value of a field.
func (v *Values) Field(key string) (value Value, ok bool) {
	i := slices.Index(v.Keys, key)
	if i < 0 {
		return value, false
	}
	return v.List[i], true
}

// Flat returns the arguments as a list or a map whose values are words: every
// document is flattened one level.
func (v *Values) Flat() (*Values, error) {
	switch v.Kind {
	case KindRaw:
		return &Values{Kind: KindList}, nil
	case KindJSON:
		return flatten(v.Doc)
	}
	out := &Values{Kind: v.Kind, Keys: v.Keys, List: slices.Clone(v.List)}
	for i, value := range out.List {
		if value.JSON {
			var err error
			if out.List[i], err = plain(value.Text); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// flatten makes a list or a map of a document: an array's elements, an object's
// fields in their order, or a single value.
func flatten(doc []byte) (*Values, error) {
	doc = bytes.TrimSpace(doc)
	v := &Values{Kind: KindList}
	switch doc[0] { // valid JSON is not empty
	case '[':
	case '{':
		v.Kind = KindMap
	default:
		value, err := plain(doc)
		v.List = []Value{value}
		return v, err
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	if _, err := dec.Token(); err != nil {
		return nil, BadInput("%v", err)
	}
	seen := make(map[string]bool)
	for dec.More() {
		if v.Kind == KindMap {
			t, err := dec.Token()
			key, ok := t.(string)
			switch {
			case err != nil || !ok:
				return nil, BadInput("not a JSON object")
			case strings.ContainsRune(key, utf8.RuneError) && Unpaired(doc):
				return nil, errUnpaired
			case seen[key]:
				return nil, BadInput("field %q is given twice", key)
			}
			seen[key] = true
			v.Keys = append(v.Keys, key)
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, BadInput("%v", err)
		}
		value, err := plain(raw)
		if err != nil {
			return nil, err
		}
		v.List = append(v.List, value)
	}
	return v, nil
}

// plain turns a JSON string into its text, and leaves other documents as they are,
// compact if they are nested.
func plain(doc []byte) (Value, error) {
	doc = bytes.TrimSpace(doc)
	switch doc[0] {
	case '"':
		var s string
		if err := json.Unmarshal(doc, &s); err != nil {
			return Value{}, BadInput("%v", err)
		}
		if Unpaired(doc) {
			return Value{}, errUnpaired
		}
		return Value{Text: []byte(s)}, nil
	case '[', '{':
		var out bytes.Buffer
		if err := json.Compact(&out, doc); err != nil {
			return Value{}, BadInput("%v", err)
		}
		return Value{Text: out.Bytes(), JSON: true}, nil
	}
	return Value{Text: doc, JSON: true}, nil
}
