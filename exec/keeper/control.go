package keeper

import (
	"encoding/binary"
	"errors"
	"io"
	"time"

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
	msgCancel msgType = 'c' // number: TERM, grace, KILL
	msgKill   msgType = 'k' // number: KILL

	// Keeper to worker.
	msgStarted msgType = 'S' // report; only of programs that run longer than startedAfter
	msgFailed  msgType = 'F' // report: the program could not be executed
	msgExited  msgType = 'E' // report: the program exited, others of its tree may be left
	msgGone    msgType = 'G' // report: nothing is left
)

// packetSize keeps a packet well under the smallest usual socket buffer.
const packetSize = 32 << 10

// maxMessage is more than execve takes: nothing valid is longer.
const maxMessage = 16 << 20

// order starts one run.
type order struct {
	number uint64   // of the run; a late cancel must not hit the next one
	argv   []string // nil: the setup's
	env    []string // added to the setup's
	extra  int      // a further descriptor of the program, by its number there; 0 is none. Sent fourth
	cgroup bool     // the last descriptor sent is the run's cgroup
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

type packer []byte

func (p *packer) uint(v uint64) { *p = binary.AppendUvarint(*p, v) }

func (p *packer) str(s string) {
	p.uint(uint64(len(s)))
	*p = append(*p, s...)
}

func (p *packer) strs(list []string) {
	p.uint(uint64(len(list)))
	for _, s := range list {
		p.str(s)
	}
}

func (p *packer) bool(b bool) {
	if b {
		p.uint(1)
		return
	}
	p.uint(0)
}

// unpacker reads what packer wrote; the first fault stays in err.
type unpacker struct {
	buf []byte
	err error
}

func (u *unpacker) uint() uint64 {
	v, n := binary.Uvarint(u.buf)
	if n <= 0 {
		u.err, u.buf = errBadMessage, nil
		return 0
	}
	u.buf = u.buf[n:]
	return v
}

func (u *unpacker) str() string {
	n := u.uint()
	if n > uint64(len(u.buf)) {
		u.err, u.buf = errBadMessage, nil
		return ""
	}
	s := string(u.buf[:n])
	u.buf = u.buf[n:]
	return s
}

func (u *unpacker) strs() []string {
	n := u.uint()
	if n == 0 || n > uint64(len(u.buf)) {
		if n != 0 {
			u.err, u.buf = errBadMessage, nil
		}
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = u.str()
	}
	return list
}

func (s *Setup) pack() []byte {
	p := packer{byte(msgSetup)}
	p.str(s.Path)
	p.strs(s.Argv)
	p.strs(s.Env)
	p.str(s.Dir)
	p.uint(uint64(s.Grace))
	p.uint(s.limit)
	return p
}

func (s *Setup) unpack(b []byte) error {
	u := unpacker{buf: b}
	s.Path, s.Argv, s.Env, s.Dir = u.str(), u.strs(), u.strs(), u.str()
	s.Grace, s.limit = time.Duration(u.uint()), u.uint()
	return u.err
}

func (o *order) pack() []byte {
	p := make(packer, 0, 256)
	p = append(p, byte(msgRun))
	p.uint(o.number)
	p.strs(o.argv)
	p.strs(o.env)
	p.uint(uint64(o.extra))
	p.bool(o.cgroup)
	return p
}

func (o *order) unpack(b []byte) error {
	u := unpacker{buf: b}
	o.number, o.argv, o.env = u.uint(), u.strs(), u.strs()
	o.extra, o.cgroup = int(u.uint()), u.uint() != 0
	return u.err
}

// descriptors counts the descriptors that come with the order.
func (o *order) descriptors() int {
	n := 3
	if o.extra > 0 {
		n++
	}
	if o.cgroup {
		n++
	}
	return n
}

func (r *report) pack() []byte {
	p := make(packer, 0, 64)
	p = append(p, byte(r.kind))
	p.uint(r.number)
	p.uint(uint64(r.errno))
	p.uint(uint64(r.status))
	p.bool(r.ended)
	p.bool(r.gone)
	p.str(r.survivors)
	return p
}

func (r *report) unpack(b []byte) error {
	if len(b) == 0 {
		return io.EOF
	}
	r.kind = msgType(b[0])
	u := unpacker{buf: b[1:]}
	r.number, r.errno, r.status = u.uint(), int(u.uint()), uint32(u.uint())
	r.ended, r.gone, r.survivors = u.uint() != 0, u.uint() != 0, u.str()
	return u.err
}

// packets cuts a message, calling send for each piece; the last call gets the
// descriptors.
func packets(msg []byte, rights []byte, send func(packet, rights []byte) error) error {
	buf := make([]byte, 0, min(len(msg), packetSize)+1)
	for {
		n := min(len(msg), packetSize)
		last := n == len(msg)
		buf = append(buf[:0], 1)
		if last {
			buf[0] = 0
		}
		buf = append(buf, msg[:n]...)
		if last {
			return send(buf, rights)
		}
		if err := send(buf, nil); err != nil {
			return err
		}
		msg = msg[n:]
	}
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
