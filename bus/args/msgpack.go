package args

import (
	"encoding/binary"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

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
