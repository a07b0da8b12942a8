package exec

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/exec/keeper"

	"golang.org/x/sys/unix"
)

// resident is a process that stays for many calls.
type resident struct {
	s       *residents
	process *keeper.Process
	node    string
	stdin   *os.File
	in      syscall.RawConn
	hold    unreadEnd
	started time.Time
	replies *stream // where it answers
	said    *stream // its stdout, if it answers elsewhere
	errs    *stream
	readers sync.WaitGroup // what reads errs, said and, where answers name their calls, replies; what writes stdin

	// Guarded by residents.mu.
	held    int       // calls
	taken   int       // calls, all in all
	listed  bool      // it is in residents.free
	dropped bool      // it is out of service
	buried  bool      // nothing of it is left
	since   time.Time // when its last call ended, if MaxIdle is set

	answered atomic.Bool   // a call
	gone     chan struct{} // closed when nothing of it is left
	end      keeper.End    // valid after gone
	read     int64         // valid after gone: how much of stdin it took

	mu        sync.Mutex    // guards what follows, and the writing of stdin
	asked     int64         // bytes meant for stdin
	written   int64         // bytes in the pipe
	pending   []byte        // what did not fit, flush writes it
	flushes   chan struct{} // closed when flush has ended; nil if none runs
	shut      bool          // nothing is written any more
	told      signal        // how it was told to end
	killed    bool          // with the calls that it held
	retired   *time.Timer
	calls     []*holding
	condemned bool     // to end as soon as it holds only calls that are overdue
	next      uint64   // the id of its next call
	talking   *holding // whom hear is writing to

	errMu  sync.Mutex // guards what follows; held while stderr is read and passed on
	log    lineLog
	errBuf [4096]byte

	chat // the state of LineByLine
	rpc  // the state of JSONRPC
}

// holding is a call that a process holds.
type holding struct {
	id      uint64
	c       *Call
	begin   int64 // where its request begins in all of stdin
	size    int
	sent    bool   // its request was written, or given to flush
	why     ending // why fbus ended it
	overdue bool   // it was ended, and the process would not let it go
	back    bool   // the request was taken back: the process knows nothing of it
	mute    bool   // Spec.Timeout has ended it, and the program had said nothing
	hinted  bool   // its caller was told what that may mean

	// Of JSONRPC.
	silent bool          // the program said nothing between the request and its end
	got    bool          // there is an answer, or will be at once
	done   chan struct{} // closed when answer is there
	answer answer
}

// startResident starts a process and what reads its outputs.
func startResident(s *residents, node string) (p *resident, err error) {
	p = &resident{s: s, node: node, hold: noUnreadEnd, gone: make(chan struct{}), started: time.Now()}
	p.log.f = s.f
	fds, err := p.open()
	defer closeFDs(fds[:])
	if err == nil {
		give := fds[:3]
		if fds[3] >= 0 {
			give = fds[:]
		}
		p.process, err = s.f.pool.Start(keeper.Order{Env: callEnviron(&Call{}, node), Extra: s.f.spec.ReplyFD}, give...)
	}
	if err != nil {
		p.close()
		if p.replies != nil {
			p.replies.file.Close()
		}
		return nil, err
	}
	p.chat.init(p)
	p.readers.Go(p.hear) // all end with the outputs, at the latest after finish
	if p.said != nil {
		p.readers.Go(p.overhear)
	}
	if s.f.spec.Resident == JSONRPC {
		p.readers.Go(p.receive)
	}
	return p, nil
}

// open makes the pipes; the program's ends are in the order in which a keeper
// takes them.
func (p *resident) open() (fds [4]int, err error) {
	fds = [4]int{-1, -1, -1, -1}
	var ours int
	if ours, fds[0], p.hold, err = newStdin(); err != nil {
		return fds, err
	}
	if p.stdin, err = nonblocking(ours, "stdin"); err != nil {
		return fds, err
	}
	if p.in, err = p.stdin.SyscallConn(); err != nil {
		return fds, err
	}
	if p.replies, fds[1], err = newStream(nil); err != nil {
		return fds, err
	}
	if p.s.f.spec.ReplyFD > 0 {
		p.said = p.replies
		if p.replies, fds[3], err = newStream(nil); err != nil {
			return fds, err
		}
	}
	if p.errs, fds[2], err = newStream(nil); err != nil {
		return fds, err
	}
	return fds, nil
}

// close closes all but replies.
func (p *resident) close() {
	if p.stdin != nil {
		p.stdin.Close()
	}
	p.hold.close()
	for _, s := range []*stream{p.said, p.errs} {
		if s != nil {
			s.file.Close()
		}
	}
}

// watch follows the process to its end and cleans up behind it.
func (p *resident) watch() {
	s := p.s
	exited := false
	end, _ := p.process.Wait(func(end keeper.End) {
		exited = true
		p.died(&end)
	})
	flushes := p.release()
	p.stdin.Close()
	if flushes != nil {
		<-flushes
	}
	for _, out := range []*stream{p.errs, p.said, p.replies} {
		if out != nil {
			out.finish()
		}
	}
	p.readers.Wait()
	p.log.flush()
	if !exited {
		p.died(&end)
	}
	p.end = end
	p.read = p.written - int64(p.hold.count())
	if end.Survivors != "" {
		s.f.logf("%s: could not be killed: %s", s.f.spec.Name, end.Survivors)
	}
	p.close()
	close(p.gone)
	s.gone(p)
}

// release makes sure that nothing is written to stdin any more.
func (p *resident) release() (flushes <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = true
	if p.retired != nil {
		p.retired.Stop()
	}
	return p.flushes
}

// died takes a process out of service that ended by itself.
func (p *resident) died(end *keeper.End) {
	p.errMu.Lock()
	p.errs.conn.Control(p.drain)
	last := p.log.last
	p.errMu.Unlock()
	p.mu.Lock()
	unasked, idle := p.told == 0, len(p.calls) == 0
	p.mu.Unlock()
	if !unasked {
		p.s.replace(p, "")
		return
	}
	why := p.s.f.whyEnded(end, last)
	if idle && p.answered.Load() {
		p.s.f.logf("%s: replaced: %s", p.s.f.spec.Name, why)
	}
	p.s.replace(p, why)
}

// hear passes stderr on: to the call that the process holds if it holds one,
// else to the log.
func (p *resident) hear() {
	p.errs.conn.Read(func(fd uintptr) bool {
		for {
			p.errMu.Lock()
			n, err := p.passErr(fd)
			p.errMu.Unlock()
			if n == 0 {
				return err != unix.EAGAIN
			}
		}
	})
	p.errMu.Lock()
	defer p.errMu.Unlock()
	p.errs.conn.Control(p.drain) // time was up: the rest
}

// drain passes on what stderr holds, and not what a flood adds meanwhile.
func (p *resident) drain(fd uintptr) {
	for range bufSize / len(p.errBuf) {
		if n, _ := p.passErr(fd); n == 0 {
			return
		}
	}
}

func (p *resident) passErr(fd uintptr) (n int, err error) {
	if n, err = keeper.ReadFD(int(fd), p.errBuf[:]); n > 0 {
		p.tellErr(p.errBuf[:n])
	}
	return n, err
}

func (p *resident) tellErr(b []byte) {
	p.mu.Lock()
	var h *holding
	if len(p.calls) == 1 && p.calls[0].c.Stderr != nil {
		h = p.calls[0]
	}
	p.talking = h
	p.mu.Unlock()
	if h == nil {
		p.log.Write(b)
		return
	}
	p.log.remember(b)
	p.pass(h, b)
}

// pass writes to the stderr of a call that is p.talking. errMu is held.
func (p *resident) pass(h *holding, b []byte) {
	h.c.Stderr.Write(b)
	p.mu.Lock()
	p.talking = nil
	p.mu.Unlock()
}

// overhear logs stdout where answers come from another descriptor.
func (p *resident) overhear() {
	log := lineLog{f: p.s.f}
	io.Copy(&log, untilFinished{p.said})
	log.flush()
}

// untilFinished reads a stream to its end, or after finish until it is empty.
type untilFinished struct{ s *stream }

func (u untilFinished) Read(b []byte) (n int, err error) {
	try := func(fd uintptr) bool {
		n, err = keeper.ReadFD(int(fd), b)
		return err != unix.EAGAIN
	}
	if u.s.conn.Read(try) != nil {
		u.s.conn.Control(func(fd uintptr) { try(fd) })
	}
	if n == 0 && err == nil || err == unix.EAGAIN {
		err = io.EOF
	}
	return n, err
}
