// Package companion has what every companion of fbus begins and ends with.
package companion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"fbus/bus/args"
)

// Main runs a companion and ends the process. HUP, INT and TERM end run's context;
// when run has cleaned up, the signal ends the process, so that shell loops stop. A
// second signal does at once. Errors are printed as fbus prints its own, and an
// [args.Error] decides the exit status.
func Main(run func(ctx context.Context, words []string, stdout, stderr io.Writer) error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	go func() { // ends with the process
		s := <-signals
		signal.Reset()
		cancel(caught{s.(syscall.Signal)})
	}()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if s := (caught{}); errors.As(context.Cause(ctx), &s) {
		syscall.Kill(os.Getpid(), s.Signal)
		time.Sleep(time.Second) // some thread gets it, soon
	}
	if s := Status(0); errors.As(err, &s) {
		os.Exit(int(s))
	}
	if err != nil {
		os.Exit(report(os.Stderr, err))
	}
	os.Exit(0)
}

// Status is an exit status that needs no message: all has been said.
type Status int

func (s Status) Error() string { return fmt.Sprintf("status %d", int(s)) }

// caught is the signal that has ended a context.
type caught struct{ syscall.Signal }

func (c caught) Error() string { return "ended by " + c.String() }

// report prints an error and returns the exit status for it.
func report(w io.Writer, err error) int {
	e := args.AsError(err, args.CodeInternal)
	fmt.Fprintln(w, "fbus:", args.OneLine(e.Error()))
	if e.Hint != "" {
		fmt.Fprintln(w, "fbus: hint:", args.OneLine(e.Hint))
	}
	return e.Status()
}

// Fbus returns the path of fbus: the one that has run this companion, else the one
// in the same directory, else the one on PATH.
func Fbus() (string, error) {
	if path := os.Getenv("FBUS"); path != "" {
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), "fbus")); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("fbus")
	if err != nil {
		return "", args.Errorf(args.CodeNotFound, "fbus is neither in the directory of this program nor on PATH")
	}
	return path, nil
}
