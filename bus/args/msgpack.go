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

func AppendStrHeader(dst []byte, n int) []byte {
	switch {
	case n < 32:
		return append(dst, msgpcode.FixedStrLow|byte(n))
	case n < 1<<8:
		return append(dst, msgpcode.Str8, byte(n))
	case n < 1<<16:
		return append(dst, msgpcode.Str16, byte(n>>8), byte(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, msgpcode.Str32), uint32(n))
}

func AppendBinHeader(dst []byte, n int) []byte {
	switch {
	case n < 1<<8:
		return append(dst, msgpcode.Bin8, byte(n))
	case n < 1<<16:
		return append(dst, msgpcode.Bin16, byte(n>>8), byte(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, msgpcode.Bin32), uint32(n))
}

func AppendBin(dst, p []byte) []byte {
	return append(AppendBinHeader(dst, len(p)), p...)
}
