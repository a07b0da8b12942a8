package store

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"fbus/bus/args"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sys/unix"
)

// inlineSize is the longest part that the store's file holds. A longer one has a file of
// its own.
const inlineSize = 32 << 10

// Spool is the directory of the large parts.
type Spool struct {
	dir    string
	shares *Shares // counts the bytes of all parts
	inRoom func(bytes int64, output bool, write func() error) error
	link   func(old, new string) error // a test makes it fail
	warn   func(format string, args ...any)
	// Evict makes room by deleting old results, and reports whether it has deleted any. It is
	// set before the first draft; nil: it cannot.
	Evict func(full error) bool

	mu     sync.Mutex // protects the fields below
	left   []string   // names that could not be removed: the disk fails
	failed string     // why the last file could not be written, "" if it could
}

const tmpPrefix = "tmp-"

// Draft is a part that is being written: in memory, and beyond inlineSize in a file.
type Draft struct {
	Payload
	inline []byte
	spool  *Spool
	evict  func(full error) bool
	file   *os.File
	tmp    string
	poster string
	wanted int64 // bytes that were to be written
	Failed error // why it could not be written; set in Write
	Beyond int64 // how far it may exceed --max-spool
	Copies int64 // how many times more its bytes count: see [Shares.Copies]
	// Counts has it go on when it finds no room within the bounds: it is dropped, and only
	// counted, until it has more bytes than there can ever be room for.
	Counts bool
	// Output is for what an accepted job writes, which may take room that a post may not.
	Output bool

	growth growth
}

// NewDraft begins a part of a job of the poster with that key.
func (s *Spool) NewDraft(poster string) *Draft {
	return &Draft{spool: s, evict: s.Evict, poster: poster}
}

// Write implements io.Writer.
func (p *Draft) Write(b []byte) (n int, err error) {
	p.wanted += int64(len(b))
	if p.Failed == nil {
		if p.Failed = p.write(b); p.Failed == nil {
			p.growth.note(p)
			return len(b), nil
		}
		if p.Counts {
			p.Drop()
		}
	}
	if p.Counts && errors.As(p.Failed, new(*FullError)) && !IsFull(p.Failed) {
		if p.TooLarge(0) == nil {
			return len(b), nil
		}
		p.Failed = p.TooLarge(0)
	}
	return 0, p.Failed
}

// TooLarge returns an error if there can never be room for the part and so many bytes more.
func (p *Draft) TooLarge(more int64) error {
	if most := p.spool.shares.MostBytes(p.poster); p.Wanted()+more > most {
		return &TooLargeError{Who: callerOf(p.poster), Most: most}
	}
	return nil
}

func (p *Draft) write(b []byte) error {
	if err := p.TooLarge(0); err != nil && p.evict != nil { // old results must not go for it
		return err
	}
	err := p.withRoom(func() error {
		return p.spool.shares.TakeBytes(p.poster, int64(len(b))*(1+p.Copies), p.Beyond)
	})
	if err != nil {
		return err
	}
	p.Size += int64(len(b))
	p.Sum = crc32.Update(p.Sum, castagnoli(), b)
	if p.file == nil {
		if p.inline = append(p.inline, b...); p.Size <= inlineSize {
			return nil
		}
		b = p.inline
	}
	err = p.withRoom(func() error {
		add := func() error {
			if p.file == nil {
				f, err := os.CreateTemp(p.spool.dir, tmpPrefix)
				if err != nil {
					return err
				}
				p.file, p.tmp, p.inline = f, f.Name(), nil
			}
			n, err := p.file.Write(b)
			b = b[n:]
			return err
		}
		if p.evict == nil { // the writer
			return add()
		}
		return p.spool.inRoom(int64(len(b)), p.Output, add)
	})
	if path := (*os.PathError)(nil); errors.As(err, &path) { // its own name means nothing to anybody
		path.Path = p.spool.dir
	}
	if err != nil {
		return p.spool.fails(err)
	}
	return nil
}

// withRoom repeats a write while there is no room for it and old results can be deleted.
func (p *Draft) withRoom(write func() error) error {
	for {
		if err := write(); err == nil || p.evict == nil || !p.evict(Wrap(err)) {
			return err
		}
	}
}

func partFile(id ID, part byte, attempt int) string {
	return fmt.Sprintf("%s.%c.%d", id, part, attempt)
}

// Wanted returns how many bytes were counted, or would have been.
func (p *Draft) Wanted() int64 { return p.wanted * (1 + p.Copies) }

// Over reports whether the poster exceeds a bound, and the part has bytes to drop.
func (p *Draft) Over() bool { return p.Size > 0 && p.spool.shares.Over(p.poster) }

// Takes returns how many bytes of the file a new job takes at most, with its parts.
func Takes(parts ...*Draft) int64 {
	n := int64(jobRoom)
	for _, p := range parts {
		if p.file == nil {
			n += 2 * p.Size
		}
	}
	return n
}

// OutputTakes returns how many bytes of the file the end of a job takes at most, with its history
// and its postbacks, beyond those that its post has reserved.
func OutputTakes(j *Job, out, stderr *Draft) int64 {
	copies := j.PostsBack() * (Takes(out) - jobRoom)
	return max(0, Takes(out, stderr)+copies+int64(len(j.Tries))*tryRoom-jobRoom-jobRoom/2)
}

// tryRoom is about what an attempt takes in the record of a job.
const tryRoom = 256

// Keep syncs and names the file. The record that names it is written afterwards.
func (p *Draft) Keep(id ID, part byte, attempt int) error {
	p.growth.end()
	if p.file == nil {
		return nil
	}
	name := partFile(id, part, attempt)
	err := p.file.Sync()
	if err == nil {
		err = os.Rename(p.tmp, filepath.Join(p.spool.dir, name))
	}
	if err == nil {
		p.tmp, p.File = "", name
		err = syncDir(p.spool.dir)
	}
	if err != nil {
		return p.spool.fails(err)
	}
	p.file.Close()
	p.spool.NoteFailure("")
	return nil
}

// Drop deletes a part that no record names.
func (p *Draft) Drop() {
	if p == nil {
		return
	}
	p.growth.end()
	p.spool.shares.AddBytes(p.poster, -p.Size*(1+p.Copies))
	p.Size = 0
	if p.file != nil {
		p.file.Close()
	}
	if p.tmp != "" {
		p.spool.Remove(filepath.Base(p.tmp))
	} else if p.File != "" {
		p.spool.Remove(p.File)
	}
	p.tmp, p.File = "", ""
}

func sumData(data []byte) uint32 { return crc32.Checksum(data, castagnoli()) }

// Share links the file of one job as a part of another. A file with its final name never
// changes, and a copy would take as much room again.
func (s *Spool) Share(p Payload, id ID, part byte) (Payload, error) {
	name := partFile(id, part, 0)
	err := s.link(filepath.Join(s.dir, p.File), filepath.Join(s.dir, name))
	switch {
	case err == nil, errors.Is(err, os.ErrExist): // left by a commit that failed
		err = syncDir(s.dir)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EMLINK): // the filesystem has no links, or too many
		err = s.copy(p, id, part)
	case errors.Is(err, os.ErrNotExist): // it was deleted: that is found when the job runs
		err = nil
	}
	if err != nil {
		return Payload{}, Wrap(err)
	}
	p.File = name
	return p, nil
}

// copy is Share on a filesystem without links.
func (s *Spool) copy(p Payload, id ID, part byte) error {
	f, err := openNoFollow(filepath.Join(s.dir, p.File), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	d := s.NewDraft("")
	d.Copies = -1 // it is counted when it is committed, like a link
	d.evict = nil // the writer, which would delete results, is here
	if _, err = io.Copy(d, f); err == nil {
		err = d.Keep(id, part, 0)
	}
	if err != nil {
		d.Drop()
	}
	return err
}

// Remove deletes files. Sweep tries again with those that a failing disk keeps.
func (s *Spool) Remove(names ...string) {
	for _, name := range names {
		err := os.Remove(filepath.Join(s.dir, name))
		if err == nil || errors.Is(err, os.ErrNotExist) {
			continue
		}
		s.mu.Lock()
		s.left = append(s.left, name)
		s.mu.Unlock()
	}
}

// Sweep deletes the files that Remove could not.
func (s *Spool) Sweep() {
	s.mu.Lock()
	left := s.left
	s.left = nil
	s.mu.Unlock()
	s.Remove(left...)
}

// fails returns why a file could not be written, and warns unless the last one failed for
// the same reason.
func (s *Spool) fails(err error) error {
	if c := args.WithoutPath(err); c != err { // each file has a name of its own
		err = fmt.Errorf("%s: %w", s.dir, c)
	}
	err = Wrap(err)
	if s.NoteFailure(err.Error()) {
		s.warn("%v", err)
	}
	return err
}

// Writable returns why no file can be written, nil if one can.
func (s *Spool) Writable() error {
	f, err := os.CreateTemp(s.dir, tmpPrefix)
	if err == nil {
		f.Close()
		s.Remove(filepath.Base(f.Name()))
	}
	return err
}

// NoteFailure reports whether that differs from the last failure.
func (s *Spool) NoteFailure(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.failed
	s.failed = what
	return was != what
}

// Open opens the file of a part and verifies its checksum: no program and no caller gets
// bytes that have changed. It ends early with ctx.
func (s *Spool) Open(ctx context.Context, id ID, part byte, p Payload) (*os.File, error) {
	damaged := func(what string) error {
		return &DamagedError{ID: id, File: filepath.Join(s.dir, p.File), What: partName(part) + ": " + what}
	}
	f, err := openNoFollow(filepath.Join(s.dir, p.File), os.O_RDONLY, 0)
	if err != nil {
		return nil, damaged(args.WithoutPath(err).Error())
	}
	sum := crc32.New(castagnoli())
	stop := context.AfterFunc(ctx, func() { f.Close() })
	n, err := io.Copy(sum, f)
	switch {
	case !stop():
		err = ctx.Err()
	case err != nil:
		err = damaged(args.WithoutPath(err).Error())
	case n != p.Size:
		err = damaged(fmt.Sprintf("it has %d bytes, not %d", n, p.Size))
	case sum.Sum32() != p.Sum:
		err = damaged("it does not match its checksum")
	default:
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// names lists the files, and deletes unfinished ones.
func (s *Spool) names() ([]string, error) {
	d, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	all, err := d.Readdirnames(-1)
	names := all[:0]
	for _, name := range all {
		if strings.HasPrefix(name, tmpPrefix) {
			os.Remove(filepath.Join(s.dir, name))
			continue
		}
		names = append(names, name)
	}
	return names, err
}

func fileID(name string) ID {
	id, _ := ParseID(name[:min(len(name), ulid.EncodedSize)])
	return id
}

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
