package exec

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"fbus/bus/args"
)

// notInherited never reaches a program from its worker's own environment:
// the ticket is a secret, the others describe a call that is not this one.
var notInherited = []string{
	"FBUS_TICKET", "FBUS_FUNCTION", "FBUS_CALL_ID", "FBUS_CALLER", "FBUS_DEADLINE", "FBUS_NODE", "FBUS_SLOT",
	"FBUS_JOB_ID", "FBUS_ATTEMPT", "FBUS_PARENT_ID", "FBUS_PARENT_FUNCTION", "FBUS_PARENT_STATUS", "FBUS_PARENT_ATTEMPTS",
	"FBUS_PROGRESS_FD", "TRACEPARENT", "TRACESTATE",
}

// ownPaths name files and directories of fbus; without FBUS_HOME, they are below HOME. A program in
// another directory gets absolute ones.
var ownPaths = []string{"HOME", "FBUS_HOME", "FBUS_STATE", "FBUS_TLS_CERT", "FBUS_TLS_KEY", "FBUS_TLS_CA"}

// ofService are the variables of a service manager for its service. A program that
// inherited them could act in the worker's name.
var ofService = []string{
	"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID",
}

// baseEnviron is the part of a program's environment that is the same in
// every call. Of a name given twice the last counts, as in a shell.
func baseEnviron(spec *Spec) []string {
	env := make([]string, 0, 64)
	at := make(map[string]int)
	add := func(kv string) {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := at[name]; ok {
			env[i] = kv
			return
		}
		at[name] = len(env)
		env = append(env, kv)
	}
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if slices.Contains(ownPaths, name) && value != "" {
			if path, err := filepath.Abs(value); err == nil {
				kv = name + "=" + path
			}
		}
		if !slices.Contains(notInherited, name) && !slices.Contains(ofService, name) {
			add(kv)
		}
	}
	if spec.Resident != NotResident {
		add("PYTHONUNBUFFERED=1") // or an answer stays in Python's buffer for ever
	}
	for _, kv := range spec.Env {
		add(kv)
	}
	for _, name := range notInherited[1:] {
		// An entry of the offer would come in addition to the call's own.
		if i, ok := at[name]; ok {
			env[i] = ""
		}
	}
	env = slices.DeleteFunc(env, func(kv string) bool { return kv == "" })
	if spec.ProgressFD > 0 {
		env = append(env, "FBUS_PROGRESS_FD="+strconv.Itoa(spec.ProgressFD))
	}
	return append(env, "FBUS_FUNCTION="+spec.Name)
}

// lookup returns the value of a variable in an offer's environment.
func lookup(env []string, name string) (value string, set bool) {
	for _, kv := range slices.Backward(env) {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

// callEnviron is the part that is each call's own. All names are ours: what
// callers send is never one.
func callEnviron(c *Call, node string) []string {
	env := make([]string, 0, 4)
	add := func(name, value string) {
		if value != "" && !strings.ContainsRune(value, 0) {
			env = append(env, name+"="+value)
		}
	}
	add("FBUS_CALL_ID", c.ID)
	add("FBUS_CALLER", c.Caller)
	if !c.Deadline.IsZero() {
		add("FBUS_DEADLINE", c.Deadline.UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	}
	add("FBUS_NODE", node)
	if c.Job != "" {
		add("FBUS_JOB_ID", c.Job)
		add("FBUS_ATTEMPT", strconv.Itoa(c.Attempt))
	}
	parent, state := args.SplitTrace(c.Trace)
	add("TRACEPARENT", parent)
	add("TRACESTATE", state)
	if p := originOf(c); p != nil {
		add("FBUS_PARENT_ID", p.ID)
		add("FBUS_PARENT_FUNCTION", p.Function)
		add("FBUS_PARENT_STATUS", strconv.Itoa(p.Status))
		add("FBUS_PARENT_ATTEMPTS", strconv.Itoa(p.Attempts))
	}
	return env
}

// checkEnv finds what could not be an environment entry. Its errors do not contain values,
// which may be secrets.
func checkEnv(env []string) error {
	for i, kv := range env {
		name, _, ok := strings.Cut(kv, "=")
		switch {
		case !ok, name == "":
			return usage("", "environment entry %d is not NAME=VALUE", i+1)
		case strings.ContainsRune(kv, 0):
			return usage("", "environment variable %q holds a NUL byte", strings.ReplaceAll(name, "\x00", ""))
		}
	}
	return nil
}

// origin is the job whose end has posted another one, as Call.Origin has it.
type origin struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Status   int    `json:"status"`
	Attempts int    `json:"attempts"`
}

// originOf reads Call.Origin. The node has written it: one that makes no sense
// counts as none.
func originOf(c *Call) *origin {
	if c.Origin == "" {
		return nil
	}
	p := &origin{}
	if json.Unmarshal([]byte(c.Origin), p) != nil {
		return nil
	}
	return p
}

// params are the parameters of a request about that job's end: what there is to
// know of it, and its output as a string, in base64 where it is not UTF-8.
func (p *origin) params(output []byte) []byte {
	out := make([]byte, 0, len(output)+256)
	out = args.AppendString(append(out, `{"id":`...), []byte(p.ID))
	out = args.AppendString(append(out, `,"function":`...), []byte(p.Function))
	out = append(out, `,"status":`+strconv.Itoa(p.Status)+`,"attempts":`+strconv.Itoa(p.Attempts)+`,"output":`...)
	if utf8.Valid(output) {
		return append(args.AppendString(out, output), '}')
	}
	out = append(base64.StdEncoding.AppendEncode(append(out, '"'), output), '"')
	return append(out, `,"encoding":"base64"}`...)
}
