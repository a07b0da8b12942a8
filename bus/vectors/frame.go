// Package vectors plays the vectors and transcripts of PROTOCOL.md, section 11, against an
// implementation of the protocol. It writes and reads frames without package wire, so that it
// judges that, too.
package vectors

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// Types of frames that this package treats in a way of their own.
const (
	typeError = 2
	typeOffer = 3
	typeCall  = 5
	typeGrant = 8
)

// Bytes encodes a frame that is written in the notation of the files, as encoding/json decodes it.
// Integers may be int as well.
func Bytes(frame any) []byte {
	if m, ok := frame.(map[string]any); ok {
		return unhex(m["hex"])
	}
	body := appendElement(nil, frame)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func unhex(text any) []byte {
	b, err := hex.DecodeString(text.(string))
	if err != nil {
		panic(err) // a file of ours is wrong
	}
	return b
}

// Bin returns the bytes of a bin in notation.
func Bin(v any) []byte {
	m := v.(map[string]any)
	if n, ok := m["zero"].(float64); ok {
		return make([]byte, int(n))
	}
	return unhex(m["bin"])
}

// NewBin writes bytes in notation.
func NewBin(b []byte) any { return map[string]any{"bin": hex.EncodeToString(b)} }

func appendElement(dst []byte, v any) []byte {
	var b bytes.Buffer
	e := msgpack.NewEncoder(&b)
	e.UseCompactInts(true)
	switch v := v.(type) {
	case nil: // any value: in place of a str
		e.EncodeString("")
	case int:
		e.EncodeUint(uint64(v))
	case float64:
		e.EncodeUint(uint64(v))
	case string:
		e.EncodeString(v)
	case map[string]any:
		e.EncodeBytes(Bin(v))
	case []any:
		dst = append(dst, 0xdc, byte(len(v)>>8), byte(len(v)))
		for _, element := range v {
			dst = appendElement(dst, element)
		}
		return dst
	default:
		panic(fmt.Sprintf("%T is not notation", v))
	}
	return append(dst, b.Bytes()...)
}

// notation writes what msgpack has decoded in the notation of the files.
func notation(v any) any {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return NewBin(v)
	case []any:
		list := []any{}
		for _, element := range v {
			list = append(list, notation(element))
		}
		return list
	}
	var n float64
	fmt.Sscan(fmt.Sprint(v), &n)
	return n
}

// Text shows a frame in notation. What is long is abbreviated.
func Text(frame any) string {
	if list, ok := frame.([]any); ok {
		short := slices.Clone(list)
		for i, v := range short {
			if m, ok := v.(map[string]any); ok {
				if text, ok := m["bin"].(string); ok && len(text) > 200 {
					short[i] = map[string]any{"bin": text[:40] + "…", "bytes": len(text) / 2}
				}
			}
		}
		frame = short
	}
	b, _ := json.Marshal(frame)
	if len(b) > 300 {
		return string(b[:300]) + "…"
	}
	return string(b)
}

// Matches reports whether a frame is what a pattern describes, which may have fewer elements.
func Matches(pattern, frame any) bool {
	want, got := pattern.([]any), frame.([]any)
	if len(got) < len(want) {
		return false
	}
	for i := range want {
		if want[i] != nil && !reflect.DeepEqual(want[i], got[i]) {
			return false
		}
	}
	return true
}

// Conn is a connection on which frames are written and read in notation.
type Conn struct {
	net.Conn
	r *bufio.Reader

	Patience time.Duration // how long the other side may be silent; 0: what the owner has set

	Suffix string   // of the names of functions: another one than in the files
	Log    []string // the last frames
	Heard  bool     // a frame has come
	Broken *Breach  // the first rule that the other side has broken in any frame; nil: none

	watch watch
}

// NewConn returns a Conn over nc.
func NewConn(nc net.Conn) *Conn {
	return &Conn{Conn: nc, r: bufio.NewReaderSize(nc, 64<<10), watch: newWatch()}
}

// note adds a line to the log, which keeps the last 40.
func (c *Conn) note(line string) {
	if len(c.Log) == 40 {
		c.Log = append(c.Log[:0], c.Log[1:]...)
	}
	c.Log = append(c.Log, line)
}

// Write sends bytes that need not be frames.
func (c *Conn) Write(p []byte) (int, error) {
	c.note(fmt.Sprintf("> %.200x", p))
	return c.Conn.Write(p)
}

// WriteBehind has a goroutine write from now on, so that whoever waits to write reads all the same
// (C-2-9).
func (c *Conn) WriteBehind() { c.Conn = &behind{Conn: c.Conn} }

// behind is a connection that writes without waiting.
type behind struct {
	net.Conn

	mu      sync.Mutex // protects the fields below
	queue   net.Buffers
	writing bool
}

// Write implements io.Writer.
func (b *behind) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, bytes.Clone(p))
	if !b.writing {
		b.writing = true
		go b.write() // ends when all is written, or with the connection
	}
	return len(p), nil
}

func (b *behind) write() {
	for {
		b.mu.Lock()
		queue := b.queue
		b.queue, b.writing = nil, len(queue) > 0
		b.mu.Unlock()
		if len(queue) == 0 {
			return
		}
		queue.WriteTo(b.Conn) // an error shows at the next read
	}
}

// rename adds the suffix to the name of a function.
func (c *Conn) rename(frame any) any {
	if raw, ok := frame.(map[string]any); ok && c.Suffix != "" {
		return c.renameBytes(raw)
	}
	f, ok := frame.([]any)
	if !ok || c.Suffix == "" || len(f) < 3 || !isType(f, typeOffer) && !isType(f, typeCall) {
		return frame
	}
	name, ok := f[2].(string)
	if !ok || name == "" || bytes.ContainsAny([]byte(name), ". ") {
		return frame
	}
	return append([]any{f[0], f[1], name + c.Suffix}, f[3:]...)
}

// renameBytes does so in an OFFER that the files have in hexadecimal, as notation has no map.
func (c *Conn) renameBytes(frame map[string]any) any {
	b := unhex(frame["hex"])
	if len(b) < 4 {
		return frame
	}
	rest := bytes.NewReader(b[4:])
	d := msgpack.NewDecoder(rest)
	n, err := d.DecodeArrayLen()
	if err != nil || n < 4 || n > len(b) {
		return frame
	}
	elements := make([]msgpack.RawMessage, n)
	for i := range elements {
		if elements[i], err = d.DecodeRaw(); err != nil {
			return frame
		}
	}
	var name string
	if rest.Len() > 0 || elements[0][0] != typeOffer || msgpack.Unmarshal(elements[2], &name) != nil {
		return frame
	}
	elements[2] = appendElement(nil, name+c.Suffix)
	body := []byte{0xdc, byte(n >> 8), byte(n)}
	for _, e := range elements {
		body = append(body, e...)
	}
	return map[string]any{"hex": hex.EncodeToString(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))}
}

func isType(frame any, t int) bool {
	f, ok := frame.([]any)
	return ok && len(f) > 0 && (f[0] == float64(t) || f[0] == t)
}

// Send writes frames. An error shows at the next read, as the other side may have said why.
func (c *Conn) Send(frames ...any) { c.Conn.Write(c.encode(frames)) }

func (c *Conn) encode(frames []any) (all []byte) {
	for _, f := range frames {
		f = c.rename(f)
		if list, ok := f.([]any); ok {
			c.watch.sent(slices.Clone(list))
		}
		c.note("> " + Text(f))
		all = append(all, Bytes(f)...)
	}
	return all
}

// Next reads a frame.
func (c *Conn) Next() ([]any, error) {
	if c.Patience > 0 {
		c.SetDeadline(time.Now().Add(c.Patience))
	}
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.note("< (closed)")
		}
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > 1<<20 {
		return nil, fmt.Errorf("a frame of %d bytes came", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	var elements []any
	if err := msgpack.Unmarshal(body, &elements); err != nil || len(elements) == 0 {
		return nil, fmt.Errorf("%x is not a frame: %v", body, err)
	}
	frame := typed(notation(elements).([]any))
	c.note("< " + Text(frame))
	c.Heard = true
	if b := c.watch.came(frame, int(size), depth(elements)); c.Broken == nil {
		c.Broken = b
	}
	return frame, nil
}

// kinds are the types of the elements of each frame: s is str, b is bin.
var kinds = map[float64]string{
	1: "uuusss.s", 2: "uss", 3: "uusuussss", 4: "uuss", 5: "uusubbuuuuusuusssuss",
	6: "uuub", 9: "uus", 10: "uuuussbss", 11: "uuuus",
}

// typed returns a frame whose str and bin are as PROTOCOL.md writes them: a sender may exchange
// the two.
func typed(frame []any) []any {
	t, _ := frame[0].(float64)
	for i, kind := range kinds[t] {
		if i >= len(frame) {
			break
		}
		switch v := frame[i].(type) {
		case string:
			if kind == 'b' {
				frame[i] = NewBin([]byte(v))
			}
		case map[string]any:
			if kind == 's' {
				frame[i] = string(Bin(v))
			}
		}
	}
	return frame
}

// Expect reads the next frame, which must match. GRANTs are skipped if they are not what is
// expected.
func (c *Conn) Expect(pattern any) ([]any, error) {
	pattern = c.rename(pattern)
	for {
		frame, err := c.Next()
		switch {
		case err != nil:
			return nil, fmt.Errorf("waiting for %s: %w", Text(pattern), err)
		case Matches(pattern, frame):
			return frame, nil
		case !isType(frame, typeGrant):
			return nil, fmt.Errorf("%s came, not %s", Text(frame), Text(pattern))
		}
	}
}

// Ended reads to the end of the connection, and returns the code of an ERROR, "" if there was none.
func (c *Conn) Ended() (code string, err error) {
	for {
		frame, err := c.Next()
		var ne net.Error
		switch {
		case errors.As(err, &ne) && ne.Timeout():
			return "", fmt.Errorf("the connection was not closed: %w", err)
		case err != nil: // some systems report a reset in place of the end
			return code, nil
		case isType(frame, typeError) && len(frame) > 1:
			code, _ = frame[1].(string)
		}
	}
}

// Peek waits until so many bytes have come, and leaves them there.
func (c *Conn) Peek(n int) ([]byte, error) { return c.r.Peek(n) }
