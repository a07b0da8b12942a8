package main

import (
	"encoding/binary"
	"slices"
)

// form is one of the forms of msgpack in which a sender may write the elements of a frame. Those
// that it leaves out are in their shortest form.
type form struct {
	name  string
	uint  func(n byte) []byte
	text  func(s string) []byte
	array func(n byte) []byte
}

// forms are all that a receiver has to accept (C-2-10, C-2-11).
func forms() (list []form) {
	short := form{
		uint:  func(n byte) []byte { return []byte{n} },
		text:  func(s string) []byte { return append([]byte{0xa0 | byte(len(s))}, s...) },
		array: func(n byte) []byte { return []byte{0x90 | n} },
	}
	// wide is a header with a length, or a value, of that many bytes.
	wide := func(header byte, size int, n byte) []byte {
		return append(append([]byte{header}, make([]byte, size-1)...), n)
	}
	list = append(list, short)
	list[0].name = "the shortest"
	for i, name := range []string{"uint 8", "uint 16", "uint 32", "uint 64", "int 8", "int 16", "int 32", "int 64"} {
		f := short
		f.name, f.uint = name, func(n byte) []byte { return wide(0xcc+byte(i), 1<<(i%4), n) }
		list = append(list, f)
	}
	for i, name := range []string{"str 8", "str 16", "str 32", "bin 8", "bin 16", "bin 32"} {
		header := byte(0xd9 + i)
		if i >= 3 {
			header = byte(0xc4 + i - 3)
		}
		f := short
		f.name, f.text = name, func(s string) []byte { return append(wide(header, 1<<(i%3), byte(len(s))), s...) }
		list = append(list, f)
	}
	for i, name := range []string{"array 16", "array 32"} {
		f := short
		f.name, f.array = name, func(n byte) []byte { return wide(0xdc+byte(i), 2<<i, n) }
		list = append(list, f)
	}
	return list
}

// frame encodes elements, which are int and string, in this form.
func (f *form) frame(elements ...any) []byte {
	body := f.array(byte(len(elements)))
	for _, e := range elements {
		if s, ok := e.(string); ok {
			body = append(body, f.text(s)...)
		} else {
			body = append(body, f.uint(byte(e.(int)))...)
		}
	}
	return slices.Concat(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body)
}
