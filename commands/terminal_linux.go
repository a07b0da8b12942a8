package commands

import (
	"fbus/bus/wire"

	"golang.org/x/sys/unix"
)

// foreground reports whether this process may read its terminal without being stopped.
func foreground(fd int) bool {
	pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

func randomSuffix() string { return wire.NewInstance()[:8] }
