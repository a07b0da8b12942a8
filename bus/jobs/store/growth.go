package store

import (
	"context"
	"io"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// growth is a draft as its readers see it.
type growth struct {
	mu      sync.Mutex // protects the fields below
	inline  []byte
	file    *os.File // in place of inline; closed after over was set
	size    int64
	over    bool          // nothing is added any more
	grown   chan struct{} // closed at the next change; nil: nobody waits for it
	readers []*DraftReader
}

// note shows what was written to readers.
func (g *growth) note(p *Draft) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inline, g.file, g.size = p.inline, p.file, p.Size
	g.wake()
}

// wake lets readers look again. g.mu is held.
func (g *growth) wake() {
	if g.grown != nil {
		close(g.grown)
		g.grown = nil
	}
}

// end is called when nothing is added any more, before the file is closed.
func (g *growth) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		g.over = true
		for _, r := range g.readers {
			r.open()
		}
		g.file = nil
		g.wake()
	}
}

// DraftReader reads a draft from its beginning while it is written. What it reads is not
// verified.
type DraftReader struct {
	g    *growth
	ctx  context.Context
	at   int64
	file *os.File // a descriptor of its own: the draft may be dropped
	err  error    // of open
}

// Reader returns a reader, which must be closed. nil: the draft is not written any more.
func (p *Draft) Reader(ctx context.Context) *DraftReader {
	g := &p.growth
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return nil
	}
	r := &DraftReader{g: g, ctx: ctx}
	g.readers = append(g.readers, r)
	return r
}

// open makes sure that the reader can read the file. g.mu is held.
func (r *DraftReader) open() {
	if r.file != nil || r.g.file == nil || r.err != nil {
		return
	}
	fd, err := unix.FcntlInt(r.g.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		r.err = os.NewSyscallError("dup", err)
		return
	}
	r.file = os.NewFile(uintptr(fd), r.g.file.Name())
}

// Read implements io.Reader. It waits for more until the draft is not written any more.
func (r *DraftReader) Read(b []byte) (int, error) {
	g := r.g
	for {
		g.mu.Lock()
		if r.at < g.size {
			r.open()
			n, err := 0, r.err
			if r.file == nil && err == nil {
				n = copy(b, g.inline[r.at:g.size])
			}
			size := g.size
			g.mu.Unlock()
			if r.file != nil {
				n, err = r.file.ReadAt(b[:min(int64(len(b)), size-r.at)], r.at)
				if n > 0 {
					err = nil
				}
			}
			r.at += int64(n)
			return n, err
		}
		if g.over {
			g.mu.Unlock()
			return 0, io.EOF
		}
		if g.grown == nil {
			g.grown = make(chan struct{})
		}
		grown := g.grown
		g.mu.Unlock()
		select {
		case <-grown:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

// Close releases the reader.
func (r *DraftReader) Close() error {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	r.g.readers = slices.DeleteFunc(r.g.readers, func(o *DraftReader) bool { return o == r })
	if r.file != nil {
		return r.file.Close()
	}
	return nil
}
