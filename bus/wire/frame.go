package wire

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"

	"fbus/bus/args"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// Version of the protocol this package speaks (PROTOCOL.md, section 3). Another
// major version is refused; a newer minor version may add elements to frames,
// and frame types, which are skipped.
const (
	Major = 1
	Minor = 1
)

// Bounds every peer keeps (PROTOCOL.md, section 8).
const (
	// MaxFrame is the longest frame after HELLO, in bytes, its length prefix
	// not counted.
	MaxFrame = 1 << 20
	// MaxHelloFrame is the longest frame before HELLO.
	MaxHelloFrame = 4 << 10
	// MaxInlineInput is how many bytes of input a CALL may carry, and the
	// largest input that counts as whole.
	MaxInlineInput = 32 << 10
	// MaxArgs is the most bytes that the arguments of a CALL may take.
	MaxArgs = MaxFrame - MaxInlineInput - 4<<10
	// MaxText bounds each name, code and message of a frame.
	MaxText = 4 << 10
	// MaxSchema bounds the schema in an OFFER.
	MaxSchema = 64 << 10
	// InitialWindow is the credit of a stream when its CALL says
	// nothing else.
	InitialWindow = 256 << 10
	// MaxWindow is the most credit a receiver may have outstanding for a stream.
	MaxWindow = 4 << 20
	// Forever is a wait without limit, in milliseconds.
	Forever = 1<<32 - 1
)

// Type is the first element of every frame.
type Type uint8

// NewInstance returns a new instance id for HELLO. It is unique, not secret: it means
// something only together with the identity that the node itself has verified.
func NewInstance() string {
	return fmt.Sprintf("%013s", strconv.FormatUint(rand.Uint64(), 36)) + strconv.FormatUint(rand.Uint64(), 36)
}

// Stream numbers the byte streams of a call.
type Stream uint8

// Streams of a call. The opener sends Input; the acceptor sends the others.
const (
	Input  Stream = 0
	Output Stream = 1
	Stderr Stream = 2
)

// Flags of CALL.
const (
	// FlagInputEnd: the input is complete with this frame.
	FlagInputEnd = 1 << 0
	// FlagHasInput: there is an input alongside the arguments.
	FlagHasInput = 1 << 1
	// FlagHere: the call must not go to a relay offer, nor wait for one.
	FlagHere = 1 << 2
)

// Flags of OFFER.
const (
	// FlagIdempotent: a call whose worker was lost may be run again.
	FlagIdempotent = 1 << 0
	// FlagCannotStart, with no slots: the worker cannot start the program, for the reason in
	// the note. The offer stays.
	FlagCannotStart = 1 << 1
	// FlagNotFound, in addition: since the program was not found.
	FlagNotFound = 1 << 2
	// FlagTakesInput: calls have an input, and no arguments.
	FlagTakesInput = 1 << 3
	// FlagTakesArgs: calls have arguments, and no input.
	FlagTakesArgs = 1 << 4
	// FlagRelay: calls go on to another node. The offer is used when no other one has a free
	// slot, and stays with no slots.
	FlagRelay = 1 << 5
)

// Frame is one message of the protocol: one of the struct types below. Byte
// slices of a decoded frame alias the buffer it was decoded from and are valid
// until the handler that was given the frame returns.
type Frame interface {
	// shape returns the first element of the frame, and how many there are.
	shape() (t Type, arity int)
	// encode appends the other elements.
	encode(dst []byte, arity int) []byte
	decode(r *reader)
}

// TypeOf returns the first element of a frame.
func TypeOf(f Frame) Type {
	t, _ := f.shape()
	return t
}

// NotOpen returns the error about a frame for a call that its sender cannot mean: there is
// none of that id, or other: there is one, but the sender is on its other side.
func NotOpen(f Frame, id uint64, other bool) error {
	what, verb, side, you := Name(f), "sent", "opener", "accepted"
	switch f := f.(type) {
	case *GrantFrame:
		what, verb = fmt.Sprintf("stream %d", f.Stream), "granted"
	case *DataFrame:
		what = fmt.Sprintf("stream %d", f.Stream)
	}
	if !ofOpener(f) {
		side, you = "acceptor", "opened"
	}
	if !other {
		return args.Errorf(args.CodeProtocol, "%s for call %d, which was never opened", subject(f), id)
	}
	return args.Errorf(args.CodeProtocol, "%s for call %d: %s is %s by the %s, and you %s it", subject(f), id, what, verb, side, you)
}

// Name returns the name of a frame's type.
func Name(f Frame) string { return layouts[TypeOf(f)].name }

// subject names a frame, and its stream if it has one.
func subject(f Frame) string {
	switch f := f.(type) {
	case *GrantFrame:
		return fmt.Sprintf("GRANT of stream %d", f.Stream)
	case *DataFrame:
		return fmt.Sprintf("DATA of stream %d", f.Stream)
	}
	return Name(f)
}

// Broken returns the error of a rule that a frame for a call breaks, and names both.
func Broken(f Frame, id uint64, format string, a ...any) error {
	return args.Errorf(args.CodeProtocol, "%s for call %d: %s", subject(f), id, fmt.Sprintf(format, a...))
}

// ofOpener reports whether a frame about a call is one that its opener sends.
func ofOpener(f Frame) bool {
	switch f := f.(type) {
	case *DataFrame:
		return f.Stream == Input
	case *GrantFrame:
		return f.Stream != Input
	}
	t := TypeOf(f)
	return t != TypeEnd && t != TypeProgress
}

// Append appends a frame, with its length prefix, to dst.
func Append(dst []byte, f Frame) []byte {
	start := len(dst)
	t, arity := f.shape()
	return finish(f.encode(begin(dst, t, arity), arity), start, 0)
}

// reader reads the elements of a frame.
type reader struct{ args.Reader }

// Decoder decodes frames one after the other into the same memory, so that decoding does
// not allocate. It is not safe for concurrent use.
type Decoder struct {
	r      reader
	frames [len(layouts)]Frame // one of each type that has come
}

// Decode reads body, a frame without its length prefix. The frame is valid until the next
// one is decoded; nil is one of an unknown type, which is skipped. Elements that a frame
// does not know are skipped; a wrong type, arity, range or length is an error that wraps
// [ErrMalformed].
func (d *Decoder) Decode(body []byte) (Frame, error) {
	r := &d.r
	*r = reader{args.Reader{B: body}}
	count := r.ArrayLen()
	r.Left = count
	t := r.Uint(255)
	if r.Err != nil || t >= uint64(len(layouts)) || layouts[t].make == nil {
		return nil, r.Err
	}
	if d.frames[t] == nil {
		d.frames[t] = layouts[t].make()
	}
	f := d.frames[t]
	f.decode(r)
	if r.Err == nil && (r.Left > 0 || len(r.B) > 0) {
		r.Skip()
	}
	if r.Err != nil {
		return f, layouts[t].explain(r.Err, count)
	}
	return f, nil
}

// text, arguments and payloads have bounds of their own inside the frame's.
func (r *reader) text() []byte { return r.Bytes(MaxText) }

// moreText, moreBytes and moreUint read an element that may be left out.

func (r *reader) moreText() []byte { return r.moreBytes(MaxText) }

func (r *reader) moreBytes(limit int) []byte {
	if !r.More() {
		return nil
	}
	return r.Bytes(limit)
}

func (r *reader) moreUint(limit, otherwise uint64) uint64 {
	if !r.More() {
		return otherwise
	}
	return r.Uint(limit)
}

// MaxUint bounds integers that have no bound of their own: those that every
// language can hold exactly.
const MaxUint = 1<<53 - 1

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

// finish writes the length of the frame that began at start; more bytes of it follow dst.
func finish(dst []byte, start, more int) []byte {
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4+more))
	return dst
}

// appendText appends a str, cut to the length that a receiver takes.
func appendText[T string | []byte](dst []byte, s T) []byte {
	if len(s) > MaxText {
		s = s[:MaxText]
	}
	dst = args.AppendStrHeader(dst, len(s))
	return append(dst, s...)
}
