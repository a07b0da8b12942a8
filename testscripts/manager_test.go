package testscripts

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// manager plays a service manager, as far as a service sees of one:
//
//	manager [-listen ADDR] [-log FILE] [-notify ADDR] [-watchdog D] [-connection ""] -- COMMAND…
//
// It listens at unix paths or TCP addresses and passes the sockets on, notes each
// message of the service as a line of the log, behind the number of the start,
// starts it anew at USR1 when it has ended by TERM, and hands HUP and TERM on. It
// ends as the service does.
type manager struct {
	files   []*os.File
	env     []string
	log     *os.File
	command []string
	starts  atomic.Int64
	settle  func() // waits until all messages are noted
}

// manage is the main of a manager.
func manage(args []string) int {
	m := &manager{settle: func() {}}
	flags := flag.NewFlagSet("manager", flag.ExitOnError)
	flags.Func("listen", "listen at a unix path or TCP address", m.listen)
	flags.Func("connection", "pass on a socket that is none to listen at", m.connection)
	flags.Func("log", "note messages here", func(name string) (err error) {
		m.log, err = os.Create(name)
		return err
	})
	flags.Func("notify", "take messages at a unix address", m.notify)
	flags.Func("watchdog", "ask for signs of life as often", func(usec string) error {
		m.env = append(m.env, "WATCHDOG_USEC="+usec)
		return nil
	})
	flags.Parse(args)
	m.command = flags.Args()
	if pid := os.Getenv("MANAGER_STEP"); pid != "" {
		return becomeService(m.command)
	}
	return m.run()
}

// becomeService sets what only the service's own process knows: its id.
func becomeService(command []string) int {
	os.Unsetenv("MANAGER_STEP")
	for _, name := range []string{"LISTEN_PID", "WATCHDOG_PID"} {
		os.Setenv(name, strconv.Itoa(os.Getpid()))
	}
	path, err := exec.LookPath(command[0])
	if err == nil {
		err = syscall.Exec(path, command, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "manager:", err)
	return 127
}

func (m *manager) listen(addr string) error {
	network := "unix"
	if host, _, err := net.SplitHostPort(addr); err == nil && net.ParseIP(host) != nil {
		network = "tcp"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return err
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	m.files = append(m.files, f)
	return err
}

func (m *manager) connection(string) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	m.files = append(m.files, os.NewFile(uintptr(fds[0]), "a connection"))
	return err
}

func (m *manager) notify(addr string) error {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		return err
	}
	m.env = append(m.env, "NOTIFY_SOCKET="+addr)
	const last = "the last one"
	done := make(chan struct{})
	m.settle = func() {
		if _, err := conn.WriteTo([]byte(last), conn.LocalAddr()); err == nil {
			<-done
		}
	}
	go func() { // ends with the last message, which is our own
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buf)
			if err != nil || string(buf[:n]) == last {
				return
			}
			fmt.Fprintf(m.log, "%d %s\n", m.starts.Load(), strings.ReplaceAll(string(buf[:n]), "\n", " "))
		}
	}()
	return nil
}

func (m *manager) run() int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGUSR1)
	for {
		again, status := m.once(signals)
		if !again {
			m.settle()
			return status
		}
	}
}

// once starts the service and waits for its end; again says that it is to be
// started anew.
func (m *manager) once(signals <-chan os.Signal) (again bool, status int) {
	m.starts.Add(1)
	self, _ := os.Executable()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Args = slices.Concat([]string{"manager", "--"}, m.command)
	cmd.Env = slices.Concat(os.Environ(), m.env, []string{"MANAGER_STEP=1"})
	if len(m.files) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(m.files)), "LISTEN_FDNAMES=one")
	}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, m.files
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "manager:", err)
		return false, 127
	}
	done := make(chan struct{})
	go func() { // ends with the service
		cmd.Wait()
		close(done)
	}()
	for {
		select {
		case sig := <-signals:
			if sig == syscall.SIGUSR1 {
				again, sig = true, syscall.SIGTERM
			}
			cmd.Process.Signal(sig)
		case <-done:
			return again, cmd.ProcessState.ExitCode()
		}
	}
}
