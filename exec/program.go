package exec

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"fbus/bus/args"
)

// program is a program that was found.
type program struct {
	path string // absolute
	dir  string // absolute, or "" for the worker's own
}

// findProgram looks PROGRAM up as a shell started in Dir would, and finds out
// now what would otherwise fail in every call.
func findProgram(spec *Spec) (program, error) {
	var p program
	if err := checkEnv(spec.Env); err != nil {
		return p, err
	}
	for _, w := range spec.Argv {
		if strings.ContainsRune(w, 0) {
			return p, usage("", "the command line holds a NUL byte")
		}
	}
	cwd, err := os.Getwd()
	if err != nil {
		return p, args.AsError(err, args.CodeInternal)
	}
	if spec.Dir != "" {
		if p.dir, err = checkDir(cwd, spec.Dir); err != nil {
			return p, err
		}
		cwd = p.dir
	}
	path := searchPath(spec.Env)
	if p.path, err = lookProgram(spec.Argv[0], cwd, path); err != nil {
		return p, err
	}
	return p, checkInterpreter(p.path, cwd, path)
}

func checkDir(cwd, dir string) (string, error) {
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(cwd, dir)
	}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return "", usage("", "directory %s: %s", dir, reason(err))
	}
	return dir, nil
}

// DefaultPath is searched where PATH is not set, as execvp(3) does it.
const DefaultPath = "/bin:/usr/bin"

// searchPath is PATH as the program will see it, or the default.
func searchPath(env []string) string {
	if path, set := lookup(env, "PATH"); set {
		return path
	}
	if path, set := os.LookupEnv("PATH"); set {
		return path
	}
	return DefaultPath
}

// lookProgram finds name, relative to cwd if it holds a slash, else on path.
// A file that cannot be executed does not hide one further on.
func lookProgram(name, cwd, path string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(cwd, name)
		}
		return name, checkExecutable(name)
	}
	var found error
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(cwd, dir)
		}
		file := filepath.Join(dir, name)
		err := checkExecutable(file)
		var e *args.Error
		switch {
		case err == nil:
			return file, nil
		case errors.As(err, &e) && e.Code == args.CodeCannotRun && found == nil:
			found = err
		}
	}
	if found != nil {
		return "", found
	}
	e := notFound("%s is not on PATH", name)
	if checkExecutable(filepath.Join(cwd, name)) == nil {
		e.Hint = "to run the one in this directory, write ./" + name
	}
	return "", e
}

func notFound(format string, a ...any) *args.Error {
	return args.Errorf(args.CodeNotFound, format, a...)
}

func cannotRun(format string, a ...any) *args.Error {
	return args.Errorf(args.CodeCannotRun, format, a...)
}

func checkExecutable(file string) error {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return notFound("%s: %s", file, reason(err))
	case err != nil:
		return cannotRun("%s: %s", file, reason(err))
	case !info.Mode().IsRegular(): // execve(2) runs nothing else, and to open a FIFO would wait for a writer
		return cannotRun("%s is %s", file, kindOf(info.Mode()))
	}
	if err := unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS); err != nil {
		e := cannotRun("%s: %s", file, reason(err))
		if info.Mode()&0o111 == 0 {
			e.Hint = "chmod +x " + args.Quote(file)
		}
		return e
	}
	return nil
}

// kindOf names the kind of a file that is not regular.
func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "not a regular file"
}

// checkInterpreter follows "#!" lines. The kernel reports a missing
// interpreter as "no such file" about the script itself, which sends people
// looking in the wrong place.
func checkInterpreter(file, cwd, path string) error {
	script := file
	for range 4 { // as deep as the kernel goes
		interp, arg := shebang(file)
		if interp == "" {
			return checkFormat(file, script)
		}
		if !filepath.IsAbs(interp) {
			interp = filepath.Join(cwd, interp)
		}
		if err := checkExecutable(interp); err != nil {
			return badInterpreter(file, interp, err)
		}
		if filepath.Base(interp) == "env" && arg != "" && !strings.HasPrefix(arg, "-") && !strings.Contains(arg, "=") {
			found, err := lookProgram(arg, cwd, path)
			if err != nil {
				return badInterpreter(file, arg, err)
			}
			if i, _ := shebang(found); i == "" {
				return nil // env has sh run what the kernel cannot
			}
			interp = found
		}
		file = interp
	}
	return nil
}

func badInterpreter(file, interp string, err error) error {
	why := "no such file"
	if cause, ok := errors.AsType[*args.Error](err); ok && cause.Code == args.CodeCannotRun {
		why = "it cannot be executed"
	}
	e := cannotRun("%s: bad interpreter %q: %s", file, interp, why)
	if strings.HasSuffix(interp, "\r") {
		e.Hint = "the script has DOS line ends: sed -i 's/\\r$//' " + file
	}
	return e
}

// shebang reads a script's interpreter and its one argument; "" if file is
// no script, or cannot be read (it may still be executable).
func shebang(file string) (interp, arg string) {
	f, err := os.Open(file)
	if err != nil {
		return "", ""
	}
	defer f.Close()
	buf := make([]byte, 256) // the kernel's BINPRM_BUF_SIZE
	n, _ := f.Read(buf)
	line, ok := bytes.CutPrefix(buf[:n], []byte("#!"))
	if !ok {
		return "", ""
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	text := strings.Trim(string(line), " \t")
	if i := strings.IndexAny(text, " \t"); i >= 0 {
		return text[:i], strings.Trim(text[i:], " \t")
	}
	return text, ""
}

// reason is the last link of an error's chain, in the system's words.
func reason(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}
