package wire

import (
	"encoding/binary"
	"fbus/bus/args"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// begin appends a frame's length prefix, still zero, its array header and its
// type. Arrays of 16 elements and more take the three-byte header.
func begin(dst []byte, t Type, arity int) []byte {
	dst = append(dst, 0, 0, 0, 0)
	if arity < 16 {
		dst = append(dst, msgpcode.FixedArrayLow|byte(arity))
	} else {
		dst = append(dst, msgpcode.Array16, byte(arity>>8), byte(arity))
	}
	return append(dst, byte(t))
}

// finish writes the length of the frame that began at start.
func finish(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}

// appendText appends a str; what is longer than a receiver takes is cut.
func appendText[T string | []byte](dst []byte, s T) []byte {
	if len(s) > MaxText {
		s = s[:MaxText]
	}
	dst = args.AppendStrHeader(dst, len(s))
	return append(dst, s...)
}

// Append implements [Frame].
func (f *HelloFrame) Append(dst []byte) []byte {
	start := len(dst)
	dst = begin(dst, TypeHello, 8)
	dst = args.AppendUint(args.AppendUint(dst, f.Major), f.Minor)
	dst = appendText(appendText(appendText(dst, f.Network), f.Instance), f.Name)
	dst = append(dst, msgpcode.Array16, byte(len(f.Caps)>>8), byte(len(f.Caps)))
	for _, c := range f.Caps {
		dst = appendText(dst, c)
	}
	return finish(appendText(dst, f.Connection), start)
}

// Append implements [Frame].
func (f *ErrorFrame) Append(dst []byte) []byte {
	start := len(dst)
	dst = begin(dst, TypeError, 3)
	return finish(appendText(appendText(dst, f.Code), f.Message), start)
}

// Append implements [Frame].
func (f *OfferFrame) Append(dst []byte) []byte {
	start := len(dst)
	arity := f.arity()
	dst = begin(dst, TypeOffer, arity)
	dst = appendText(args.AppendUint(dst, f.Seq), f.Name)
	dst = args.AppendUint(args.AppendUint(dst, f.Slots), f.Flags)
	dst = appendText(appendText(dst, f.Description), f.Arguments)
	if arity > 7 {
		dst = appendText(dst, f.Note)
	}
	if arity > 8 {
		dst = append(args.AppendStrHeader(dst, len(f.Schema)), f.Schema...)
	}
	return finish(dst, start)
}

func (f *OfferFrame) arity() int {
	switch {
	case len(f.Schema) > 0:
		return 9
	case len(f.Note) > 0:
		return 8
	}
	return 7
}

// Append implements [Frame].
func (f *OfferedFrame) Append(dst []byte) []byte {
	start := len(dst)
	dst = begin(dst, TypeOffered, 4)
	dst = args.AppendUint(dst, f.Seq)
	return finish(appendText(appendText(dst, f.Code), f.Message), start)
}

// Append implements [Frame]. Elements that have their default at the end of the
// frame are left out, so a plain call stays small.
func (f *CallFrame) Append(dst []byte) []byte {
	start := len(dst)
	arity := f.arity()
	dst = begin(dst, TypeCall, arity)
	dst = args.AppendUint(appendText(args.AppendUint(dst, f.ID), f.Name), uint64(f.Kind))
	dst = args.AppendUint(args.AppendBin(args.AppendBin(dst, f.Args), f.Input), f.Flags)
	if arity > 7 {
		dst = args.AppendUint(args.AppendUint(dst, f.Timeout), f.WaitFunction)
		dst = appendText(args.AppendUint(args.AppendUint(dst, f.WaitSlot), f.Retries), f.On)
	}
	if arity > 12 {
		dst = args.AppendUint(args.AppendUint(dst, f.WindowOutput), f.WindowStderr)
		dst = appendText(appendText(dst, f.Call), f.Caller)
	}
	if arity > 16 {
		dst = appendText(args.AppendUint(appendText(dst, f.Job), f.Attempt), f.Origin)
	}
	return finish(dst, start)
}

func (f *CallFrame) arity() int {
	switch {
	case len(f.Job) > 0, f.Attempt > 0, len(f.Origin) > 0:
		return 19
	case len(f.Call) > 0, len(f.Caller) > 0,
		f.WindowOutput != InitialWindow, f.WindowStderr != InitialWindow:
		return 16
	case f.Timeout > 0, f.WaitFunction > 0, f.WaitSlot != Forever, f.Retries > 0, len(f.On) > 0:
		return 12
	}
	return 7
}

// Append implements [Frame].
func (f *DataFrame) Append(dst []byte) []byte {
	return append(f.AppendHead(dst), f.Payload...)
}

// AppendHead appends the frame up to its payload, which the caller writes
// behind it: so that bulk data is not copied to be framed.
func (f *DataFrame) AppendHead(dst []byte) []byte {
	start := len(dst)
	dst = begin(dst, TypeData, 4)
	dst = args.AppendUint(args.AppendUint(dst, f.ID), uint64(f.Stream))
	dst = args.AppendBinHeader(dst, len(f.Payload))
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4+len(f.Payload)))
	return dst
}

// Append implements [Frame].
func (f *EOFFrame) Append(dst []byte) []byte {
	start := len(dst)
	return finish(args.AppendUint(begin(dst, TypeEOF, 2), f.ID), start)
}

// Append implements [Frame].
func (f *GrantFrame) Append(dst []byte) []byte {
	start := len(dst)
	dst = args.AppendUint(begin(dst, TypeGrant, 4), f.ID)
	return finish(args.AppendUint(args.AppendUint(dst, uint64(f.Stream)), f.Bytes), start)
}

// Append implements [Frame].
func (f *CancelFrame) Append(dst []byte) []byte {
	start := len(dst)
	return finish(appendText(args.AppendUint(begin(dst, TypeCancel, 3), f.ID), f.Code), start)
}

// Append implements [Frame].
func (f *EndFrame) Append(dst []byte) []byte {
	start := len(dst)
	arity := 9
	if len(f.Call) == 0 && len(f.Worker) == 0 {
		arity = 7
	}
	dst = begin(dst, TypeEnd, arity)
	dst = args.AppendUint(args.AppendUint(args.AppendUint(dst, f.ID), uint64(f.Source)), f.Status)
	dst = args.AppendBin(appendText(appendText(dst, f.Code), f.Message), f.Output)
	if arity > 7 {
		dst = appendText(appendText(dst, f.Call), f.Worker)
	}
	return finish(dst, start)
}
