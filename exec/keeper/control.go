package keeper

import (
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// A worker and its keepers exchange messages. Both are the same binary, so the
// protocol has no versions. A message is a type and a payload, cut into packets of
// a SOCK_SEQPACKET socket: each begins with a byte that is 1 if more of the
// message follows, and the last packet carries the descriptors.
type msgType byte

const (
	// Worker to keeper.
	msgSetup  msgType = 's' // Setup: once, first
	msgRun    msgType = 'r' // order, with the program's descriptors 0-2 and those that the order names
	msgCancel msgType = 'c' // order: TERM, grace, KILL
	msgKill   msgType = 'k' // order: KILL

	// Keeper to worker.
	msgReady  msgType = 'R' // report: it can start programs
	msgBegun  msgType = 'B' // report: the program was executed, if the order asks for that
	msgFailed msgType = 'F' // report: the program could not be executed
	msgExited msgType = 'E' // report: the program exited, others of its tree may be left
	msgGone   msgType = 'G' // report: nothing is left
)

// packetSize keeps a packet well under the smallest usual socket buffer.
const packetSize = 32 << 10

// maxMessage is more than execve takes: nothing valid is longer.
const maxMessage = 16 << 20

// order starts one run. Cancel and kill have the number alone.
type order struct {
	number uint64 // of the run; a late cancel must not hit the next one
	Order         // its further descriptor is sent fourth
	cgroup bool   // the last descriptor sent is the run's cgroup
}

// report is the only message from a keeper.
type report struct {
	kind      msgType
	number    uint64
	errno     int    // msgFailed
	status    uint32 // msgExited: as wait4 gives it
	ended     bool   // msgExited: cancel or kill came before the program exited
	gone      bool   // msgExited: nothing is left, no msgGone follows
	survivors string // msgGone: what could not be killed, in words
}

var errBadMessage = errors.New("malformed keeper message")

// message has the payload of a message.
type message interface {
	fields(*coder) // codes each field, in the same order both ways
}

func (s *Setup) fields(c *coder) {
	c.str(&s.Path)
	c.strs(&s.Argv)
	c.strs(&s.Env)
	c.str(&s.Dir)
	number(c, &s.Grace)
	number(c, &s.Memory)
	number(c, &s.slack)
}

func (o *order) fields(c *coder) {
	number(c, &o.number)
	c.strs(&o.Argv)
	c.strs(&o.Env)
	number(c, &o.Extra)
	c.flag(&o.Tell)
	c.flag(&o.cgroup)
}

func (r *report) fields(c *coder) {
	number(c, &r.number)
	number(c, &r.errno)
	number(c, &r.status)
	c.flag(&r.ended)
	c.flag(&r.gone)
	c.str(&r.survivors)
}

// coder packs the fields of a message, or unpacks them; then the first fault stays in
// err.
type coder struct {
	buf       []byte
	unpacking bool
	err       error
}

func pack(t msgType, m message) []byte {
	c := coder{buf: append(make([]byte, 0, 256), byte(t))}
	m.fields(&c)
	return c.buf
}

func unpack(payload []byte, m message) error {
	c := coder{buf: payload, unpacking: true}
	m.fields(&c)
	return c.err
}

func number[T ~int | ~int64 | ~uint32 | ~uint64 | ~uintptr](c *coder, v *T) {
	if !c.unpacking {
		c.buf = binary.AppendUvarint(c.buf, uint64(*v))
		return
	}
	n, size := binary.Uvarint(c.buf)
	if size <= 0 {
		n, size, c.err = 0, len(c.buf), errBadMessage
	}
	*v, c.buf = T(n), c.buf[size:]
}

func (c *coder) flag(v *bool) {
	n := 0
	if *v {
		n = 1
	}
	number(c, &n)
	*v = n != 0
}

// count codes a length. What has that length takes at least as many bytes.
func (c *coder) count(n int) int {
	number(c, &n)
	if c.unpacking && uint(n) > uint(len(c.buf)) {
		c.err = errBadMessage
		return 0
	}
	return n
}

func (c *coder) str(s *string) {
	n := c.count(len(*s))
	if c.unpacking {
		*s, c.buf = string(c.buf[:n]), c.buf[n:]
	} else {
		c.buf = append(c.buf, *s...)
	}
}

func (c *coder) strs(list *[]string) {
	n := c.count(len(*list))
	if c.unpacking && n > 0 {
		*list = make([]string, n)
	}
	for i := range *list {
		c.str(&(*list)[i])
	}
}

// descriptors counts the descriptors that come with the order.
func (o *order) descriptors() int {
	n := 3
	if o.Extra > 0 {
		n++
	}
	if o.cgroup {
		n++
	}
	return n
}

// receiver puts packets together on the keeper's side, where reads block.
type receiver struct {
	fd  int
	buf [packetSize + 1]byte
	oob [256]byte
}

// next returns the next message and the descriptors that came with it. Zero
// bytes, which is EOF on a SEQPACKET socket, are io.EOF.
func (r *receiver) next() (t msgType, payload []byte, fds []int, err error) {
	var msg []byte
	for {
		n, oobn, _, _, err := unix.Recvmsg(r.fd, r.buf[:], r.oob[:], unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, nil, nil, err
		case n == 0:
			return 0, nil, nil, io.EOF
		}
		if oobn > 0 {
			fds = append(fds, rightsOf(r.oob[:oobn])...)
		}
		msg = append(msg, r.buf[1:n]...)
		if len(msg) > maxMessage {
			return 0, nil, fds, errBadMessage
		}
		if r.buf[0] == 0 {
			break
		}
	}
	if len(msg) == 0 {
		return 0, nil, fds, errBadMessage
	}
	return msgType(msg[0]), msg[1:], fds, nil
}

func rightsOf(oob []byte) []int {
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}
