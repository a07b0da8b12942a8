package commands

import (
	"errors"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"fbus/bus/args"

	"golang.org/x/sys/unix"
)

// A companion is a separate program, fbus-NAME, that fbus NAME runs as git runs
// git-NAME. What needs heavy libraries is one, so that no call pays for them.

const companionPrefix = "fbus-"

// knownCompanions are the companions in cmd/ of the source.
var knownCompanions = []struct{ name, usage string }{
	{"bench", "measure what the bus costs on this machine"},
	{"conformance", "judge an implementation of the wire protocol"},
	{"gateway", "serve functions and jobs over HTTP"},
	{"mcp", "give AI agents the functions of the bus as tools"},
	{"mesh", "connect this node to the others of its network"},
}

// companionDirs lists where companions are looked for: the directory of this
// binary as it was called, the one that a symbolic link led to, then PATH.
func companionDirs() []string {
	var dirs []string
	if path, err := osexec.LookPath(os.Args[0]); err == nil {
		if path, err = filepath.Abs(path); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	if path, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) { // anybody may have written the current directory
			dirs = append(dirs, filepath.Clean(dir))
		}
	}
	return dirs
}

// findCompanion returns the path of a companion. Its error is ENOENT, or EACCES
// if every file of that name is not executable.
func findCompanion(name string) (string, error) {
	result := error(syscall.ENOENT)
	path := ""
	for _, dir := range companionDirs() {
		file := filepath.Join(dir, companionPrefix+name)
		st, err := os.Stat(file)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		if unix.Access(file, unix.X_OK) == nil {
			return file, nil
		}
		if path == "" {
			path, result = file, syscall.EACCES
		}
	}
	return path, result
}

// isCompanionName reports whether a word can be the name of a companion: no path leads out
// of the directories that are searched.
func isCompanionName(word string) bool {
	return word != "" && !strings.ContainsFunc(word, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

// runCompanion replaces this process with the companion of that name. It returns
// nil if none is installed and the name is not that of a known one.
func runCompanion(name string, words []string) error {
	if !isCompanionName(name) {
		return nil
	}
	path, err := findCompanion(name)
	switch {
	case err == nil:
		env := os.Environ()
		if self, err := os.Executable(); err == nil { // so that it can run the same fbus
			env = append(slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "FBUS=") }), "FBUS="+self)
		}
		err = syscall.Exec(path, append([]string{path}, words...), env)
		return fail(args.CodeCannotRun, "%s: %v", path, err)
	case errors.Is(err, syscall.EACCES):
		return fail(args.CodeCannotRun, "%s: %v", path, err)
	}
	for _, c := range knownCompanions {
		if c.name == name {
			return fail(args.CodeNotFound, "%s%s is not installed", companionPrefix, name).
				WithHint("in the source of fbus: cd cmd && go install ./%s%s; fbus looks for it in its own directory and on PATH", companionPrefix, name)
		}
	}
	return nil
}

// companions maps the companions that are installed to what each does or, for an
// unknown one, to its path. A command of fbus hides a companion of its name.
func companions() map[string]string {
	found := map[string]string{}
	for _, dir := range companionDirs() {
		files, _ := os.ReadDir(dir)
		for _, file := range files {
			name, ok := strings.CutPrefix(file.Name(), companionPrefix)
			if !ok || !isCompanionName(name) || found[name] != "" || isCommand(name) {
				continue
			}
			if path, err := findCompanion(name); err == nil {
				found[name] = args.OneLine(path)
			}
		}
	}
	for _, c := range knownCompanions {
		if found[c.name] != "" {
			found[c.name] = c.usage
		}
	}
	return found
}

func isCommand(name string) bool {
	return slices.ContainsFunc(commandTable, func(c tableEntry) bool { return c.name == name })
}
