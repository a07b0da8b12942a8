package vectors

import (
	"fmt"
	"time"
)

// Limits of PROTOCOL.md, sections 2 and 5.
const (
	maxFirst  = 4096
	maxNested = 16
	maxArgs   = 1011712
	maxInput  = 32768
	maxCredit = 4 << 20
	windowOut = 262144 // the default of both windows
)

// Breach is a rule that the other side has broken, whatever was being judged.
type Breach struct{ Rule, Reason string }

func (b *Breach) Error() string { return b.Reason }

// stream is a stream of a call. Its number says which side has opened the call, as DATA and GRANT
// of a stream have one direction each.
type stream struct{ id, number float64 }

// watch follows a connection. It knows what the other side may send.
type watch struct {
	begun, hello bool               // a frame, a HELLO has come
	progress     bool               // we have named the capability
	lastID       float64            // of the CALLs that have come
	whole        map[float64]bool   // calls of theirs whose input has ended
	calls        map[float64]int    // CALLs of ours by id, less their ENDs: a check may use one twice
	ended        map[float64]bool   // calls of ours that have ended
	theirs       map[stream]float64 // what they have granted and we have not sent
	ours         map[stream]float64 // what we have granted and they have not sent
	granted      map[stream]float64 // what they have granted by GRANT in all
}

func newWatch() watch {
	return watch{whole: map[float64]bool{}, calls: map[float64]int{}, ended: map[float64]bool{}, theirs: map[stream]float64{}, ours: map[stream]float64{}, granted: map[stream]float64{}}
}

// number returns an element, or what it is if it was left out.
func number(f []any, i int, otherwise float64) float64 {
	if i < len(f) {
		n, _ := f[i].(float64)
		return n
	}
	return otherwise
}

func binSize(f []any, i int) float64 {
	if i < len(f) {
		if m, ok := f[i].(map[string]any); ok {
			return float64(len(Bin(m)))
		}
	}
	return 0
}

// sent takes note of a frame that goes to the other side.
func (w *watch) sent(f []any) {
	for i, v := range f {
		if n, ok := v.(int); ok {
			f[i] = float64(n)
		}
	}
	id, kind := number(f, 1, 0), number(f, 2, 0)
	switch number(f, 0, 0) {
	case 1:
		if len(f) > 6 {
			list, _ := f[6].([]any)
			for _, name := range list {
				w.progress = w.progress || name == "progress"
			}
		}
	case 5:
		w.calls[id]++
		delete(w.ended, id)
		w.ours[stream{id, 1}], w.ours[stream{id, 2}] = number(f, 12, windowOut), number(f, 13, windowOut)
	case 6:
		w.theirs[stream{id, kind}] -= binSize(f, 3)
	case 8:
		w.ours[stream{id, kind}] += number(f, 3, 0)
	case 10:
		w.theirs[stream{id, 1}] -= binSize(f, 6)
	}
}

// came checks a frame of the other side, of that many bytes and with elements nested so deep.
func (w *watch) came(f []any, size, depth int) *Breach {
	first := !w.begun
	w.begun = true
	switch {
	case first && size > maxFirst:
		return &Breach{"C-2-1", fmt.Sprintf("its first frame has %d bytes, more than 4,096", size)}
	case depth > maxNested:
		return &Breach{"C-2-5", fmt.Sprintf("elements of a frame are nested %d deep, more than 16", depth)}
	}
	id, kind := number(f, 1, 0), number(f, 2, 0)
	s := stream{id, kind}
	fromAcceptor := false
	switch number(f, 0, 0) {
	case 1:
		if w.hello {
			return &Breach{"C-3.1-4", "a second HELLO came"}
		}
		w.hello = true
	case 5:
		return w.call(f, id)
	case 6:
		switch fromAcceptor = kind > 0; {
		case kind > 2:
			return &Breach{"C-5.2-3", fmt.Sprintf("DATA of stream %v came", kind)}
		case kind == 0 && w.whole[id]:
			return &Breach{"C-5.2-2", "DATA of stream 0 came after EOF or flag 1"}
		}
		if b := w.use(s, binSize(f, 3)); b != nil && !w.ended[id] {
			return b
		}
	case 7:
		if w.whole[id] {
			return &Breach{"C-5.2-1", "EOF came after EOF or flag 1"}
		}
		w.whole[id] = true
	case 8:
		fromAcceptor = kind == 0
		w.theirs[s] += number(f, 3, 0)
		w.granted[s] += number(f, 3, 0)
		if n := w.theirs[s]; n > maxCredit {
			return &Breach{"C-5.3-2", fmt.Sprintf("%.0f bytes of stream %v are granted and not used, more than 4 MiB", n, kind)}
		}
	case 10:
		fromAcceptor = true
		if kind > 0 && number(f, 3, 1) == 0 {
			return &Breach{"C-5.5-3", fmt.Sprintf("END has source %v and status 0", kind)}
		}
		if b := w.use(stream{id, 1}, binSize(f, 6)); b != nil && !w.ended[id] {
			return b
		}
	case 11:
		fromAcceptor = true
		if !w.progress {
			return &Breach{"C-5.9-1", "PROGRESS came, without the capability"}
		}
	}
	if fromAcceptor && w.ended[id] {
		return &Breach{"C-5.5-1", fmt.Sprintf("%s came after END", Text(f))}
	}
	if number(f, 0, 0) == 10 {
		w.calls[id]--
		w.ended[id] = w.calls[id] <= 0
	}
	return nil
}

// call checks a CALL.
func (w *watch) call(f []any, id float64) *Breach {
	last := w.lastID
	w.lastID = max(last, id)
	out, err := number(f, 12, windowOut), number(f, 13, windowOut)
	w.theirs[stream{id, 1}], w.theirs[stream{id, 2}] = out, err
	w.ours[stream{id, 0}] = 0
	w.whole[id] = int(number(f, 6, 0))&1 != 0
	switch {
	case id <= last:
		return &Breach{"C-5.1-1", fmt.Sprintf("CALL has the id %.0f after %.0f", id, last)}
	case out > maxCredit || err > maxCredit:
		return &Breach{"C-5.3-2", fmt.Sprintf("CALL has windows of %.0f and %.0f bytes, more than 4 MiB", out, err)}
	case binSize(f, 5) > maxInput:
		return &Breach{"C-2-7", fmt.Sprintf("CALL has %.0f bytes of input, more than 32,768", binSize(f, 5))}
	case binSize(f, 4) > maxArgs:
		return &Breach{"C-2-7", fmt.Sprintf("CALL has %.0f bytes of arguments, more than 1,011,712", binSize(f, 4))}
	}
	return nil
}

// use takes bytes that have come from what was granted. Of calls that were not opened in notation
// nothing is known.
func (w *watch) use(s stream, n float64) *Breach {
	if _, ok := w.ours[s]; !ok {
		return nil
	}
	if w.ours[s] -= n; w.ours[s] < 0 {
		return &Breach{"C-5.3-1", fmt.Sprintf("%.0f bytes of stream %v came that were not granted", -w.ours[s], s.number)}
	}
	return nil
}

// depth is how deep the elements of a value are nested.
func depth(v any) (d int) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			d = max(d, depth(e))
		}
		return d + 1
	case map[string]any:
		for _, e := range v {
			d = max(d, depth(e))
		}
		return d + 1
	}
	return 0
}

// Settle ends what is sent, and reads what the other side still has to send: it may break a rule
// with that.
func (c *Conn) Settle() {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.Patience = 0
	c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	for {
		if _, err := c.Next(); err != nil {
			return
		}
	}
}
