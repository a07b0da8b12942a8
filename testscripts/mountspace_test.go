package testscripts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// mountspace is a mount namespace of the test's own: what is mounted there nobody
// else sees, and it is gone with the last of its processes and the test, however that
// ends.
type mountspace struct {
	t    testing.TB
	work chan func() // done by the thread that is in the namespace
}

func newMountspace(t testing.TB) *mountspace {
	t.Helper()
	m := &mountspace{t: t, work: make(chan func())}
	made := make(chan error, 1)
	go func() { // ends when work is closed, and its thread with it
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		made <- err
		for f := range m.work {
			f()
		}
	}()
	t.Cleanup(func() { close(m.work) })
	if err := <-made; err != nil {
		t.Skipf("no mount namespace can be made here: %v", err)
	}
	return m
}

// do runs f inside the namespace: what it starts and opens is there.
func (m *mountspace) do(f func() error) error {
	done := make(chan error, 1)
	m.work <- func() { done <- f() }
	return <-done
}

// start starts a command there.
func (m *mountspace) start(cmd *exec.Cmd) error { return m.do(cmd.Start) }

// run runs a command there to its end.
func (m *mountspace) run(args ...string) error {
	return m.do(func() error {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", args, err, out)
		}
		return nil
	})
}

// must fails the test if something could not be done.
func (m *mountspace) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// image makes a file with an ext4 on it.
func (m *mountspace) image(path string, size int64) {
	m.t.Helper()
	m.must(m.do(func() error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Truncate(size)
	}))
	if err := m.run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", path); err != nil {
		m.t.Skip(err)
	}
}

// loop mounts it.
func (m *mountspace) loop(image, dir, options string) {
	m.t.Helper()
	m.must(os.MkdirAll(dir, 0o700))
	if err := m.run("mount", "-o", "loop"+options, image, dir); err != nil {
		m.t.Skipf("loop devices are not to be had here: %v", err)
	}
}

func (m *mountspace) unmount(dir string) {
	m.t.Helper()
	m.must(m.run("umount", dir))
}

// Of linux/fs.h.
const (
	ioctlFreeze = 0xc0045877
	ioctlThaw   = 0xc0045878
)

// still runs f while nothing is written to the filesystem of a directory.
func (m *mountspace) still(dir string, f func() error) {
	m.t.Helper()
	m.must(m.do(func() error {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer d.Close()
		if err := unix.IoctlSetInt(int(d.Fd()), ioctlFreeze, 0); err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		defer unix.IoctlSetInt(int(d.Fd()), ioctlThaw, 0)
		return f()
	}))
}

// copyFile copies with holes where there are zeros.
func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
