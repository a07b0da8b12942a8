package exec

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// msgpacker writes msgpack, each value in its shortest form. It is our own
// because the library's encoder fills tables of types at every start of fbus.
type msgpacker struct{ buf []byte }

// encodeMsgpack writes the arguments as one value. JSON numbers become
// integers where they are, else floats.
func encodeMsgpack(a *arguments) ([]byte, error) {
	var m msgpacker
	if a.kind == KindJSON {
		err := m.document(a.doc)
		return m.buf, err
	}
	if a.kind == KindMap {
		m.header(mapHeader, len(a.values))
	} else {
		m.header(arrayHeader, len(a.values))
	}
	for i, v := range a.values {
		if a.kind == KindMap {
			m.string([]byte(a.keys[i]))
		}
		if !v.json {
			m.string(v.text)
			continue
		}
		if err := m.document(v.text); err != nil {
			return nil, err
		}
	}
	return m.buf, nil
}

// A header says what follows and how long it is: in one byte that begins with
// fixed if that is at most most, or behind one of three codes.
type header struct {
	fixed                 byte
	most                  int
	code8, code16, code32 byte // code8 is 0 where there is none
}

var (
	mapHeader    = header{msgpcode.FixedMapLow, 15, 0, msgpcode.Map16, msgpcode.Map32}
	arrayHeader  = header{msgpcode.FixedArrayLow, 15, 0, msgpcode.Array16, msgpcode.Array32}
	stringHeader = header{msgpcode.FixedStrLow, 31, msgpcode.Str8, msgpcode.Str16, msgpcode.Str32}
	binHeader    = header{0, -1, msgpcode.Bin8, msgpcode.Bin16, msgpcode.Bin32}
)

func (m *msgpacker) header(h header, n int) {
	switch {
	case n <= h.most:
		m.buf = append(m.buf, h.fixed|byte(n))
	case n <= math.MaxUint8 && h.code8 != 0:
		m.buf = append(m.buf, h.code8, byte(n))
	case n <= math.MaxUint16:
		m.buf = binary.BigEndian.AppendUint16(append(m.buf, h.code16), uint16(n))
	default: // arguments are far below 4 GiB
		m.buf = binary.BigEndian.AppendUint32(append(m.buf, h.code32), uint32(n))
	}
}

// string writes text as str, and what is no text as bin: a str that is not
// UTF-8 breaks most decoders.
func (m *msgpacker) string(s []byte) {
	h := stringHeader
	if !utf8.Valid(s) {
		h = binHeader
	}
	m.header(h, len(s))
	m.buf = append(m.buf, s...)
}

// document converts a JSON document. It is read twice, since msgpack wants to
// know how long a container is before what is in it.
func (m *msgpacker) document(doc []byte) error {
	if Unpaired(doc) {
		return errUnpaired
	}
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
				m.header(mapHeader, n/2)
			} else {
				m.header(arrayHeader, n)
			}
		case json.Number:
			return m.number(string(t))
		case string:
			m.string([]byte(t))
		case bool:
			code := msgpcode.False
			if t {
				code = msgpcode.True
			}
			m.buf = append(m.buf, code)
		default:
			m.buf = append(m.buf, msgpcode.Nil)
		}
		return nil
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

func (m *msgpacker) number(s string) error {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		if n < 0 {
			m.negative(n)
		} else {
			m.natural(uint64(n))
		}
		return nil
	}
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		m.natural(n)
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) {
		return badInput("the number %s does not fit msgpack", abbreviate([]byte(s)))
	}
	m.buf = binary.BigEndian.AppendUint64(append(m.buf, msgpcode.Double), math.Float64bits(f))
	return nil
}

func (m *msgpacker) natural(n uint64) {
	switch {
	case n <= uint64(msgpcode.PosFixedNumHigh):
		m.buf = append(m.buf, byte(n))
	case n <= math.MaxUint8:
		m.buf = append(m.buf, msgpcode.Uint8, byte(n))
	case n <= math.MaxUint16:
		m.buf = binary.BigEndian.AppendUint16(append(m.buf, msgpcode.Uint16), uint16(n))
	case n <= math.MaxUint32:
		m.buf = binary.BigEndian.AppendUint32(append(m.buf, msgpcode.Uint32), uint32(n))
	default:
		m.buf = binary.BigEndian.AppendUint64(append(m.buf, msgpcode.Uint64), n)
	}
}

func (m *msgpacker) negative(n int64) {
	switch {
	case n >= -32:
		m.buf = append(m.buf, byte(n)) // its own code
	case n >= math.MinInt8:
		m.buf = append(m.buf, msgpcode.Int8, byte(n))
	case n >= math.MinInt16:
		m.buf = binary.BigEndian.AppendUint16(append(m.buf, msgpcode.Int16), uint16(n))
	case n >= math.MinInt32:
		m.buf = binary.BigEndian.AppendUint32(append(m.buf, msgpcode.Int32), uint32(n))
	default:
		m.buf = binary.BigEndian.AppendUint64(append(m.buf, msgpcode.Int64), uint64(n))
	}
}
