package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"fbus/bus/args"
	"fbus/bus/paths"

	"golang.org/x/sys/unix"
)

// maxPretty is how much output -p buffers to indent it. Longer output is not indented.
const maxPretty = 64 << 20

// outputFile is the destination of a call's stdout: our stdout, or a file that is written
// under another name and renamed on success.
type outputFile struct {
	w      io.Writer
	tmp    *os.File     // nil: no temporary file
	place  *paths.Place // the final name of tmp
	pretty *bytes.Buffer
	begun  bool        // something was written
	inLine atomic.Bool // it does not end with a newline
	made   []string    // directories that were made for it, the deepest first
}

// missingParents lists the directories of a path that do not exist, the deepest first.
func missingParents(path string) (list []string) {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
			return list
		}
		list = append(list, dir)
	}
}

// openOutput opens the output for -o and -p.
func openOutput(o *endOptions) (*outputFile, error) {
	out := &outputFile{w: os.Stdout}
	if o.output != "" && o.output != "-" {
		out.made = missingParents(o.output)
		if err := out.open(o.output, 0o777); err != nil {
			out.discard()
			return nil, usage("output: %v", err)
		}
	}
	if o.pretty {
		out.pretty = &bytes.Buffer{}
	}
	return out, nil
}

// open creates a temporary file in the same directory, which is created with its parents
// if mkdir is not 0. A device or a pipe is written directly. A symbolic link stays, and its
// target is replaced.
func (o *outputFile) open(path string, mkdir os.FileMode) error {
	if f, err := descriptor(path); f != nil || err != nil {
		o.w = f
		return err
	}
	place, err := paths.Walk(path, mkdir, paths.NoForeignLink)
	if err != nil {
		return err
	}
	defer func() {
		if o.tmp == nil {
			place.Close()
		}
	}()
	mode, there := os.FileMode(0o666), false
	if st, err := place.Stat(); err == nil { // a file without write permission must not be replaced
		f, err := place.Open(os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG {
			o.w = f
			return nil
		}
		f.Close()
		mode, there = os.FileMode(st.Mode).Perm(), true
	}
	base := filepath.Base(place.Path)
	base = base[:min(len(base), 200)] // a name has at most 255 bytes
	f, err := place.Create("."+base+"."+randomSuffix(), mode)
	if err != nil {
		return &os.PathError{Op: "open", Path: place.Path, Err: args.WithoutPath(err)}
	}
	if there {
		f.Chmod(mode) // whatever the umask
	}
	o.w, o.tmp, o.place = f, f, place
	return nil
}

// descriptor opens a name of one of our own descriptors, which is written at its current
// position, not replaced.
func descriptor(path string) (*os.File, error) {
	switch path {
	case "/dev/stdout":
		return os.Stdout, nil
	case "/dev/stderr":
		return os.Stderr, nil
	}
	fd, ok := paths.Descriptor(path)
	if !ok {
		return nil, nil
	}
	if err := paths.Inherited(fd, true); err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Write implements io.Writer.
func (o *outputFile) Write(p []byte) (int, error) {
	o.begun = true
	o.inLine.Store(len(p) > 0 && p[len(p)-1] != '\n')
	if o.pretty != nil && o.pretty.Len()+len(p) <= maxPretty {
		return o.pretty.Write(p)
	}
	if err := o.flush(); err != nil {
		return 0, outputError(err)
	}
	n, err := o.w.Write(p)
	if err != nil {
		err = outputError(o.named(err))
	}
	return n, err
}

// ownLines writes messages to a terminal that shows an output too, each in a line of its own.
type ownLines struct {
	w   io.Writer
	out *outputFile
}

// Write implements io.Writer.
func (m ownLines) Write(p []byte) (int, error) {
	if m.out.inLine.Swap(false) {
		io.WriteString(m.w, "\n")
	}
	return m.w.Write(p)
}

// named has an error name the file that the user has named, not the temporary one.
func (o *outputFile) named(err error) error {
	if err != nil && o.tmp != nil {
		return &os.PathError{Op: "write", Path: o.place.Path, Err: args.WithoutPath(err)}
	}
	return err
}

// flush writes the buffer of -p, indented if it is JSON.
func (o *outputFile) flush() error {
	if o.pretty == nil {
		return nil
	}
	held := o.pretty
	o.pretty = nil
	var indented bytes.Buffer
	if json.Indent(&indented, args.WithoutBOM(held.Bytes()), "", "  ") == nil {
		if held = &indented; isTerminal(o.w) && !bytes.HasSuffix(held.Bytes(), []byte("\n")) {
			held.WriteByte('\n') // the shell's prompt follows
		}
	}
	_, err := o.w.Write(held.Bytes())
	return o.named(err)
}

// commit renames the file to its final name. When it returns nil, the file and its name
// are on the disk: a caller who relies on the exit status must find them after a power cut.
func (o *outputFile) commit() error {
	if err := o.flush(); err != nil {
		return err
	}
	if o.tmp == nil {
		return nil
	}
	if err := errors.Join(paths.Sync(o.tmp), o.tmp.Close()); err != nil {
		return o.named(err)
	}
	if err := o.place.Replace(filepath.Base(o.tmp.Name())); err != nil {
		return err
	}
	o.tmp, o.made = nil, nil
	defer o.place.Close()
	return o.place.Sync()
}

// discard removes the temporary file, if it was not committed, and directories that were made
// for it.
func (o *outputFile) discard() {
	if o.tmp != nil {
		o.tmp.Close()
		o.place.Remove(filepath.Base(o.tmp.Name()))
		o.place.Close()
	}
	for _, dir := range o.made {
		os.Remove(dir) // not if something else is in it
	}
}
