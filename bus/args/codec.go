package args

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// MaxDepth bounds the nesting of elements that are skipped.
const MaxDepth = 16

// ErrMalformed is wrapped by every error about a peer's bytes: their connection
// cannot be used any further.
var ErrMalformed = errors.New("malformed frame")

// ElementError is an error about an element of a frame. It wraps [ErrMalformed].
type ElementError struct {
	Left int    // elements of the frame that follow it; -1: it is about the whole frame
	Text string // what is wrong
	Got  string // what was found in place of an integer or bytes; else empty
}

func (e *ElementError) Error() string { return ErrMalformed.Error() + ": " + e.Text }

func (e *ElementError) Unwrap() error { return ErrMalformed }

// Reader takes msgpack elements one by one from one frame. The first error
// sticks and every later read yields zero, so a frame's decode reads like its
// layout. It never allocates by a length that the peer claims.
type Reader struct {
	B    []byte
	Left int // elements of the frame not read yet
	Err  error
}

// Fail records an error, unless there was one before.
func (r *Reader) Fail(format string, args ...any) {
	r.fail(&ElementError{Text: fmt.Sprintf(format, args...)})
}

func (r *Reader) fail(e *ElementError) {
	if r.Err == nil {
		e.Left = r.Left
		r.Err = e
	}
	r.B, r.Left = nil, 0
}

// wrongType records that an element is not of the expected type. c is its first byte.
func (r *Reader) wrongType(c byte, expected string) {
	got := typeName(c)
	r.fail(&ElementError{Text: got + ", " + expected + " expected", Got: got})
}

// typeName describes an element by its first byte.
func typeName(c byte) string {
	switch {
	case msgpcode.IsFixedNum(c), c >= msgpcode.Uint8 && c <= msgpcode.Int64:
		return "integer"
	case msgpcode.IsFixedString(c), c >= msgpcode.Str8 && c <= msgpcode.Str32:
		return "str"
	case c >= msgpcode.Bin8 && c <= msgpcode.Bin32:
		return "bin"
	case msgpcode.IsFixedArray(c), c == msgpcode.Array16, c == msgpcode.Array32:
		return "array"
	case msgpcode.IsFixedMap(c), c == msgpcode.Map16, c == msgpcode.Map32:
		return "map"
	case c == msgpcode.Nil:
		return "nil"
	case c == msgpcode.False, c == msgpcode.True:
		return "boolean"
	case c == msgpcode.Float, c == msgpcode.Double:
		return "float"
	case c == 0xc1:
		return "0xc1, which is not msgpack"
	}
	return "ext"
}

// More reports whether another element follows, before an optional one is read.
func (r *Reader) More() bool { return r.Left > 0 }

// Nil skips the next element if it is nil, and reports whether it was.
func (r *Reader) Nil() bool {
	if r.Left == 0 || len(r.B) == 0 || r.B[0] != msgpcode.Nil {
		return false
	}
	r.B = r.B[1:]
	r.Left--
	return true
}

func (r *Reader) take(n uint64) []byte {
	if n > uint64(len(r.B)) {
		r.Fail("element of %d bytes with %d left", n, len(r.B))
		return nil
	}
	p := r.B[:n:n]
	r.B = r.B[n:]
	return p
}

// code takes the next byte; 0xc1, which msgpack never uses, on error.
func (r *Reader) code() byte {
	if len(r.B) == 0 {
		r.Fail("ends early")
		return 0xc1
	}
	c := r.B[0]
	r.B = r.B[1:]
	return c
}

// size takes a big-endian unsigned integer of n bytes.
func (r *Reader) size(n uint64) uint64 {
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

// Uint reads an integer from 0 to max. Signed forms are accepted if they are not
// negative: some encoders write them.
func (r *Reader) Uint(max uint64) uint64 {
	if r.Left > 0 && len(r.B) > 0 && uint64(r.B[0]) <= min(max, uint64(msgpcode.PosFixedNumHigh)) {
		n := uint64(r.B[0]) // most are small
		r.B = r.B[1:]
		r.Left--
		return n
	}
	return r.longUint(max)
}

func (r *Reader) longUint(max uint64) uint64 {
	if r.Left == 0 {
		r.Fail("element missing")
		return 0
	}
	r.Left--
	c := r.code()
	var n uint64
	switch {
	case c <= msgpcode.PosFixedNumHigh:
		n = uint64(c)
	case c >= msgpcode.Uint8 && c <= msgpcode.Uint64:
		n = r.size(1 << (c - msgpcode.Uint8))
	case c >= msgpcode.Int8 && c <= msgpcode.Int64:
		w := uint64(1) << (c - msgpcode.Int8)
		n = r.size(w)
		if r.Err == nil && n>>(8*w-1) != 0 {
			r.Fail("negative integer")
		}
	default:
		r.wrongType(c, "uint")
	}
	if n > max {
		r.Fail("uint %d exceeds the limit of %d", n, max)
		return 0
	}
	return n
}

// bytesLen reads the header of a str or bin; ok is false for another element.
func (r *Reader) bytesLen(c byte) (n uint64, ok bool) {
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

// Bytes reads a str or bin of at most max bytes, aliasing the frame.
func (r *Reader) Bytes(max int) []byte {
	if r.Left == 0 {
		r.Fail("element missing")
		return nil
	}
	r.Left--
	if len(r.B) > 1 && r.B[0] == msgpcode.Bin8 && int(r.B[1]) <= min(max, len(r.B)-2) {
		n := 2 + int(r.B[1]) // the usual small payload
		p := r.B[2:n:n]
		r.B = r.B[n:]
		return p
	}
	c := r.code()
	n, ok := r.bytesLen(c)
	switch {
	case r.Err != nil:
		return nil
	case !ok:
		r.wrongType(c, "str or bin")
		return nil
	case n > uint64(max):
		r.Fail("element of %d bytes exceeds the limit of %d", n, max)
		return nil
	}
	return r.take(n)
}

// ArrayLen reads the header of an array.
func (r *Reader) ArrayLen() int {
	c := r.code()
	n, isMap, ok := r.container(c)
	if !ok || isMap {
		r.wrongType(c, "array")
		return 0
	}
	return int(n)
}

// MapLen reads the header of a map.
func (r *Reader) MapLen() int {
	c := r.code()
	n, isMap, ok := r.container(c)
	if !ok || !isMap {
		r.wrongType(c, "map")
		return 0
	}
	return int(n)
}

// container reads the header of an array or a map; ok is false for another element.
// A count that exceeds the bytes left is refused: every element takes at least one.
func (r *Reader) container(c byte) (n uint64, isMap, ok bool) {
	need := uint64(1)
	switch {
	case msgpcode.IsFixedArray(c):
		n = uint64(c & msgpcode.FixedArrayMask)
	case msgpcode.IsFixedMap(c):
		n, isMap, need = uint64(c&msgpcode.FixedMapMask), true, 2
	case c == msgpcode.Array16, c == msgpcode.Array32:
		n = r.size(2 << (c - msgpcode.Array16))
	case c == msgpcode.Map16, c == msgpcode.Map32:
		n, isMap, need = r.size(2<<(c-msgpcode.Map16)), true, 2
	default:
		return 0, false, false
	}
	if n*need > uint64(len(r.B)) {
		r.Fail("%d elements in %d bytes", n*need, len(r.B))
		n = 0
	}
	return n, isMap, true
}

// Skip passes over the rest of the frame: elements of a newer minor version.
func (r *Reader) Skip() {
	for r.Left > 0 && r.Err == nil {
		r.Left--
		r.skipOne(1)
	}
	if r.Err == nil && len(r.B) > 0 {
		r.Left = -1
		r.Fail("%d bytes after the last element", len(r.B))
	}
}

// skipOne passes over one element, and those in it.
func (r *Reader) skipOne(depth int) {
	c := r.code()
	if n, ok := r.bytesLen(c); ok {
		r.take(n)
		return
	}
	n, isMap, ok := r.container(c)
	if isMap {
		n *= 2
	}
	switch {
	case ok && n > 0 && depth == MaxDepth-1:
		r.Fail("nested deeper than %d", MaxDepth)
	case ok:
		for ; n > 0 && r.Err == nil; n-- {
			r.skipOne(depth + 1)
		}
	case msgpcode.IsFixedNum(c), c == msgpcode.Nil, c == msgpcode.False, c == msgpcode.True:
	case c >= msgpcode.Uint8 && c <= msgpcode.Uint64:
		r.take(1 << (c - msgpcode.Uint8))
	case c >= msgpcode.Int8 && c <= msgpcode.Int64:
		r.take(1 << (c - msgpcode.Int8))
	case c == msgpcode.Float, c == msgpcode.Double:
		r.take(4 << (c - msgpcode.Float))
	case c >= msgpcode.FixExt1 && c <= msgpcode.FixExt16:
		r.take(1 + 1<<(c-msgpcode.FixExt1))
	case c >= msgpcode.Ext8 && c <= msgpcode.Ext32:
		r.take(1 + r.size(1<<(c-msgpcode.Ext8)))
	default:
		r.Fail("0x%02x is not msgpack", c)
	}
}

func AppendUint(dst []byte, n uint64) []byte {
	switch {
	case n <= uint64(msgpcode.PosFixedNumHigh):
		return append(dst, byte(n))
	case n < 1<<8:
		return append(dst, msgpcode.Uint8, byte(n))
	case n < 1<<16:
		return append(dst, msgpcode.Uint16, byte(n>>8), byte(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(dst, msgpcode.Uint32), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, msgpcode.Uint64), n)
}

// appendHeader appends the header of an element with n bytes or elements: fixed below
// most, or the first of the codes that n fits; code8 is 0 where there is none.
func appendHeader(dst []byte, n, most int, fixed, code8, code16, code32 byte) []byte {
	switch {
	case n < most:
		return append(dst, fixed|byte(n))
	case n < 1<<8 && code8 != 0:
		return append(dst, code8, byte(n))
	case n < 1<<16:
		return append(dst, code16, byte(n>>8), byte(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, code32), uint32(n))
}

func AppendStrHeader(dst []byte, n int) []byte {
	return appendHeader(dst, n, 32, msgpcode.FixedStrLow, msgpcode.Str8, msgpcode.Str16, msgpcode.Str32)
}

func AppendBinHeader(dst []byte, n int) []byte {
	return appendHeader(dst, n, 0, 0, msgpcode.Bin8, msgpcode.Bin16, msgpcode.Bin32)
}

func appendArrayHeader(dst []byte, n int) []byte {
	return appendHeader(dst, n, 16, msgpcode.FixedArrayLow, 0, msgpcode.Array16, msgpcode.Array32)
}

func AppendMapHeader(dst []byte, n int) []byte {
	return appendHeader(dst, n, 16, msgpcode.FixedMapLow, 0, msgpcode.Map16, msgpcode.Map32)
}

func AppendBin(dst, p []byte) []byte {
	return append(AppendBinHeader(dst, len(p)), p...)
}
