package bus

// text, arguments and payloads have bounds of their own inside the frame's.
func (r *reader) text() []byte { return r.bytes(MaxText) }

// maxUint bounds integers that have no bound of their own: those that every
// language can hold exactly.
const maxUint = 1 << 53

func (f *HelloFrame) decode(r *reader) {
	f.Major, f.Minor = r.uint(1<<16-1), r.uint(1<<16-1)
	f.Network, f.Instance, f.Name = r.text(), r.text(), r.text()
	if r.more() {
		f.Caps = r.texts()
	}
	if r.more() {
		f.Connection = r.text()
	}
}

// texts reads an array of strings.
func (r *reader) texts() [][]byte {
	r.left--
	n := r.arrayLen()
	if n > 64 {
		r.fail("array of %d capabilities exceeds the limit of 64", n)
	}
	outer := r.left
	r.left = n
	var list [][]byte
	for r.err == nil && r.left > 0 {
		list = append(list, r.text())
	}
	if r.err == nil {
		r.left = outer
	}
	return list
}

func (f *ErrorFrame) decode(r *reader) { f.Code, f.Message = r.text(), r.text() }

func (f *OfferFrame) decode(r *reader) {
	f.Seq, f.Name, f.Slots = r.uint(maxUint), r.text(), r.uint(1<<20)
	if r.more() {
		f.Flags = r.uint(maxUint)
	}
	if r.more() {
		f.Description = r.text()
	}
	if r.more() {
		f.Arguments = r.text()
	}
	if r.more() {
		f.Note = r.text()
	}
	if r.more() {
		f.Schema = r.bytes(MaxSchema)
	}
}

func (f *OfferedFrame) decode(r *reader) {
	f.Seq, f.Code, f.Message = r.uint(maxUint), r.text(), r.text()
}

func (f *CallFrame) decode(r *reader) {
	f.ID, f.Name, f.Kind = r.uint(maxUint), r.text(), Kind(r.uint(uint64(maxKind)))
	f.Args, f.Input, f.Flags = r.bytes(MaxArgs), r.bytes(MaxInlineInput), r.uint(maxUint)
	f.Timeout, f.WaitFunction, f.WaitSlot, f.Retries = 0, 0, Forever, 0
	f.WindowOutput, f.WindowStderr = InitialWindow, InitialWindow
	f.On, f.Call, f.Caller = nil, nil, nil
	f.Job, f.Attempt, f.Origin = nil, 0, nil
	for _, n := range [...]*uint64{&f.Timeout, &f.WaitFunction, &f.WaitSlot, &f.Retries} {
		if !r.more() {
			return
		}
		*n = r.uint(maxUint)
	}
	if r.more() {
		f.On = r.text()
	}
	if r.more() {
		f.WindowOutput = r.uint(MaxWindow)
	}
	if r.more() {
		f.WindowStderr = r.uint(MaxWindow)
	}
	if r.more() {
		f.Call = r.text()
	}
	if r.more() {
		f.Caller = r.text()
	}
	if r.more() {
		f.Job = r.text()
	}
	if r.more() {
		f.Attempt = r.uint(maxUint)
	}
	if r.more() {
		f.Origin = r.text()
	}
}

func (f *DataFrame) decode(r *reader) {
	f.ID, f.Stream, f.Payload = r.uint(maxUint), Stream(r.uint(uint64(Stderr))), r.bytes(MaxFrame)
}

func (f *EOFFrame) decode(r *reader) { f.ID = r.uint(maxUint) }

func (f *GrantFrame) decode(r *reader) {
	f.ID, f.Stream, f.Bytes = r.uint(maxUint), Stream(r.uint(uint64(Stderr))), r.uint(MaxWindow)
}

func (f *CancelFrame) decode(r *reader) {
	f.ID, f.Code = r.uint(maxUint), nil
	if r.more() {
		f.Code = r.text()
	}
}

func (f *EndFrame) decode(r *reader) {
	f.ID, f.Source, f.Status = r.uint(maxUint), Source(r.uint(uint64(FromBus))), r.uint(255)
	f.Code, f.Message, f.Output, f.Call, f.Worker = nil, nil, nil, nil, nil
	if r.more() {
		f.Code = r.text()
	}
	if r.more() {
		f.Message = r.text()
	}
	if r.more() {
		f.Output = r.bytes(MaxFrame)
	}
	if r.more() {
		f.Call = r.text()
	}
	if r.more() {
		f.Worker = r.text()
	}
}
