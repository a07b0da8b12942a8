package wire

import "fbus/bus/args"

// text, arguments and payloads have bounds of their own inside the frame's.
func (r *reader) text() []byte { return r.Bytes(MaxText) }

// maxUint bounds integers that have no bound of their own: those that every
// language can hold exactly.
const maxUint = 1 << 53

func (f *HelloFrame) decode(r *reader) {
	f.Major, f.Minor = r.Uint(1<<16-1), r.Uint(1<<16-1)
	f.Network, f.Instance, f.Name = r.text(), r.text(), r.text()
	if r.More() {
		f.Caps = r.texts()
	}
	if r.More() {
		f.Connection = r.text()
	}
}

// texts reads an array of strings.
func (r *reader) texts() [][]byte {
	r.Left--
	n := r.ArrayLen()
	if n > 64 {
		r.Fail("array of %d capabilities exceeds the limit of 64", n)
	}
	outer := r.Left
	r.Left = n
	var list [][]byte
	for r.Err == nil && r.Left > 0 {
		list = append(list, r.text())
	}
	if r.Err == nil {
		r.Left = outer
	}
	return list
}

func (f *ErrorFrame) decode(r *reader) { f.Code, f.Message = r.text(), r.text() }

func (f *OfferFrame) decode(r *reader) {
	f.Seq, f.Name, f.Slots = r.Uint(maxUint), r.text(), r.Uint(1<<20)
	if r.More() {
		f.Flags = r.Uint(maxUint)
	}
	if r.More() {
		f.Description = r.text()
	}
	if r.More() {
		f.Arguments = r.text()
	}
	if r.More() {
		f.Note = r.text()
	}
	if r.More() {
		f.Schema = r.Bytes(MaxSchema)
	}
}

func (f *OfferedFrame) decode(r *reader) {
	f.Seq, f.Code, f.Message = r.Uint(maxUint), r.text(), r.text()
}

func (f *CallFrame) decode(r *reader) {
	f.ID, f.Name, f.Kind = r.Uint(maxUint), r.text(), args.Kind(r.Uint(uint64(args.KindJSON)))
	f.Args, f.Input, f.Flags = r.Bytes(MaxArgs), r.Bytes(MaxInlineInput), r.Uint(maxUint)
	f.Timeout, f.WaitFunction, f.WaitSlot, f.Retries = 0, 0, Forever, 0
	f.WindowOutput, f.WindowStderr = InitialWindow, InitialWindow
	f.On, f.Call, f.Caller = nil, nil, nil
	f.Job, f.Attempt, f.Origin = nil, 0, nil
	for _, n := range [...]*uint64{&f.Timeout, &f.WaitFunction, &f.WaitSlot, &f.Retries} {
		if !r.More() {
			return
		}
		*n = r.Uint(maxUint)
	}
	if r.More() {
		f.On = r.text()
	}
	if r.More() {
		f.WindowOutput = r.Uint(MaxWindow)
	}
	if r.More() {
		f.WindowStderr = r.Uint(MaxWindow)
	}
	if r.More() {
		f.Call = r.text()
	}
	if r.More() {
		f.Caller = r.text()
	}
	if r.More() {
		f.Job = r.text()
	}
	if r.More() {
		f.Attempt = r.Uint(maxUint)
	}
	if r.More() {
		f.Origin = r.text()
	}
}

func (f *DataFrame) decode(r *reader) {
	f.ID, f.Stream, f.Payload = r.Uint(maxUint), Stream(r.Uint(uint64(Stderr))), r.Bytes(MaxFrame)
}

func (f *EOFFrame) decode(r *reader) { f.ID = r.Uint(maxUint) }

func (f *GrantFrame) decode(r *reader) {
	f.ID, f.Stream, f.Bytes = r.Uint(maxUint), Stream(r.Uint(uint64(Stderr))), r.Uint(MaxWindow)
}

func (f *CancelFrame) decode(r *reader) {
	f.ID, f.Code = r.Uint(maxUint), nil
	if r.More() {
		f.Code = r.text()
	}
}

func (f *EndFrame) decode(r *reader) {
	f.ID, f.Source, f.Status = r.Uint(maxUint), args.Source(r.Uint(uint64(args.FromBus))), r.Uint(255)
	f.Code, f.Message, f.Output, f.Call, f.Worker = nil, nil, nil, nil, nil
	if r.More() {
		f.Code = r.text()
	}
	if r.More() {
		f.Message = r.text()
	}
	if r.More() {
		f.Output = r.Bytes(MaxFrame)
	}
	if r.More() {
		f.Call = r.text()
	}
	if r.More() {
		f.Worker = r.text()
	}
}
