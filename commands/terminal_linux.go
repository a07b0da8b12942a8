package commands

import (
	"crypto/rand"
	"strings"

	"golang.org/x/sys/unix"
)

// foreground reports whether this process may read its terminal without being
// stopped for it.
func foreground(fd int) bool {
	pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

func randomSuffix() string { return strings.ToLower(rand.Text()[:8]) }
