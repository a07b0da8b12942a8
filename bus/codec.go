package bus

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// ErrMalformed is wrapped by every error about a peer's bytes: the connection
// they came on can not be used any further.
var ErrMalformed = errors.New("malformed frame")

// reader takes msgpack elements one by one from one frame. The first error
// sticks and every later read yields zero, so a frame's decode reads like its
// layout. It never allocates by a length that the peer claims.
type reader struct {
	b    []byte
	left int // elements of the frame not read yet
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	r.b, r.left = nil, 0
}

// more reports whether another element is there: optional ones are asked for.
func (r *reader) more() bool { return r.left > 0 }

// take returns the next n bytes.
func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.fail("element of %d bytes with %d left", n, len(r.b))
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

// code takes the next byte; 0xc1, which msgpack never uses, on error.
func (r *reader) code() byte {
	if len(r.b) == 0 {
		r.fail("ends early")
		return 0xc1
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

// size takes a big-endian unsigned integer of n bytes.
func (r *reader) size(n int) uint64 {
	p := r.take(n)
	if p == nil {
		return 0
	}
	switch n {
	case 1:
		return uint64(p[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(p))
	case 4:
		return uint64(binary.BigEndian.Uint32(p))
	}
	return binary.BigEndian.Uint64(p)
}

// uint reads an integer from 0 to max. Signed forms are taken if they are not
// negative: some encoders write them.
func (r *reader) uint(max uint64) uint64 {
	if r.left > 0 && len(r.b) > 0 && uint64(r.b[0]) <= min(max, uint64(msgpcode.PosFixedNumHigh)) {
		n := uint64(r.b[0]) // most are small
		r.b = r.b[1:]
		r.left--
		return n
	}
	return r.longUint(max)
}

func (r *reader) longUint(max uint64) uint64 {
	if r.left == 0 {
		r.fail("element missing")
		return 0
	}
	r.left--
	c := r.code()
	var n uint64
	switch {
	case c <= msgpcode.PosFixedNumHigh:
		n = uint64(c)
	case c >= msgpcode.Uint8 && c <= msgpcode.Uint64:
		n = r.size(1 << (c - msgpcode.Uint8))
	case c >= msgpcode.Int8 && c <= msgpcode.Int64:
		w := 1 << (c - msgpcode.Int8)
		n = r.size(w)
		if r.err == nil && n>>(8*w-1) != 0 {
			r.fail("negative integer")
		}
	default:
		r.fail("element 0x%02x where an integer is due", c)
	}
	if n > max {
		r.fail("integer %d exceeds the limit of %d", n, max)
		return 0
	}
	return n
}

// bytesLen reads the header of a str or bin; ok is false for another element.
func (r *reader) bytesLen(c byte) (n uint64, ok bool) {
	switch {
	case msgpcode.IsFixedString(c):
		return uint64(c & msgpcode.FixedStrMask), true
	case c >= msgpcode.Str8 && c <= msgpcode.Str32:
		return r.size(1 << (c - msgpcode.Str8)), true
	case c >= msgpcode.Bin8 && c <= msgpcode.Bin32:
		return r.size(1 << (c - msgpcode.Bin8)), true
	}
	return 0, false
}

// bytes reads a str or bin of at most max bytes, aliasing the frame.
func (r *reader) bytes(max int) []byte {
	if r.left == 0 {
		r.fail("element missing")
		return nil
	}
	r.left--
	if len(r.b) > 1 && r.b[0] == msgpcode.Bin8 && int(r.b[1]) <= min(max, len(r.b)-2) {
		n := 2 + int(r.b[1]) // the usual small payload
		p := r.b[2:n:n]
		r.b = r.b[n:]
		return p
	}
	c := r.code()
	n, ok := r.bytesLen(c)
	switch {
	case r.err != nil:
		return nil
	case !ok:
		r.fail("element 0x%02x where bytes are due", c)
		return nil
	case n > uint64(max):
		r.fail("element of %d bytes exceeds the limit of %d", n, max)
		return nil
	}
	return r.take(int(n))
}

// arrayLen reads the header of an array, without believing it further than the
// bytes that are left: every element takes at least one.
func (r *reader) arrayLen() int {
	c := r.code()
	var n uint64
	switch {
	case msgpcode.IsFixedArray(c):
		n = uint64(c & msgpcode.FixedArrayMask)
	case c == msgpcode.Array16:
		n = r.size(2)
	case c == msgpcode.Array32:
		n = r.size(4)
	default:
		r.fail("element 0x%02x where an array is due", c)
		return 0
	}
	if n > uint64(len(r.b)) {
		r.fail("array of %d elements in %d bytes", n, len(r.b))
		return 0
	}
	return int(n)
}

// skip passes over what is left of the frame: elements of a newer minor
// version. It works iteratively, so nesting costs a counter and no stack.
func (r *reader) skip() {
	var open [MaxDepth]uint64 // elements due at each depth
	depth := 0
	open[0] = uint64(r.left)
	r.left = 0
	for r.err == nil {
		for depth >= 0 && open[depth] == 0 {
			depth--
		}
		if depth < 0 {
			break
		}
		open[depth]--
		if n := r.skipOne(); n > 0 {
			if depth++; depth == MaxDepth {
				r.fail("nested deeper than %d", MaxDepth)
				return
			}
			open[depth] = n
		}
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes after the last element", len(r.b))
	}
}

// skipOne passes over one element and returns how many it holds.
func (r *reader) skipOne() (inner uint64) {
	c := r.code()
	if n, ok := r.bytesLen(c); ok {
		r.takeLong(n)
		return 0
	}
	switch {
	case msgpcode.IsFixedNum(c), c == msgpcode.Nil, c == msgpcode.False, c == msgpcode.True:
	case msgpcode.IsFixedArray(c):
		return uint64(c & msgpcode.FixedArrayMask)
	case msgpcode.IsFixedMap(c):
		return 2 * uint64(c&msgpcode.FixedMapMask)
	case c == msgpcode.Array16, c == msgpcode.Array32:
		return r.size(2 << (c - msgpcode.Array16))
	case c == msgpcode.Map16, c == msgpcode.Map32:
		return 2 * r.size(2<<(c-msgpcode.Map16))
	case c >= msgpcode.Uint8 && c <= msgpcode.Uint64:
		r.take(1 << (c - msgpcode.Uint8))
	case c >= msgpcode.Int8 && c <= msgpcode.Int64:
		r.take(1 << (c - msgpcode.Int8))
	case c == msgpcode.Float, c == msgpcode.Double:
		r.take(4 << (c - msgpcode.Float))
	case c >= msgpcode.FixExt1 && c <= msgpcode.FixExt16:
		r.take(1 + 1<<(c-msgpcode.FixExt1))
	case c >= msgpcode.Ext8 && c <= msgpcode.Ext32:
		r.takeLong(1 + r.size(1<<(c-msgpcode.Ext8)))
	default:
		r.fail("element 0x%02x is no msgpack", c)
	}
	return 0
}

// takeLong is take for a length that may not fit an int.
func (r *reader) takeLong(n uint64) {
	if n > uint64(len(r.b)) {
		r.fail("element of %d bytes with %d left", n, len(r.b))
		return
	}
	r.take(int(n))
}

// PeekType returns the type of the frame in body, which is a frame without its
// length prefix. Decode reads the rest.
func PeekType(body []byte) (Type, error) {
	r := reader{b: body}
	t := r.start()
	return t, r.err
}

// start reads the array header and the type.
func (r *reader) start() Type {
	r.left = r.arrayLen()
	return Type(r.uint(255))
}

// Decoder decodes frames one after the other. It exists so that decoding does
// not allocate; it is not safe for concurrent use.
type Decoder struct{ r reader }

// Decode reads body, a frame without its length prefix, into f. Elements that
// f does not know are skipped; a wrong type, arity, range or length is an error
// that wraps [ErrMalformed].
func (d *Decoder) Decode(body []byte, f Frame) error {
	r := &d.r
	*r = reader{b: body}
	if t := r.start(); r.err == nil && t != f.frameType() {
		r.fail("type %d where %d is due", t, f.frameType())
	}
	f.decode(r)
	if r.err == nil && (r.left > 0 || len(r.b) > 0) {
		r.skip()
	}
	return r.err
}
