package wire

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"fbus/bus/args"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// Frame types: their sender, their elements, and PROTOCOL.md's section. An
// element in square brackets may be left out from there on.
const (
	// HELLO, both, section 3: major, minor, network, instance, name
	// [, capabilities, connection, rights]
	TypeHello Type = 1
	// ERROR, both, section 3.3: code, message. The sender closes.
	TypeError Type = 2
	// OFFER, client, section 4: seq, name, slots [, flags, description, arguments,
	// note, schema, attributes, elsewhere, behind]
	TypeOffer Type = 3
	// OFFERED, node, section 4: seq, code, message
	TypeOffered Type = 4
	// CALL, opener, section 5.1: id, name, kind, args, input, flags [, timeout,
	// wait-function, wait-slot, retries, on, window-output, window-error, call,
	// caller, job, attempt, origin, trace]
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
	// PROGRESS, acceptor, section 5.9: id, done, total [, text]
	TypeProgress Type = 11
)

// layouts are the frames by their type: PROTOCOL.md, section 2, has the same table.
var layouts = [...]layout{
	TypeHello:   {"HELLO", 6, "major uint, minor uint, network str, instance str, name str, capabilities array, connection str, rights array", func() Frame { return new(HelloFrame) }},
	TypeError:   {"ERROR", 3, "code str, message str", func() Frame { return new(ErrorFrame) }},
	TypeOffer:   {"OFFER", 4, "seq uint, name str, slots uint, flags uint, description str, arguments str, note str, schema str, attributes map, elsewhere uint, behind array, max_running uint, held array", func() Frame { return new(OfferFrame) }},
	TypeOffered: {"OFFERED", 4, "seq uint, code str, message str", func() Frame { return new(OfferedFrame) }},
	TypeCall: {"CALL", 7, "id uint, name str, kind uint, args bin, input bin, flags uint, " +
		"timeout uint, wait_function uint, wait_slot uint, retries uint, on str, " +
		"window_output uint, window_stderr uint, call str, caller str, job str, attempt uint, origin str, trace str", func() Frame { return new(CallFrame) }},
	TypeData:     {"DATA", 4, "id uint, stream uint, bytes bin", func() Frame { return new(DataFrame) }},
	TypeEOF:      {"EOF", 2, "id uint", func() Frame { return new(EOFFrame) }},
	TypeGrant:    {"GRANT", 4, "id uint, stream uint, bytes uint", func() Frame { return new(GrantFrame) }},
	TypeCancel:   {"CANCEL", 2, "id uint, code str", func() Frame { return new(CancelFrame) }},
	TypeEnd:      {"END", 4, "id uint, source uint, status uint, code str, message str, output bin, call str, worker str", func() Frame { return new(EndFrame) }},
	TypeProgress: {"PROGRESS", 4, "id uint, done uint, total uint, text str", func() Frame { return new(ProgressFrame) }},
}

// layout describes a type of frame.
type layout struct {
	name     string
	least    int    // elements, the type included
	elements string // the others: names and types
	make     func() Frame
}

// explain names the frame, and the element if there is one, in an error about one of the
// count elements that a frame has.
func (l *layout) explain(err error, count int) error {
	var e *args.ElementError
	if !errors.As(err, &e) {
		return err
	}
	if count < l.least {
		return fmt.Errorf("%w: %s: %d elements, at least %d expected", args.ErrMalformed, l.name, count, l.least)
	}
	at, text := count-e.Left-1, e.Text
	elements := strings.Split(l.elements, ", ")
	if e.Left < 0 || at < 1 || at > len(elements) {
		return fmt.Errorf("%w: %s: %s", args.ErrMalformed, l.name, text)
	}
	name, kind, _ := strings.Cut(elements[at-1], " ")
	if e.Got != "" && kind != "array" && kind != "map" {
		text = e.Got + ", " + kind + " expected"
	}
	return fmt.Errorf("%w: %s element %d (%s): %s", args.ErrMalformed, l.name, at, name, text)
}

// HelloFrame opens a connection in each direction.
type HelloFrame struct {
	Major, Minor uint64
	Network      []byte   // empty: whichever the node is in
	Instance     []byte   // names this process; a later connection with it supersedes this one
	Name         []byte   // of the worker or node
	Caps         [][]byte // capabilities understood
	Connection   []byte   // node only: prefix of the ids of calls opened on this connection
	Rights       [][]byte // client only: it wants no others of those that it has; nil: all
}

func (f *HelloFrame) shape() (Type, int) {
	if f.Rights != nil {
		return TypeHello, 9
	}
	return TypeHello, 8
}

func (f *HelloFrame) encode(dst []byte, arity int) []byte {
	dst = args.AppendUint(args.AppendUint(dst, f.Major), f.Minor)
	dst = appendText(appendText(appendText(dst, f.Network), f.Instance), f.Name)
	dst = appendText(appendTexts(dst, f.Caps), f.Connection)
	if arity > 8 {
		dst = appendTexts(dst, f.Rights)
	}
	return dst
}

func appendTexts(dst []byte, list [][]byte) []byte {
	dst = append(dst, msgpcode.Array16, byte(len(list)>>8), byte(len(list)))
	for _, text := range list {
		dst = appendText(dst, text)
	}
	return dst
}

func (f *HelloFrame) decode(r *reader) {
	f.Major, f.Minor = r.Uint(1<<16-1), r.Uint(1<<16-1)
	f.Network, f.Instance, f.Name = r.text(), r.text(), r.text()
	f.Caps = nil
	if r.More() {
		f.Caps = r.texts(maxTexts)
	}
	f.Connection, f.Rights = r.moreText(), nil
	if r.More() && !r.Nil() {
		f.Rights = r.texts(maxTexts)
	}
}

// Capabilities, PROTOCOL.md section 3.2.
const (
	// CapProgress is that of a peer that takes PROGRESS frames.
	CapProgress = "progress"
	// CapRelay is that of a client that makes calls for others, and of a node that lets it.
	CapRelay = "relay"
)

// Has reports whether the peer has named a capability.
func (f *HelloFrame) Has(capability string) bool {
	return slices.ContainsFunc(f.Caps, func(c []byte) bool { return string(c) == capability })
}

// maxTexts bounds the lists of HELLO.
const maxTexts = 64

// texts reads an array of strings.
func (r *reader) texts(most int) [][]byte {
	r.Left--
	n := r.ArrayLen()
	if n > most {
		r.Fail("array of %d elements exceeds the limit of %d", n, most)
	}
	list := make([][]byte, 0, min(n, maxTexts))
	for ; r.Err == nil && n > 0; n-- {
		r.Left++ // it is none of the frame's
		list = append(list, r.text())
	}
	return list
}

// ErrorFrame is the reason why its sender closes the connection.
type ErrorFrame struct {
	Code, Message []byte
}

func (*ErrorFrame) shape() (Type, int) { return TypeError, 3 }

func (f *ErrorFrame) encode(dst []byte, _ int) []byte {
	return appendText(appendText(dst, f.Code), f.Message)
}

func (f *ErrorFrame) decode(r *reader) { f.Code, f.Message = r.text(), r.text() }

const (
	// MaxBehind bounds the workers behind a relay offer.
	MaxBehind = 1000
	// maxSlots bounds the slots of an offer.
	maxSlots = 1 << 20
)

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
	// Attributes are names, each followed by its value.
	Attributes [][]byte
	Elsewhere  uint64   // with FlagRelay: slots at the other node
	Behind     [][]byte // with FlagRelay: what selects each worker there
	MaxRunning uint64   // calls at once over all offers of this connection; 0: no limit
	Held       [][]byte // with FlagRelay: those of Behind that get nothing new
}

func (f *OfferFrame) shape() (Type, int) {
	switch {
	case len(f.Held) > 0:
		return TypeOffer, 14
	case f.MaxRunning > 0:
		return TypeOffer, 13
	case len(f.Behind) > 0:
		return TypeOffer, 12
	case f.Elsewhere > 0:
		return TypeOffer, 11
	case len(f.Attributes) > 0:
		return TypeOffer, 10
	case len(f.Schema) > 0:
		return TypeOffer, 9
	case len(f.Note) > 0:
		return TypeOffer, 8
	}
	return TypeOffer, 7
}

func (f *OfferFrame) encode(dst []byte, arity int) []byte {
	dst = appendText(args.AppendUint(dst, f.Seq), f.Name)
	dst = args.AppendUint(args.AppendUint(dst, f.Slots), f.Flags)
	dst = appendText(appendText(dst, f.Description), f.Arguments)
	if arity > 7 {
		dst = appendText(dst, f.Note)
	}
	if arity > 8 {
		dst = append(args.AppendStrHeader(dst, len(f.Schema)), f.Schema...)
	}
	if arity > 9 {
		dst = args.AppendMapHeader(dst, len(f.Attributes)/2)
		for _, text := range f.Attributes {
			dst = append(args.AppendStrHeader(dst, len(text)), text...)
		}
	}
	if arity > 10 {
		dst = args.AppendUint(dst, f.Elsewhere)
	}
	if arity > 11 {
		dst = appendTexts(dst, f.Behind)
	}
	if arity > 12 {
		dst = args.AppendUint(dst, f.MaxRunning)
	}
	if arity > 13 {
		dst = appendTexts(dst, f.Held)
	}
	return dst
}

func (f *OfferFrame) decode(r *reader) {
	f.Seq, f.Name, f.Slots = r.Uint(MaxUint), r.text(), r.Uint(maxSlots)
	f.Flags, f.Description, f.Arguments = r.moreUint(MaxUint, 0), r.moreText(), r.moreText()
	f.Note, f.Schema, f.Attributes = r.moreText(), r.moreBytes(MaxSchema), nil
	if r.More() {
		f.Attributes = r.attributes()
	}
	f.Elsewhere, f.Behind = r.moreUint(maxSlots, 0), nil
	if r.More() {
		f.Behind = r.texts(MaxBehind)
	}
	f.MaxRunning, f.Held = r.moreUint(maxSlots, 0), nil
	if r.More() {
		f.Held = r.texts(MaxBehind)
	}
}

// attributes reads a map of strings.
func (r *reader) attributes() [][]byte {
	r.Left--
	n := r.MapLen()
	if n > args.MaxAttributes {
		r.Fail("map of %d attributes exceeds the limit of %d", n, args.MaxAttributes)
	}
	var list [][]byte
	for ; r.Err == nil && n > 0; n-- {
		r.Left += 2 // they are none of the frame's
		list = append(list, r.Bytes(args.MaxAttributeName), r.Bytes(args.MaxAttributeBytes))
	}
	return list
}

// OfferedFrame answers an OFFER; an empty Code accepts it.
type OfferedFrame struct {
	Seq           uint64
	Code, Message []byte
}

func (*OfferedFrame) shape() (Type, int) { return TypeOffered, 4 }

func (f *OfferedFrame) encode(dst []byte, _ int) []byte {
	return appendText(appendText(args.AppendUint(dst, f.Seq), f.Code), f.Message)
}

func (f *OfferedFrame) decode(r *reader) {
	f.Seq, f.Code, f.Message = r.Uint(MaxUint), r.text(), r.text()
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
	Caller       []byte // node only: the caller's identity
	Job          []byte // node only: id of the job that the call runs
	Attempt      uint64 // node only: of the job, from 1
	Origin       []byte // node only: the job whose end has posted this one, as JSON
	Trace        []byte // traceparent and, on a second line, tracestate; empty: none
}

// shape leaves out elements that have their default at the end of the frame, so a plain
// call stays small.
func (f *CallFrame) shape() (Type, int) {
	switch {
	case len(f.Trace) > 0:
		return TypeCall, 20
	case len(f.Job) > 0, f.Attempt > 0, len(f.Origin) > 0:
		return TypeCall, 19
	case len(f.Call) > 0, len(f.Caller) > 0,
		f.WindowOutput != InitialWindow, f.WindowStderr != InitialWindow:
		return TypeCall, 16
	case f.Timeout > 0, f.WaitFunction > 0, f.WaitSlot != Forever, f.Retries > 0, len(f.On) > 0:
		return TypeCall, 12
	}
	return TypeCall, 7
}

func (f *CallFrame) encode(dst []byte, arity int) []byte {
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
	if arity > 19 {
		dst = appendText(dst, f.Trace)
	}
	return dst
}

func (f *CallFrame) decode(r *reader) {
	*f = CallFrame{WaitSlot: Forever, WindowOutput: InitialWindow, WindowStderr: InitialWindow}
	f.ID, f.Name, f.Kind = r.Uint(MaxUint), r.text(), args.Kind(r.Uint(uint64(args.KindJSON)))
	f.Args, f.Input, f.Flags = r.Bytes(MaxArgs), r.Bytes(MaxInlineInput), r.Uint(MaxUint)
	if !r.More() { // most calls end here
		return
	}
	f.Timeout, f.WaitFunction = r.moreUint(MaxUint, 0), r.moreUint(MaxUint, 0)
	f.WaitSlot, f.Retries, f.On = r.moreUint(MaxUint, Forever), r.moreUint(MaxUint, 0), r.moreText()
	f.WindowOutput, f.WindowStderr = r.moreUint(MaxWindow, InitialWindow), r.moreUint(MaxWindow, InitialWindow)
	f.Call, f.Caller = r.moreText(), r.moreText()
	f.Job, f.Attempt, f.Origin, f.Trace = r.moreText(), r.moreUint(MaxUint, 0), r.moreText(), r.moreText()
}

// DataFrame carries bytes of a stream.
type DataFrame struct {
	ID      uint64
	Stream  Stream
	Payload []byte
}

func (*DataFrame) shape() (Type, int) { return TypeData, 4 }

func (f *DataFrame) encode(dst []byte, _ int) []byte {
	return append(f.encodeHead(dst), f.Payload...)
}

func (f *DataFrame) encodeHead(dst []byte) []byte {
	dst = args.AppendUint(args.AppendUint(dst, f.ID), uint64(f.Stream))
	return args.AppendBinHeader(dst, len(f.Payload))
}

// AppendHead appends the frame up to its payload, which the caller writes
// behind it: so that bulk data is not copied to be framed.
func (f *DataFrame) AppendHead(dst []byte) []byte {
	start := len(dst)
	dst = f.encodeHead(begin(dst, TypeData, 4))
	return finish(dst, start, len(f.Payload))
}

func (f *DataFrame) decode(r *reader) {
	f.ID, f.Stream, f.Payload = r.Uint(MaxUint), Stream(r.Uint(uint64(Stderr))), r.Bytes(MaxFrame)
}

// EOFFrame ends a call's input.
type EOFFrame struct {
	ID uint64
}

func (*EOFFrame) shape() (Type, int) { return TypeEOF, 2 }

func (f *EOFFrame) encode(dst []byte, _ int) []byte { return args.AppendUint(dst, f.ID) }

func (f *EOFFrame) decode(r *reader) { f.ID = r.Uint(MaxUint) }

// GrantFrame lets the peer send that many more bytes of a stream.
type GrantFrame struct {
	ID     uint64
	Stream Stream
	Bytes  uint64
}

func (*GrantFrame) shape() (Type, int) { return TypeGrant, 4 }

func (f *GrantFrame) encode(dst []byte, _ int) []byte {
	return args.AppendUint(args.AppendUint(args.AppendUint(dst, f.ID), uint64(f.Stream)), f.Bytes)
}

func (f *GrantFrame) decode(r *reader) {
	f.ID, f.Stream, f.Bytes = r.Uint(MaxUint), Stream(r.Uint(uint64(Stderr))), r.Uint(MaxWindow)
}

// CancelFrame asks the acceptor to end a call.
type CancelFrame struct {
	ID   uint64
	Code []byte
}

func (*CancelFrame) shape() (Type, int) { return TypeCancel, 3 }

func (f *CancelFrame) encode(dst []byte, _ int) []byte {
	return appendText(args.AppendUint(dst, f.ID), f.Code)
}

func (f *CancelFrame) decode(r *reader) {
	f.ID, f.Code = r.Uint(MaxUint), r.moreText()
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

func (f *EndFrame) shape() (Type, int) {
	if len(f.Call) == 0 && len(f.Worker) == 0 {
		return TypeEnd, 7
	}
	return TypeEnd, 9
}

func (f *EndFrame) encode(dst []byte, arity int) []byte {
	dst = args.AppendUint(args.AppendUint(args.AppendUint(dst, f.ID), uint64(f.Source)), f.Status)
	dst = args.AppendBin(appendText(appendText(dst, f.Code), f.Message), f.Output)
	if arity > 7 {
		dst = appendText(appendText(dst, f.Call), f.Worker)
	}
	return dst
}

func (f *EndFrame) decode(r *reader) {
	f.ID, f.Source, f.Status = r.Uint(MaxUint), args.Source(r.Uint(uint64(args.FromBus))), r.Uint(255)
	if f.Source != args.FromProgram && f.Status == 0 { // nobody may take that for success
		r.Fail("status 0 of an end with source %d", f.Source)
	}
	f.Code, f.Message, f.Output = r.moreText(), r.moreText(), r.moreBytes(MaxFrame)
	f.Call, f.Worker = r.moreText(), r.moreText()
}

// MaxProgressText bounds the text of a PROGRESS frame.
const MaxProgressText = 256

// ProgressFrame reports how far a call is.
type ProgressFrame struct {
	ID          uint64
	Done, Total uint64 // of whatever is counted; Total 0: not known
	Text        []byte
}

func (*ProgressFrame) shape() (Type, int) { return TypeProgress, 5 }

func (f *ProgressFrame) encode(dst []byte, _ int) []byte {
	return appendText(args.AppendUint(args.AppendUint(args.AppendUint(dst, f.ID), f.Done), f.Total), f.Text)
}

func (f *ProgressFrame) decode(r *reader) {
	f.ID, f.Done, f.Total, f.Text = r.Uint(MaxUint), r.Uint(MaxUint), r.Uint(MaxUint), r.moreBytes(MaxProgressText)
}
