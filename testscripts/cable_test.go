package testscripts

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a network namespace of the test's own, with one interface that the
// test holds the other end of. Nothing has a name outside of it: it is gone with
// the last of its processes and the test, however that ends.
type machine struct {
	work chan func() // done by the thread that is in the namespace
	tun  *os.File    // a packet each Read and Write
}

// interfaceName is what each machine calls its interface.
const interfaceName = "cable"

// newMachine makes one with that IPv4 address in a network of 256.
func newMachine(t testing.TB, address string) *machine {
	t.Helper()
	m := &machine{work: make(chan func())}
	made := make(chan error, 1)
	go func() { // ends when work is closed, and its thread with it
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			m.tun, err = openTun()
		}
		made <- err
		for f := range m.work {
			f()
		}
	}()
	t.Cleanup(func() { close(m.work) })
	if err := <-made; err != nil {
		t.Skipf("no network namespace with a TUN device can be made here: %v", err)
	}
	t.Cleanup(func() { m.tun.Close() })
	m.setAddress(t, address)
	m.setLink(t, "lo", true)
	m.setLink(t, interfaceName, true)
	return m
}

// do runs f inside the namespace: what it starts and connects is there.
func (m *machine) do(f func() error) error {
	done := make(chan error, 1)
	m.work <- func() { done <- f() }
	return <-done
}

// start starts a command there.
func (m *machine) start(cmd *exec.Cmd) error { return m.do(cmd.Start) }

// openTun makes the interface in the namespace of this thread.
func openTun() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(interfaceName)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), interfaceName), nil
}

// setAddress gives the interface an address in place of the one it has.
func (m *machine) setAddress(t testing.TB, address string) {
	t.Helper()
	m.control(t, interfaceName, func(fd int, req *unix.Ifreq) error {
		if err := req.SetInet4Addr(net.ParseIP(address).To4()); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, req); err != nil {
			return err
		}
		req.SetInet4Addr(net.IPv4(255, 255, 255, 0).To4())
		return unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, req)
	})
}

// setLink sets an interface up or down.
func (m *machine) setLink(t testing.TB, name string, up bool) {
	t.Helper()
	m.control(t, name, func(fd int, req *unix.Ifreq) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		flags := req.Uint16() &^ unix.IFF_UP
		if up {
			flags |= unix.IFF_UP
		}
		req.SetUint16(flags)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
}

func (m *machine) control(t testing.TB, name string, f func(fd int, req *unix.Ifreq) error) {
	t.Helper()
	err := m.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		return f(fd, req)
	})
	if err != nil {
		t.Fatalf("%s of a machine: %v", name, err)
	}
}

// cable connects two machines, packet by packet, and is as bad as the test wants
// it. So no kernel has to have netem, which some lack.
type cable struct {
	there, back line
}

// line is one direction of a cable.
type line struct {
	cut    atomic.Bool  // everything is lost
	lossy  atomic.Bool  // one packet in ten is lost
	delay  atomic.Int64 // of each packet, in nanoseconds
	passed atomic.Int64 // packets
	lost   atomic.Int64
}

// connect lays a cable between two machines, until the test ends.
func connect(t testing.TB, a, b *machine) *cable {
	c := &cable{}
	var ends sync.WaitGroup
	ends.Go(func() { c.there.carry(t, b.tun, a.tun) })
	ends.Go(func() { c.back.carry(t, a.tun, b.tun) })
	t.Cleanup(func() {
		a.tun.Close()
		b.tun.Close()
		ends.Wait()
	})
	return c
}

type packet struct {
	due  time.Time
	data []byte
}

// carry ends when from is closed.
func (l *line) carry(t testing.TB, to, from *os.File) {
	way := make(chan packet, 10_000)
	defer close(way)
	go func() { // ends with the channel
		for p := range way {
			time.Sleep(time.Until(p.due))
			to.Write(p.data) // an interface that is down takes none
		}
	}()
	dice := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, os.ErrClosed) || err == io.EOF {
			return
		}
		if err != nil { // down for now
			time.Sleep(time.Millisecond)
			continue
		}
		if l.cut.Load() || l.lossy.Load() && dice.IntN(10) == 0 {
			l.lost.Add(1)
			continue
		}
		l.passed.Add(1)
		way <- packet{time.Now().Add(time.Duration(l.delay.Load())), append([]byte(nil), buf[:n]...)}
	}
}
