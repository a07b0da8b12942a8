package pages

import (
	"os"

	"golang.org/x/sys/unix"
)

// prefetchMost bounds what is asked for, so that a huge store does not push
// everything else out of memory.
const prefetchMost = 1 << 30

// prefetch has the kernel read the file ahead from its beginning to its end. The
// pages of a tree lie in no order: after a restart of the machine, when nothing is
// in memory, each would wait for the disk by itself.
func prefetch(f *os.File) {
	_ = unix.Fadvise(int(f.Fd()), 0, prefetchMost, unix.FADV_WILLNEED) // only a hint
}
