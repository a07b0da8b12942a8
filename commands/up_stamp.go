package commands

import (
	"os"
	"reflect"
	"strings"
	"syscall"
	"time"
)

// fileStamp identifies a version of a file.
type fileStamp struct {
	path  string
	inode uint64
	size  int64
	time  time.Time
}

// stamp records the files on the command line of a program whose processes are kept, so
// that a reload restarts it after an edit. A program that is started for each call needs
// no restart.
func (f *function) stamp() {
	f.files = nil
	if !f.warm.set && f.resident == "" {
		return
	}
	for _, w := range f.argv {
		if !strings.ContainsAny(w, "/.") {
			continue
		}
		if st, err := os.Stat(under(f.dir, w)); err == nil && st.Mode().IsRegular() {
			f.files = append(f.files, fileStamp{w, st.Sys().(*syscall.Stat_t).Ino, st.Size(), st.ModTime()})
		}
	}
}

// same reports whether two functions differ only in their position in the file.
func (f *function) same(g *function) bool {
	a, b := *f, *g
	a.part, b.part = nil, nil
	return reflect.DeepEqual(a, b)
}
