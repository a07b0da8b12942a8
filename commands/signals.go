package commands

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// interrupted is the error of a command that a signal ended. Main raises the signal
// again at the end, so that shells and loops see it.
type interrupted struct{ signal syscall.Signal }

func (i *interrupted) Error() string { return "ended by " + i.signal.String() }

// cleansUp reports whether the command must clean up when a signal ends it. If not, no
// signal is caught: the kernel ends the process, and the node, whose connection closes,
// cancels the call.
func (o *endOptions) cleansUp() bool {
	return o.output != "" || o.hasFD || o.statusTo != ""
}

// stuck limits the time to clean up after a signal: the reader of our output may have
// stopped reading.
const stuck = 500 * time.Millisecond

// catch returns a channel that receives HUP, INT and TERM, unless they were ignored when
// fbus started (by nohup, or by a shell for a background job).
func catch() chan os.Signal {
	ch := make(chan os.Signal, 2)
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
	return ch
}

// signalled returns a context that ends with HUP, INT or TERM.
func signalled() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	ch := catch()
	go func() { // ends with the process
		i := &interrupted{(<-ch).(syscall.Signal)}
		cancel(i)
		time.Sleep(stuck)
		i.die()
	}()
	return ctx
}

// outliveReaders keeps a long-running process alive when the reader of its output is
// gone, as in fbus serve 2>&1 | head: a write fails then, and SIGPIPE does not kill it.
func outliveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// endedBySignal returns a context that ends with HUP, INT or TERM, so that the command
// can clean up. A second signal ends the process at once.
func endedBySignal() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ch := catch()
	go func() { // ends with a signal, or stop
		if s, ok := <-ch; ok {
			signal.Stop(ch)
			cancel(&interrupted{s.(syscall.Signal)})
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(ch)
	}
}

// quitAtOnce makes Ctrl-\ end this process by the signal, as it ends other commands. Go would
// print the stacks of all goroutines and exit with 2; only a node that hangs has a use for that.
// In the background of a shell without job control, where INT is ignored, QUIT is too: Go does
// not tell whether it was.
func quitAtOnce() {
	var action [8]uintptr // struct sigaction of the kernel, with SIG_DFL
	if signal.Ignored(syscall.SIGINT) {
		action[0] = 1 // SIG_IGN
	}
	const setSize = 8 // of sigset_t
	syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(syscall.SIGQUIT), uintptr(unsafe.Pointer(&action)), 0, setSize, 0, 0)
}

// leaveNoCore keeps this process from leaving a core file, which would contain the key of its
// ticket.
func leaveNoCore() {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_CORE, &limit) == nil && limit.Cur != 0 {
		limit.Cur = 0
		unix.Setrlimit(unix.RLIMIT_CORE, &limit)
	}
}

// die ends this process by the signal.
func (i *interrupted) die() {
	signal.Reset(i.signal)
	syscall.Kill(os.Getpid(), i.signal)
	time.Sleep(time.Second) // until some thread gets it
}
