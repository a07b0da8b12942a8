package jobs

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// inlineSize is how many bytes of a part stay in the store's file. What is longer
// is written beside it, as it comes.
const inlineSize = 32 << 10

// spool is the directory of the large parts, and the count of all.
type spool struct {
	dir  string
	max  int64
	used atomic.Int64 // bytes of payloads, in files and in the store
	tmp  atomic.Uint64
	link func(old, new string) error // a test makes it fail
	warn func(format string, args ...any)

	mu     sync.Mutex          // protects the fields below
	left   map[string]struct{} // names that could not be removed: the disk fails
	failed string              // how the last file failed that was written, "" if it did not
}

const tmpPrefix = "tmp-"

// reserve counts n bytes that are about to be written, if there is room for them, and
// for beyond bytes less.
func (s *spool) reserve(n, beyond int64) error {
	if s.used.Add(n) > s.max+beyond {
		s.used.Add(-n)
		return &FullError{What: fmt.Sprintf("%d bytes of input and output are the limit (--max-spool)", s.max)}
	}
	return nil
}

func (s *spool) release(n int64) { s.used.Add(-n) }

// over reports whether there is more than the bound, as an output may have made it.
func (s *spool) over() bool { return s.used.Load() > s.max }

// draft is a part that is being written: memory first, a file from inlineSize on.
type draft struct {
	payload
	inline []byte
	spool  *spool
	file   *os.File
	tmp    string
	short  int64 // what there was no room for under --max-spool, at least
	beyond int64 // what it may take beyond that
}

func (s *spool) newDraft() *draft { return &draft{spool: s} }

// Write implements io.Writer.
func (p *draft) Write(b []byte) (int, error) {
	if err := p.spool.reserve(int64(len(b)), p.beyond); err != nil {
		p.short = int64(len(b))
		return 0, err
	}
	p.Size += int64(len(b))
	p.Sum = crc32.Update(p.Sum, castagnoli(), b)
	if p.file == nil && p.Size <= inlineSize {
		p.inline = append(p.inline, b...)
		return len(b), nil
	}
	if p.file == nil {
		if err := p.toFile(); err != nil {
			return 0, err
		}
	}
	return len(b), p.append(b)
}

// wanted is what its writer has written, or tried to.
func (p *draft) wanted() int64 { return p.Size + p.short }

func (p *draft) toFile() error {
	p.tmp = filepath.Join(p.spool.dir, fmt.Sprintf("%s%d-%d", tmpPrefix, os.Getpid(), p.spool.tmp.Add(1)))
	f, err := os.OpenFile(p.tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		p.tmp = ""
		return p.spool.fails(err)
	}
	p.file = f
	head := p.inline
	p.inline = nil
	return p.append(head)
}

func (p *draft) append(b []byte) error {
	if _, err := p.file.Write(b); err != nil {
		return p.spool.fails(err)
	}
	return nil
}

// keep makes a file last under its name, before the record that names it is
// written.
func (p *draft) keep(id ID, part byte, attempt int) error {
	if p.file == nil {
		return nil
	}
	name := fmt.Sprintf("%s.%c.%d", id, part, attempt)
	err := p.file.Sync()
	if err == nil {
		err = os.Rename(p.tmp, filepath.Join(p.spool.dir, name))
	}
	if err == nil {
		p.tmp, p.File = "", name
		err = p.spool.sync()
	}
	if err != nil {
		return p.spool.fails(err)
	}
	p.file.Close()
	p.spool.noteFailure("")
	return nil
}

// drop takes back what was written. It is for parts that no record names.
func (p *draft) drop() {
	if p == nil {
		return
	}
	p.spool.release(p.Size)
	p.Size = 0
	if p.file != nil {
		p.file.Close()
	}
	if p.tmp != "" {
		p.spool.remove(filepath.Base(p.tmp))
	} else if p.File != "" {
		p.spool.remove(p.File)
	}
}

func (s *spool) sync() error { return syncDir(s.dir) }

// sumData is what a payload's Sum is of.
func sumData(data []byte) uint32 { return crc32.Checksum(data, castagnoli()) }

// share gives another job the same file, which is never changed once it has its
// name. A second copy would take as much room again.
func (s *spool) share(p payload, id ID, part byte) (payload, error) {
	name := fmt.Sprintf("%s.%c.0", id, part)
	err := s.link(filepath.Join(s.dir, p.File), filepath.Join(s.dir, name))
	switch {
	case err == nil, errors.Is(err, os.ErrExist): // from a try that could not be committed
		err = s.sync()
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EMLINK): // this filesystem has no links, or no more of them
		err = s.copy(p, id, part)
	case errors.Is(err, os.ErrNotExist): // it has been taken away: who runs the job finds that out
		err = nil
	}
	if err != nil {
		return payload{}, storeError(err)
	}
	p.File = name
	return p, nil
}

// copy is share where there can be no link.
func (s *spool) copy(p payload, id ID, part byte) error {
	f, err := os.Open(filepath.Join(s.dir, p.File))
	if err != nil {
		return err
	}
	defer f.Close()
	d := s.newDraft()
	if _, err = io.Copy(d, f); err == nil {
		err = d.keep(id, part, 0)
	}
	if err != nil {
		d.drop()
		return err
	}
	s.release(d.Size) // as of a link, it is counted when it is committed
	return nil
}

// remove deletes files. Those that a failing disk keeps go later.
func (s *spool) remove(names ...string) {
	for _, name := range names {
		err := os.Remove(filepath.Join(s.dir, name))
		if err == nil || errors.Is(err, os.ErrNotExist) {
			continue
		}
		s.mu.Lock()
		if s.left == nil {
			s.left = map[string]struct{}{}
		}
		s.left[name] = struct{}{}
		s.mu.Unlock()
	}
}

// sweep removes what could not be removed when it was to be.
func (s *spool) sweep() {
	s.mu.Lock()
	left := s.left
	s.left = nil
	s.mu.Unlock()
	for name := range left {
		s.remove(name)
	}
}

// fails says that a file could not be written: to the operator too, when it is not
// how the last one failed.
func (s *spool) fails(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) { // each file has a name of its own
		err = fmt.Errorf("%s: %w", s.dir, pe.Err)
	}
	err = storeError(err)
	if s.noteFailure(err.Error()) {
		s.warn("%v", err)
	}
	return err
}

// noteFailure reports whether that is news.
func (s *spool) noteFailure(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.failed
	s.failed = what
	return was != what
}

// open returns the file of a part once it has been found to be what was written:
// a program must not be given, nor a caller be told, what has changed since.
func (s *spool) open(id ID, part byte, p payload) (*os.File, error) {
	damaged := func(what string) error {
		return &DamagedError{ID: id, What: fmt.Sprintf("%s: %s: %s", partName(part), filepath.Join(s.dir, p.File), what)}
	}
	f, err := os.OpenFile(filepath.Join(s.dir, p.File), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, damaged(reason(err))
	}
	sum := crc32.New(castagnoli())
	n, err := io.Copy(sum, f)
	switch {
	case err != nil:
		err = damaged(reason(err))
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

// names lists the files there are, less those that were not finished.
func (s *spool) names() ([]string, error) {
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

// size adds up the files.
func (s *spool) size() (total int64) {
	names, _ := s.names()
	for _, name := range names {
		if st, err := os.Lstat(filepath.Join(s.dir, name)); err == nil {
			total += st.Size()
		}
	}
	return total
}

// reason is a file's error without what was done to which file.
func reason(err error) string {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// content is where a part can be read from.
type content struct {
	*bytes.Reader
	file *os.File
}

func (c *content) close() {
	if c != nil && c.file != nil {
		c.file.Close()
	}
}

// reader is what of the two is there.
func (c *content) reader() io.Reader {
	if c.file != nil {
		return c.file
	}
	return c.Reader
}
