package exec

import (
	"fmt"
	"os"
	"syscall"

	"fbus/exec/keeper"

	"golang.org/x/sys/unix"

	"fbus/bus/args"
)

// result returns how the run ended. A program that exited before it was asked to
// keeps its own status; but output that was cut never goes with one.
func (r *run) result() Result {
	r.mu.Lock()
	why := r.why
	r.mu.Unlock()
	var res Result
	switch {
	case r.exit.Errno != 0:
		res = failure(r.f.failed(r.exit.Errno))
	case why == outputLimit:
		res = r.ended(why)
	case r.exit.Exited && !r.exit.Asked:
		res = r.exited()
	case why != none:
		res = r.ended(why)
	default:
		res = fbusEnd(args.CodeWorkerLost, "the program's keeper was killed")
	}
	if r.exit.Survivors != "" {
		res.Message = join(res.Message, "could not be killed: "+r.exit.Survivors)
		r.f.logf("%s: could not be killed: %s", r.f.spec.Name, r.exit.Survivors)
	}
	return res
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func (r *run) exited() Result {
	ws := r.exit.Status
	if !ws.Signaled() {
		return Result{End: args.End{Source: args.FromProgram, Status: ws.ExitStatus(), Code: "exit"}}
	}
	res := Result{End: args.End{Source: args.FromSignal, Status: 128 + int(ws.Signal()), Code: signalName(ws.Signal())}}
	if r.exit.OutOfMemory {
		res.Message = r.f.outOfMemory()
	}
	return res
}

func (f *Function) outOfMemory() string { return "out of memory: the limit is " + size(f.spec.Memory) }

func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return fmt.Sprintf("SIG%d", int(sig))
}

func (r *run) ended(why ending) Result {
	res := r.f.endedAs(why)
	if why == inputLost {
		res.Message = fmt.Sprintf("cancelled: input ended early: %v", r.lost)
	}
	return res
}

// endedAs is the end of a call that fbus ended.
func (f *Function) endedAs(why ending) Result {
	res := fbusEnd(args.CodeCancelled, "cancelled")
	switch why {
	case deadline:
		res = fbusEnd(args.CodeDeadline, "deadline exceeded")
	case timeout:
		res = fbusEnd(args.CodeDeadline, fmt.Sprintf("ran longer than %v", f.spec.Timeout))
	case outputLimit:
		res = fbusEnd(args.CodeOutputLimit, "output exceeds "+size(f.spec.MaxOutput))
	}
	return res
}

// failed says why the program could not be executed. It was there when it was
// offered, so what is wrong now is looked for again.
func (f *Function) failed(errno syscall.Errno) *args.Error {
	path := f.program.path
	switch errno {
	case unix.E2BIG:
		return args.BadInput("the arguments are too long for a command line")
	case unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE:
		return args.Errorf(args.CodeInternal, "start %s: %s", path, errno)
	case unix.ENOEXEC:
		e := cannotRun("%s: %s", path, errno)
		if interp, _ := shebang(path); interp == "" {
			e.Hint = "a script begins with a line such as #!/bin/sh"
		}
		return e
	}
	if dir := f.program.dir; dir != "" {
		if _, err := os.Stat(dir); err != nil {
			return cannotRun("directory %s: %s", dir, reason(err))
		}
	}
	if _, err := findProgram(&f.spec); err != nil {
		if e, ok := err.(*args.Error); ok && e.Code != args.CodeUsage {
			return e
		}
	}
	if errno == unix.ENOENT {
		return notFound("%s: %s", path, errno)
	}
	return cannotRun("%s: %s", path, errno)
}

// whyEnded describes the end of a process that held no call, with the last line
// of its output.
func (f *Function) whyEnded(end *keeper.End, last string) string {
	var why string
	switch {
	case end.Errno != 0:
		return f.failed(end.Errno).Message
	case !end.Exited:
		why = "the program's keeper was killed"
	case !end.Status.Signaled():
		why = fmt.Sprintf("the program exited with status %d", end.Status.ExitStatus())
	default:
		why = "the program was ended by " + signalName(end.Status.Signal())
	}
	if end.OutOfMemory {
		why += ", " + f.outOfMemory()
	}
	if last != "" {
		why += ": " + last
	}
	return why
}

// size writes a number of bytes as users write it.
func size(n int64) string {
	units := []struct {
		bytes int64
		name  string
	}{{1 << 40, "T"}, {1 << 30, "G"}, {1 << 20, "M"}, {1 << 10, "K"}}
	for _, u := range units {
		if n >= u.bytes && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
