package exec

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// value is one argument: a string of any bytes, or a JSON document as the
// caller wrote it.
type value struct {
	text []byte
	json bool
}

// arguments is what a call brought beside its input.
type arguments struct {
	kind   Kind
	keys   []string // KindMap, in the caller's order
	values []value  // KindList and KindMap
	doc    []byte   // KindJSON
}

// maxDepth of what other clients nest in their arguments.
const maxNesting = 16

// decodeArguments reads a peer's bytes. Nothing is allocated on the word of a
// length: each is checked against the bytes that are left.
func decodeArguments(kind Kind, buf []byte) (arguments, error) {
	a := arguments{kind: kind}
	d := decoder{buf: buf}
	switch kind {
	case KindRaw:
		return a, nil
	case KindJSON:
		a.doc = buf
		return a, checkJSON(buf)
	case KindList, KindMap:
	default:
		return a, badInput("arguments of unknown kind %d", kind)
	}
	n, isMap, ok := d.container()
	if !ok || isMap != (kind == KindMap) {
		return a, d.fault("not an array or a map as announced")
	}
	var seen map[string]bool
	if isMap {
		seen = make(map[string]bool)
	}
	for range n {
		if isMap {
			key, err := d.key()
			if err != nil {
				return a, err
			}
			if seen[key] {
				return a, badInput("field %q is given twice", key)
			}
			seen[key] = true
			a.keys = append(a.keys, key)
		}
		v, err := d.value()
		if err != nil {
			return a, err
		}
		a.values = append(a.values, v)
	}
	if len(d.buf) > 0 {
		return a, d.fault("%d bytes follow them", len(d.buf))
	}
	return a, nil
}

func checkJSON(doc []byte) error {
	if !utf8.Valid(doc) {
		return badInput("the JSON document is not UTF-8")
	}
	if !json.Valid(doc) {
		return badInput("not a JSON document: %s", abbreviate(doc))
	}
	return nil
}

// abbreviate quotes the beginning of what was refused.
func abbreviate(b []byte) string {
	const most = 40
	if len(b) <= most {
		return strconv.Quote(string(b))
	}
	return strconv.Quote(string(b[:most])) + "…"
}

// decoder reads msgpack from what is left in buf.
type decoder struct {
	buf []byte
}

func (d *decoder) fault(format string, args ...any) error {
	return badInput("malformed arguments: "+format, args...)
}

func (d *decoder) short() error { return d.fault("they end early") }

func (d *decoder) take(n uint64) ([]byte, bool) {
	if n > uint64(len(d.buf)) {
		return nil, false
	}
	b := d.buf[:n:n]
	d.buf = d.buf[n:]
	return b, true
}

// number reads a big-endian number of 1, 2, 4 or 8 bytes.
func (d *decoder) number(size uint64) (uint64, bool) {
	b, ok := d.take(size)
	if !ok {
		return 0, false
	}
	var full [8]byte
	copy(full[8-size:], b)
	return binary.BigEndian.Uint64(full[:]), true
}

// container reads the head of an array or a map. Every element takes at least
// one byte, so a count that exceeds what is left is a lie.
func (d *decoder) container() (n uint64, isMap, ok bool) {
	c, ok := d.number(1)
	if !ok {
		return 0, false, false
	}
	code := byte(c)
	switch {
	case msgpcode.IsFixedArray(code):
		n = uint64(code & msgpcode.FixedArrayMask)
	case msgpcode.IsFixedMap(code):
		n, isMap = uint64(code&msgpcode.FixedMapMask), true
	case code == msgpcode.Array16, code == msgpcode.Map16:
		n, ok = d.number(2)
		isMap = code == msgpcode.Map16
	case code == msgpcode.Array32, code == msgpcode.Map32:
		n, ok = d.number(4)
		isMap = code == msgpcode.Map32
	default:
		return 0, false, false
	}
	need := n
	if isMap {
		need *= 2
	}
	return n, isMap, ok && need <= uint64(len(d.buf))
}

func isContainer(c byte) bool {
	return msgpcode.IsFixedArray(c) || msgpcode.IsFixedMap(c) ||
		c == msgpcode.Array16 || c == msgpcode.Array32 || c == msgpcode.Map16 || c == msgpcode.Map32
}

// str reads a str or bin; ok is false, and nothing read, if it is neither.
func (d *decoder) str() (b []byte, bin, ok bool, err error) {
	if len(d.buf) == 0 {
		return nil, false, false, d.short()
	}
	c := d.buf[0]
	var size uint64
	switch {
	case msgpcode.IsFixedString(c):
		d.buf = d.buf[1:]
		b, ok = d.take(uint64(c & msgpcode.FixedStrMask))
		return b, false, ok, d.unless(ok)
	case c == msgpcode.Str8, c == msgpcode.Bin8:
		size = 1
	case c == msgpcode.Str16, c == msgpcode.Bin16:
		size = 2
	case c == msgpcode.Str32, c == msgpcode.Bin32:
		size = 4
	default:
		return nil, false, false, nil
	}
	d.buf = d.buf[1:]
	n, ok := d.number(size)
	if ok {
		b, ok = d.take(n)
	}
	return b, c == msgpcode.Bin8 || c == msgpcode.Bin16 || c == msgpcode.Bin32, ok, d.unless(ok)
}

func (d *decoder) unless(ok bool) error {
	if ok {
		return nil
	}
	return d.short()
}

func (d *decoder) key() (string, error) {
	b, bin, ok, err := d.str()
	if err == nil && (!ok || bin) {
		err = d.fault("a field's name is not a string")
	}
	return string(b), err
}

// value reads one argument. What our own clients do not send becomes the JSON
// that it means.
func (d *decoder) value() (value, error) {
	b, bin, ok, err := d.str()
	switch {
	case err != nil:
		return value{}, err
	case ok && !bin:
		return value{text: b}, nil
	case ok:
		return value{text: b, json: true}, checkJSON(b)
	}
	doc, err := d.appendJSON(nil, 1)
	return value{text: doc, json: true}, err
}

// appendJSON converts the next element, whatever it is.
func (d *decoder) appendJSON(out []byte, depth int) ([]byte, error) {
	if depth > maxNesting {
		return nil, d.fault("nested deeper than %d", maxNesting)
	}
	b, bin, ok, err := d.str()
	switch {
	case err != nil:
		return nil, err
	case ok && bin:
		return append(out, b...), checkJSON(b)
	case ok && !utf8.Valid(b):
		return nil, badInput("%s is not UTF-8, and cannot stand in a JSON document", abbreviate(b))
	case ok:
		return appendString(out, b), nil
	}
	if isContainer(d.buf[0]) {
		return d.appendContainer(out, depth)
	}
	return d.appendScalar(out)
}

func (d *decoder) appendContainer(out []byte, depth int) ([]byte, error) {
	n, isMap, ok := d.container()
	if !ok {
		return nil, d.short()
	}
	brackets := "[]"
	if isMap {
		brackets = "{}"
	}
	out = append(out, brackets[0])
	for i := range n {
		if i > 0 {
			out = append(out, ',')
		}
		if isMap {
			key, err := d.key()
			if err != nil {
				return nil, err
			}
			if !utf8.ValidString(key) {
				return nil, badInput("field %q is not UTF-8", key)
			}
			out = append(appendString(out, []byte(key)), ':')
		}
		var err error
		if out, err = d.appendJSON(out, depth+1); err != nil {
			return nil, err
		}
	}
	return append(out, brackets[1]), nil
}

func (d *decoder) appendScalar(out []byte) ([]byte, error) {
	c := d.buf[0]
	d.buf = d.buf[1:]
	switch {
	case c == msgpcode.Nil:
		return append(out, "null"...), nil
	case c == msgpcode.False:
		return append(out, "false"...), nil
	case c == msgpcode.True:
		return append(out, "true"...), nil
	case msgpcode.IsFixedNum(c):
		return strconv.AppendInt(out, int64(int8(c)), 10), nil
	case c >= msgpcode.Uint8 && c <= msgpcode.Uint64:
		n, ok := d.number(1 << (c - msgpcode.Uint8))
		return strconv.AppendUint(out, n, 10), d.unless(ok)
	case c >= msgpcode.Int8 && c <= msgpcode.Int64:
		bytes := uint64(1) << (c - msgpcode.Int8)
		n, ok := d.number(bytes)
		shift := 64 - 8*bytes // sign-extends
		return strconv.AppendInt(out, int64(n<<shift)>>shift, 10), d.unless(ok)
	case c == msgpcode.Float:
		n, ok := d.number(4)
		return d.appendFloat(out, float64(math.Float32frombits(uint32(n))), 32, ok)
	case c == msgpcode.Double:
		n, ok := d.number(8)
		return d.appendFloat(out, math.Float64frombits(n), 64, ok)
	}
	return nil, d.fault("type 0x%02x has no meaning here", c)
}

func (d *decoder) appendFloat(out []byte, f float64, bits int, ok bool) ([]byte, error) {
	if !ok {
		return nil, d.short()
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, badInput("the number %v cannot be written as JSON", f)
	}
	return strconv.AppendFloat(out, f, 'g', -1, bits), nil
}
