package commands

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// interrupted is the error of a command that a signal ended: the signal is
// raised again when all is said, so that shells and loops see it.
type interrupted struct{ signal syscall.Signal }

func (i *interrupted) Error() string { return "ended by " + i.signal.String() }

// cleansUp reports whether there is something to do when a signal ends us. If
// not, nothing catches it: the kernel ends the process as everybody expects, the
// node sees the connection go, and cancels the call.
func (o *endOptions) cleansUp() bool {
	return o.output != "" || o.hasFD || o.statusTo != ""
}

// stuck is how long a command that a signal has ended may take to clean up: it
// may be writing to something that has stopped reading.
const stuck = 500 * time.Millisecond

// signalled returns a context that ends with HUP, INT or TERM, unless those were
// ignored when we were started (nohup, and shells for background jobs).
func signalled() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	ch := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
	go func() { // ends with the process
		i := &interrupted{(<-ch).(syscall.Signal)}
		cancel(i)
		time.Sleep(stuck)
		i.die()
	}()
	return ctx
}

// outliveReaders lets a process that stays go on when whoever has read what it says is
// gone, as in fbus serve 2>&1 | head: writing is an error then, and no longer its end.
func outliveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// endedBySignal returns a context that ends with HUP, INT or TERM and leaves it
// to the command to clean up; a second signal ends the process at once.
func endedBySignal() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ch := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
	done := make(chan struct{})
	go func() { // ends with a signal, or stop
		select {
		case s := <-ch:
			signal.Stop(ch)
			cancel(&interrupted{s.(syscall.Signal)})
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(done)
	}
}

// die ends this process as the signal would have.
func (i *interrupted) die() {
	signal.Reset(i.signal)
	syscall.Kill(os.Getpid(), i.signal)
	time.Sleep(time.Second) // it is delivered to some thread, soon
}
