package exec

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"
)

// encodeMsgpack writes the arguments as one value. JSON numbers become
// integers where they are, else floats.
func encodeMsgpack(a *arguments) ([]byte, error) {
	var buf bytes.Buffer
	enc := msgpack.NewEncoder(&buf)
	if a.kind == KindJSON {
		err := msgpackDocument(enc, a.doc)
		return buf.Bytes(), err
	}
	if a.kind == KindMap {
		enc.EncodeMapLen(len(a.values)) // writes to memory do not fail
	} else {
		enc.EncodeArrayLen(len(a.values))
	}
	for i, v := range a.values {
		if a.kind == KindMap {
			msgpackString(enc, []byte(a.keys[i]))
		}
		if !v.json {
			msgpackString(enc, v.text)
			continue
		}
		if err := msgpackDocument(enc, v.text); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), nil
}

// msgpackString writes text as str, and what is no text as bin: a str that is
// not UTF-8 breaks most decoders.
func msgpackString(enc *msgpack.Encoder, s []byte) {
	if utf8.Valid(s) {
		enc.EncodeString(string(s))
		return
	}
	enc.EncodeBytes(s)
}

// msgpackDocument converts a JSON document. It is read twice, since msgpack
// wants to know how long a container is before what is in it.
func msgpackDocument(enc *msgpack.Encoder, doc []byte) error {
	counts, err := containerLengths(doc)
	if err != nil {
		return err
	}
	return tokens(doc, func(t json.Token) error {
		switch t := t.(type) {
		case json.Delim:
			if t == ']' || t == '}' {
				return nil
			}
			n := counts[0]
			counts = counts[1:]
			if t == '{' {
				return enc.EncodeMapLen(n / 2)
			}
			return enc.EncodeArrayLen(n)
		case json.Number:
			return msgpackNumber(enc, string(t))
		case string:
			return enc.EncodeString(t)
		case bool:
			return enc.EncodeBool(t)
		}
		return enc.EncodeNil()
	})
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

func msgpackNumber(enc *msgpack.Encoder, s string) error {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return enc.EncodeInt(n)
	}
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return enc.EncodeUint(n)
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) {
		return badInput("the number %s does not fit msgpack", abbreviate([]byte(s)))
	}
	return enc.EncodeFloat64(f)
}
