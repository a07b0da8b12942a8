package commands

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestSweepPrivate checks that the directory of a run that begins is kept, whose socket
// exists but refuses connections, and that of a killed run is removed.
func TestSweepPrivate(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dir, err := os.MkdirTemp("", privatePrefix)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "bus.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	lock := lockPrivate(dir)
	if lock == nil {
		t.Fatal("it cannot be locked")
	}
	sweepPrivate()
	if _, err := os.Stat(dir); err != nil {
		t.Error("the directory of a run that begins was removed")
	}
	lock.Close()
	sweepPrivate()
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory of a killed run is still there")
	}
}
