package calllog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// File appends lines to a file. It reopens the path when that leads to another file, as
// after logrotate.
type File struct {
	path string
	open func() (*os.File, error)
	f    *os.File
	size int64 // before a write

	max    int64        // 0: none
	rotate func() error // called when lines would exceed max
	fail   func() error // a test makes writes fail
}

// OpenFile opens a file with open, and again whenever path leads to another file.
func OpenFile(path string, open func() (*os.File, error)) (*File, error) {
	l := &File{path: path, open: open}
	return l, l.check()
}

// check opens the file if the path leads to another one.
func (l *File) check() error {
	if l.f != nil {
		at, err1 := os.Stat(l.path)
		is, err2 := l.f.Stat()
		if err1 == nil && err2 == nil && os.SameFile(at, is) {
			l.size = is.Size()
			return nil
		}
	}
	f, err := l.open()
	if err != nil {
		return err
	}
	l.Close()
	l.f = f
	if st, err := f.Stat(); err == nil {
		l.size = st.Size()
	}
	return nil
}

// Write appends lines, all of them or none.
func (l *File) Write(p []byte) (n int, err error) {
	err = l.check()
	if err == nil && l.max > 0 && l.size > 0 && l.size+int64(len(p)) > l.max {
		if err = l.rotate(); err == nil {
			err = l.check()
		}
	}
	if err != nil {
		return 0, err
	}
	if l.fail != nil {
		if err = l.fail(); err != nil {
			l.f.Write(p[:len(p)/2]) // as a full disk writes a part
		}
	}
	if err == nil {
		n, err = l.f.Write(p)
	}
	if err != nil {
		l.f.Truncate(l.size)
	}
	return n, err
}

// Close closes the file.
func (l *File) Close() error {
	if l.f == nil {
		return nil
	}
	return l.f.Close()
}

// series is a rotated file: NAME.jsonl is the current one, NAME.1.jsonl the previous
// one.
type series struct {
	File
	log  *Log
	name string
}

// file returns the path of the k-th file.
func (s *series) file(k int) string {
	name := s.name
	if k > 0 {
		name += "." + strconv.Itoa(k)
	}
	return filepath.Join(s.log.opts.Dir, name+".jsonl")
}

// shift renames every file to the next number, over the oldest one. It creates the new
// current file first: a full disk must not cost the old entries.
func (s *series) shift() error {
	s.log.moving.Lock()
	defer s.log.moving.Unlock()
	fresh := s.file(0) + ".new"
	err := os.WriteFile(fresh, nil, 0o600)
	for k := s.log.opts.Files - 2; k >= 0 && err == nil; k-- {
		if err = os.Rename(s.file(k), s.file(k+1)); errors.Is(err, fs.ErrNotExist) { // it was removed
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(fresh, s.file(0))
	}
	return err
}

// openFiles opens the log's files and finds the number of the last entry.
func (l *Log) openFiles() (err error) {
	if err := os.MkdirAll(l.opts.Dir, 0o700); err != nil {
		return err
	}
	// The file is never removed. Only its lock matters, which ends with the process.
	if l.lock, err = os.OpenFile(filepath.Join(l.opts.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	err = syscall.Flock(int(l.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%s: another process writes this log", l.opts.Dir)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", l.lock.Name(), err)
	}
	for k, name := range kinds {
		s := &l.series[k]
		s.log, s.name = l, name
		s.path, s.max, s.rotate = s.file(0), l.opts.MaxBytes, s.shift
		s.open = func() (*os.File, error) { return os.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600) }
		if err := s.check(); err != nil {
			return err
		}
		l.outs[k] = s
		// A crash may have cut the last line short; the next one must not join it.
		last := make([]byte, 1)
		if n, _ := s.f.ReadAt(last, s.size-1); n == 1 && last[0] != '\n' {
			s.f.Write([]byte{'\n'})
		}
	}
	v, err := l.view("")
	if err != nil {
		return err
	}
	defer v.close()
	l.seq = v.last()
	l.written = l.seq
	return nil
}

func (l *Log) closeFiles() {
	for k := range l.series {
		l.series[k].Close()
	}
	if l.lock != nil {
		l.lock.Close()
	}
}
