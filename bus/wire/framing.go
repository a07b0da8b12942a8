package wire

import "fbus/bus/args"

// reader reads the elements of a frame.
type reader struct{ args.Reader }

// PeekType returns the type of the frame in body, which is a frame without its
// length prefix. Decode reads the rest.
func PeekType(body []byte) (Type, error) {
	r := reader{args.Reader{B: body}}
	t := r.start()
	return t, r.Err
}

// start reads the array header and the type.
func (r *reader) start() Type {
	r.Left = r.ArrayLen()
	return Type(r.Uint(255))
}

// Decoder decodes frames one after the other. It exists so that decoding does
// not allocate; it is not safe for concurrent use.
type Decoder struct{ r reader }

// Decode reads body, a frame without its length prefix, into f. Elements that
// f does not know are skipped; a wrong type, arity, range or length is an error
// that wraps [ErrMalformed].
func (d *Decoder) Decode(body []byte, f Frame) error {
	r := &d.r
	*r = reader{args.Reader{B: body}}
	if t := r.start(); r.Err == nil && t != f.FrameType() {
		r.Fail("type %d where %d is due", t, f.FrameType())
	}
	f.decode(r)
	if r.Err == nil && (r.Left > 0 || len(r.B) > 0) {
		r.Skip()
	}
	return r.Err
}
