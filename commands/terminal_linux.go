package commands

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"time"

	"fbus/bus/wire"

	"github.com/mattn/go-isatty"
	"golang.org/x/sys/unix"
)

// inputOf returns a reader for a file that a command reads. A terminal is read only while this
// process is in its foreground. A read in the background would stop the process, and without
// job control (as below timeout or in a script) nobody continues it, so that not even TERM
// could end it.
func inputOf(f *os.File) io.Reader {
	if !isTerminalFile(f) {
		return f
	}
	signal.Ignore(unix.SIGTTIN) // a read in the background fails with EIO instead
	return terminal{f}
}

// isTerminalFile reports whether a file is a terminal. It leaves others in the mode in which
// Close ends a Read.
func isTerminalFile(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && isatty.IsTerminal(f.Fd())
}

// terminal reads a terminal while this process may.
type terminal struct{ f *os.File }

// foregroundEvery is the interval at which a process in the background looks whether it is in
// the foreground: the kernel does not report that.
const foregroundEvery = 100 * time.Millisecond

// Read implements io.Reader.
func (t terminal) Read(p []byte) (int, error) {
	for fd := int(t.f.Fd()); ; time.Sleep(foregroundEvery) {
		if background(fd) {
			continue
		}
		n, err := t.f.Read(p)
		if n > 0 || !errors.Is(err, unix.EIO) || !background(fd) {
			return n, err
		}
	}
}

// background reports whether another process group has our terminal. One that is not our
// terminal can be read at any time.
func background(fd int) bool {
	pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && pgrp != unix.Getpgrp()
}

// foreground reports whether this process is in the foreground of its terminal.
func foreground(fd int) bool {
	pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

func randomSuffix() string { return wire.NewInstance()[:8] }
