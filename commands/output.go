package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"fbus/bus/args"
)

// maxPretty is how much output -p buffers to indent it. Longer output is not indented.
const maxPretty = 64 << 20

// outputFile is the destination of a call's stdout: our stdout, or a file that is written
// under another name and renamed on success.
type outputFile struct {
	w      io.Writer
	tmp    *os.File // nil: no temporary file
	path   string   // the final name of tmp
	pretty *bytes.Buffer
	begun  bool // something was written
}

// openOutput opens the output for -o and -p.
func openOutput(o *endOptions) (*outputFile, error) {
	out := &outputFile{w: os.Stdout}
	if o.output != "" && o.output != "-" {
		if err := out.open(o.output); err != nil {
			return nil, usage("output: %v", args.PathReason(err))
		}
	}
	if o.pretty {
		out.pretty = &bytes.Buffer{}
	}
	return out, nil
}

// open creates a temporary file in the same directory. A device or a pipe is written
// directly. A symbolic link stays, and its target is replaced.
func (o *outputFile) open(path string) error {
	if f, err := descriptor(path); f != nil || err != nil {
		o.w = f
		return err
	}
	path, err := resolve(path)
	if err != nil {
		return err
	}
	mode := os.FileMode(0o666)
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return &os.PathError{Op: "open", Path: path, Err: errors.New("is a directory")}
	case err == nil && !st.Mode().IsRegular():
		f, err := openFile(path, os.O_WRONLY, 0)
		if err == nil {
			o.w = f
		}
		return err
	case err == nil:
		mode = st.Mode().Perm()
		if f, err := openFile(path, os.O_WRONLY, 0); err != nil {
			return err // a file without write permission must not be replaced
		} else {
			f.Close()
		}
	}
	f, err := createAside(path, mode)
	if err != nil {
		return err
	}
	if st != nil {
		f.Chmod(mode)
	}
	o.w, o.tmp, o.path = f, f, path
	return nil
}

// descriptor opens a name of one of our own descriptors, which is written at its current
// position, not replaced.
func descriptor(path string) (*os.File, error) {
	n, ok := strings.CutPrefix(path, "/dev/fd/")
	if !ok {
		n, ok = strings.CutPrefix(path, "/proc/self/fd/")
	}
	switch {
	case path == "/dev/stdout":
		return os.Stdout, nil
	case path == "/dev/stderr":
		return os.Stderr, nil
	case !ok:
		return nil, nil
	}
	fd, err := strconv.Atoi(n)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrNotExist}
	}
	f := os.NewFile(uintptr(fd), path)
	_, err = f.Stat()
	return f, err
}

// createAside creates a new file in the directory of path. The umask applies to mode.
func createAside(path string, mode os.FileMode) (*os.File, error) {
	base := filepath.Base(path)
	base = base[:min(len(base), 200)] // a name has at most 255 bytes
	for range 100 {
		name := filepath.Join(filepath.Dir(path), "."+base+"."+randomSuffix())
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if !errors.Is(err, os.ErrExist) {
			return f, err
		}
	}
	return nil, &os.PathError{Op: "create", Path: path, Err: errors.New("no free name for a temporary file")}
}

// Write implements io.Writer.
func (o *outputFile) Write(p []byte) (int, error) {
	o.begun = true
	if o.pretty != nil && o.pretty.Len()+len(p) <= maxPretty {
		return o.pretty.Write(p)
	}
	if err := o.flush(); err != nil {
		return 0, err
	}
	return o.w.Write(p)
}

// flush writes the buffer of -p, indented if it is JSON.
func (o *outputFile) flush() error {
	if o.pretty == nil {
		return nil
	}
	held := o.pretty
	o.pretty = nil
	var indented bytes.Buffer
	if json.Indent(&indented, held.Bytes(), "", "  ") == nil {
		held = &indented
	}
	_, err := o.w.Write(held.Bytes())
	return err
}

// commit renames the file to its final name.
func (o *outputFile) commit() error {
	if err := o.flush(); err != nil {
		return err
	}
	if o.tmp == nil {
		return nil
	}
	tmp := o.tmp
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), o.path); err != nil {
		return err
	}
	o.tmp = nil
	return nil
}

// discard removes the temporary file, if it was not committed.
func (o *outputFile) discard() {
	if o.tmp != nil {
		o.tmp.Close()
		os.Remove(o.tmp.Name())
	}
}
