package exec

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// result is how the run ended. A program that was done before it was told to
// end keeps its own status; output that was cut never goes with one.
func (r *run) result() Result {
	defer r.leaf.remove()
	r.mu.Lock()
	why := r.why
	r.mu.Unlock()
	var res Result
	switch {
	case r.exit.kind == msgFailed:
		res = r.f.failed(syscall.Errno(r.exit.errno)).result()
	case why == outputLimit:
		res = r.ended(why)
	case r.exit.kind == msgExited && !r.exit.ended:
		res = r.exited(syscall.WaitStatus(r.exit.status))
	case why != none:
		res = r.ended(why)
	default:
		res = Result{Source: SourceFbus, Status: StatusLost, Code: "worker_lost", Message: "the program's keeper was killed"}
	}
	if r.survivor != "" {
		res.Message = join(res.Message, "could not be killed: "+r.survivor)
		r.f.logf("%s: could not be killed: %s", r.f.spec.Name, r.survivor)
	}
	return res
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func (r *run) exited(ws syscall.WaitStatus) Result {
	if !ws.Signaled() {
		return Result{Source: SourceProgram, Status: ws.ExitStatus(), Code: "exit"}
	}
	res := Result{Source: SourceSignal, Status: 128 + int(ws.Signal()), Code: signalName(ws.Signal())}
	if r.leaf.oom() {
		res.Message = "out of memory: the limit is " + size(r.f.spec.Memory)
	}
	return res
}

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
	res := Result{Source: SourceFbus, Status: StatusCancelled, Code: "cancelled", Message: "cancelled"}
	switch why {
	case deadline:
		res = Result{Source: SourceFbus, Status: StatusDeadline, Code: "deadline", Message: "deadline exceeded"}
	case timeout:
		res = Result{Source: SourceFbus, Status: StatusDeadline, Code: "deadline", Message: fmt.Sprintf("ran longer than %v", f.spec.Timeout)}
	case outputLimit:
		res = Result{Source: SourceFbus, Status: StatusInternal, Code: "output_limit", Message: "output exceeds " + size(f.spec.MaxOutput)}
	}
	return res
}

// failed says why the program could not be executed. It was there when it was
// offered, so what is wrong now is looked for again.
func (f *Function) failed(errno syscall.Errno) *Error {
	path := f.program.path
	switch errno {
	case unix.E2BIG:
		return badInput("the arguments are too long for a command line")
	case unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE:
		return internal(fmt.Errorf("start %s: %w", path, errno))
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
		if e, ok := err.(*Error); ok && e.Status != StatusUsage {
			return e
		}
	}
	if errno == unix.ENOENT {
		return notFound("%s: %s", path, errno)
	}
	return cannotRun("%s: %s", path, errno)
}

// whyEnded says how a process ended that no call can tell of, with the last
// that it said. The zero report is a dead keeper's.
func (f *Function) whyEnded(end *report, l *leaf, last string) string {
	ws := syscall.WaitStatus(end.status)
	var why string
	switch {
	case end.kind == msgFailed:
		return f.failed(syscall.Errno(end.errno)).Msg
	case end.kind == 0:
		why = "the program's keeper was killed"
	case !ws.Signaled():
		why = fmt.Sprintf("the program exited with status %d", ws.ExitStatus())
	default:
		why = "the program was ended by " + signalName(ws.Signal())
	}
	if l.oom() {
		why += ", out of memory: the limit is " + size(f.spec.Memory)
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
