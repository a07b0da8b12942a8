package wire

import "fbus/bus/args"

// Version of the protocol this package speaks (PROTOCOL.md, section 3). Another
// major version is refused; a newer minor version may add elements to frames,
// and frame types, which are skipped.
const (
	Major = 1
	Minor = 0
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
	// InitialWindow is what a stream's receiver has granted when its CALL says
	// nothing else.
	InitialWindow = 256 << 10
	// MaxWindow is the most credit a receiver may have outstanding for a stream.
	MaxWindow = 4 << 20
	// Forever is a wait without limit, in milliseconds.
	Forever = 1<<32 - 1
)

// Type is the first element of every frame.
type Type uint8

// Frame types: who sends them, their elements, and PROTOCOL.md's section. An
// element in square brackets may be left out from there on.
const (
	// HELLO, both, section 3: major, minor, network, instance, name
	// [, capabilities, connection]
	TypeHello Type = 1
	// ERROR, both, section 3.3: code, message. The sender closes.
	TypeError Type = 2
	// OFFER, client, section 4: seq, name, slots [, flags, description, arguments,
	// note, schema]
	TypeOffer Type = 3
	// OFFERED, node, section 4: seq, code, message
	TypeOffered Type = 4
	// CALL, opener, section 5.1: id, name, kind, args, input, flags [, timeout,
	// wait-function, wait-slot, retries, on, window-output, window-error, call,
	// caller, job, attempt, origin]
	TypeCall Type = 5
	// DATA, both, section 5.2: id, stream, bytes
	TypeData Type = 6
	// EOF, opener, section 5.2: id
	TypeEOF Type = 7
	// GRANT, both, section 5.3: id, stream, bytes
	TypeGrant Type = 8
	// CANCEL, opener, section 5.4: id [, code]
	TypeCancel Type = 9
	// END, acceptor, section 5.5: id, source, status [, code, message, output,
	// call, worker]
	TypeEnd Type = 10
)

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
	// FlagHasInput: there is an input beside the arguments.
	FlagHasInput = 1 << 1
)

// FlagIdempotent in OFFER: a call whose worker was lost may be run again.
const FlagIdempotent = 1 << 0

// Frame is one message of the protocol: one of the struct types below. Byte
// slices of a decoded frame alias the buffer it was decoded from and are valid
// until the handler that was given the frame returns.
type Frame interface {
	// Append appends the frame, with its length prefix, to dst.
	Append(dst []byte) []byte
	decode(r *reader)
	// FrameType returns the first element of the frame.
	FrameType() Type
}

// HelloFrame opens a connection in each direction.
type HelloFrame struct {
	Major, Minor uint64
	Network      []byte   // empty: whichever the node is in
	Instance     []byte   // names this process; a later connection with it supersedes this one
	Name         []byte   // of the worker or node
	Caps         [][]byte // capabilities understood
	Connection   []byte   // node only: prefix of the ids of calls opened on this connection
}

// ErrorFrame says why its sender closes the connection.
type ErrorFrame struct {
	Code, Message []byte
}

// OfferFrame offers a function, or replaces the offer of that name on this
// connection; zero slots withdraw it.
type OfferFrame struct {
	Seq         uint64
	Name        []byte
	Slots       uint64
	Flags       uint64
	Description []byte
	Arguments   []byte // how arguments arrive, for people
	Note        []byte // why the worker has nothing ready, for people; empty: all is well
	Schema      []byte // a JSON Schema of the arguments; empty: none
}

// OfferedFrame answers an OFFER; an empty Code says that it stands.
type OfferedFrame struct {
	Seq           uint64
	Code, Message []byte
}

// CallFrame opens a call.
type CallFrame struct {
	ID           uint64
	Name         []byte
	Kind         args.Kind
	Args         []byte
	Input        []byte
	Flags        uint64
	Timeout      uint64 // milliseconds that remain, 0: no deadline
	WaitFunction uint64 // milliseconds to wait for the function to be offered
	WaitSlot     uint64 // milliseconds to wait for a slot; Forever is the default
	Retries      uint64 // further tries after a lost worker
	On           []byte // glob of worker names, empty: any
	WindowOutput uint64 // credit for Output, bytes
	WindowStderr uint64 // credit for Stderr, bytes
	Call         []byte // node only: the call's id on the network
	Caller       []byte // node only: who calls, as the node knows it
	Job          []byte // node only: id of the job that the call runs
	Attempt      uint64 // node only: of the job, from 1
	Origin       []byte // node only: the job whose end has posted this one, as JSON
}

// DataFrame carries bytes of a stream.
type DataFrame struct {
	ID      uint64
	Stream  Stream
	Payload []byte
}

// EOFFrame ends a call's input.
type EOFFrame struct {
	ID uint64
}

// GrantFrame lets the peer send that many more bytes of a stream.
type GrantFrame struct {
	ID     uint64
	Stream Stream
	Bytes  uint64
}

// CancelFrame asks the acceptor to end a call.
type CancelFrame struct {
	ID   uint64
	Code []byte
}

// EndFrame is the last frame of a call.
type EndFrame struct {
	ID      uint64
	Source  args.Source
	Status  uint64
	Code    []byte
	Message []byte
	Output  []byte // the last bytes of Output
	Call    []byte // node only: the call's id on the network
	Worker  []byte // node only: name of the worker that ran it
}

func (*HelloFrame) FrameType() Type   { return TypeHello }
func (*ErrorFrame) FrameType() Type   { return TypeError }
func (*OfferFrame) FrameType() Type   { return TypeOffer }
func (*OfferedFrame) FrameType() Type { return TypeOffered }
func (*CallFrame) FrameType() Type    { return TypeCall }
func (*DataFrame) FrameType() Type    { return TypeData }
func (*EOFFrame) FrameType() Type     { return TypeEOF }
func (*GrantFrame) FrameType() Type   { return TypeGrant }
func (*CancelFrame) FrameType() Type  { return TypeCancel }
func (*EndFrame) FrameType() Type     { return TypeEnd }
