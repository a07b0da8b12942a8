package fanout

import (
	"io"
	"os"
	"sync/atomic"
)

// spillAt is how much of one output is kept in memory; the rest goes to a
// temporary file that has no name.
const spillAt = 1 << 20

// Output is what a call has written to stdout, until it is its turn.
type Output struct {
	mem  []byte
	file *os.File // nil: mem is all
	size int64
	last byte
	held *atomic.Int64
}

func (r *Runner) output() *Output {
	if o, ok := r.spare.Get().(*Output); ok {
		return o
	}
	return &Output{held: &r.held}
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if o.file == nil && len(o.mem)+len(p) > spillAt {
		f, err := os.CreateTemp("", "fbus-output-")
		if err != nil {
			return 0, err
		}
		os.Remove(f.Name())
		o.file = f
	}
	o.size += int64(len(p))
	o.last = p[len(p)-1]
	if o.file != nil {
		return o.file.Write(p)
	}
	o.mem = append(o.mem, p...)
	o.held.Add(int64(len(p)))
	return len(p), nil
}

// Size is how many bytes were written.
func (o *Output) Size() int64 { return o.size }

// Last is the last byte, 0 if there is none.
func (o *Output) Last() byte { return o.last }

// WriteTo implements io.WriterTo: it writes all of it.
func (o *Output) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(o.mem)
	if err != nil || o.file == nil {
		return int64(n), err
	}
	if _, err := o.file.Seek(0, io.SeekStart); err != nil {
		return int64(n), err
	}
	m, err := io.Copy(w, o.file)
	return int64(n) + m, err
}

// reset forgets what was written.
func (o *Output) reset() {
	o.held.Add(-int64(len(o.mem)))
	o.mem = o.mem[:0]
	if cap(o.mem) > 64<<10 {
		o.mem = nil
	}
	if o.file != nil {
		o.file.Close()
		o.file = nil
	}
	o.size, o.last = 0, 0
}
