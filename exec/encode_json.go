package exec

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// encodeJSON writes the arguments as one document and a newline, numbers as
// the caller wrote them.
func encodeJSON(a *arguments) ([]byte, error) {
	if a.kind == KindJSON {
		doc := bytes.TrimSuffix(a.doc, []byte("\n"))
		return append(doc[:len(doc):len(doc)], '\n'), nil
	}
	brackets := "[]"
	if a.kind == KindMap {
		brackets = "{}"
	}
	out := []byte{brackets[0]}
	for i, v := range a.values {
		if i > 0 {
			out = append(out, ',')
		}
		if a.kind == KindMap {
			if !utf8.ValidString(a.keys[i]) {
				return nil, badInput("field %q is not UTF-8, which JSON needs", a.keys[i])
			}
			out = append(appendString(out, []byte(a.keys[i])), ':')
		}
		switch {
		case v.json:
			out = append(out, v.text...)
		case utf8.Valid(v.text):
			out = appendString(out, v.text)
		default:
			return nil, badInput("%s is not UTF-8, which JSON needs", a.name(i))
		}
	}
	return append(out, brackets[1], '\n'), nil
}

// name says which argument a message is about.
func (a *arguments) name(i int) string {
	if a.kind == KindMap {
		return "field " + abbreviate([]byte(a.keys[i]))
	}
	return "argument " + itoa(i+1)
}

// appendString writes s, valid UTF-8, as a JSON string with no more escapes
// than JSON asks for.
func appendString(out, s []byte) []byte {
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

// flatten makes a list or a map of a document: an array's elements, an
// object's fields in their order, or a single value. Strings become text, so
// that they reach a command line or a line as what they say.
func flatten(doc []byte) (arguments, error) {
	doc = bytes.TrimSpace(doc)
	dec := json.NewDecoder(bytes.NewReader(doc))
	a := arguments{kind: KindList}
	switch doc[0] { // valid JSON is not empty
	case '[':
	case '{':
		a.kind = KindMap
	default:
		v, err := plain(doc)
		a.values = []value{v}
		return a, err
	}
	if _, err := dec.Token(); err != nil {
		return a, badInput("%v", err)
	}
	seen := make(map[string]bool)
	for dec.More() {
		if a.kind == KindMap {
			t, err := dec.Token()
			key, ok := t.(string)
			if err != nil || !ok {
				return a, badInput("not a JSON object")
			}
			if strings.ContainsRune(key, utf8.RuneError) && Unpaired(doc) {
				return a, errUnpaired
			}
			if seen[key] {
				return a, badInput("field %q is given twice", key)
			}
			seen[key] = true
			a.keys = append(a.keys, key)
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return a, badInput("%v", err)
		}
		v, err := plain(raw)
		if err != nil {
			return a, err
		}
		a.values = append(a.values, v)
	}
	return a, nil
}

// plain turns a JSON string into the text that it stands for, and leaves
// other documents as they are, compact if they are nested.
func plain(doc []byte) (value, error) {
	doc = bytes.TrimSpace(doc)
	switch doc[0] {
	case '"':
		var s string
		if err := json.Unmarshal(doc, &s); err != nil {
			return value{}, badInput("%v", err)
		}
		if Unpaired(doc) {
			return value{}, errUnpaired
		}
		return value{text: []byte(s)}, nil
	case '[', '{':
		var out bytes.Buffer
		if err := json.Compact(&out, doc); err != nil {
			return value{}, badInput("%v", err)
		}
		return value{text: out.Bytes(), json: true}, nil
	}
	return value{text: doc, json: true}, nil
}

// nested says that a value is no scalar.
func (v value) nested() bool {
	return v.json && (v.text[0] == '[' || v.text[0] == '{')
}

// flat is the arguments as words: every document flattened one level.
func (a *arguments) flat() (arguments, error) {
	switch a.kind {
	case KindRaw:
		return arguments{kind: KindList}, nil
	case KindJSON:
		return flatten(a.doc)
	}
	out := arguments{kind: a.kind, keys: a.keys, values: make([]value, len(a.values))}
	for i, v := range a.values {
		if v.json {
			var err error
			if v, err = plain(v.text); err != nil {
				return out, err
			}
		}
		out.values[i] = v
	}
	return out, nil
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
			return badInput("%v", err)
		}
		if err := f(t); err != nil {
			return err
		}
	}
}
