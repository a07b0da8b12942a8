package testscripts

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestDocumented runs every command of README, of the pages in docs and of the help texts as
// it stands, in bash and in dash, with the files, functions and tickets that it speaks of.
func TestDocumented(t *testing.T) {
	t.Parallel()
	sources := map[string][]string{"pages": pageCommands(t), "help": helpCommands(t)}
	if n := len(sources["pages"]); n < 45 {
		t.Errorf("only %d commands on the pages: %q", n, sources["pages"])
	}
	if n := len(sources["help"]); n < 70 {
		t.Errorf("only %d commands in the help texts: %q", n, sources["help"])
	}
	for _, shell := range []string{"bash", "dash"} {
		for source, lines := range sources {
			t.Run(shell+"/"+source, func(t *testing.T) {
				t.Parallel()
				if _, err := exec.LookPath(shell); err != nil {
					t.Skip("needs " + shell)
				}
				if _, err := exec.LookPath("dash"); shell == "bash" && err == nil {
					long(t) // what dash runs, bash hardly refuses
				}
				d := newDocumented(t, shell)
				for _, line := range lines {
					d.check(line)
				}
			})
		}
	}
}

var (
	commandLine = regexp.MustCompile(`^(?:[A-Z_]+=\S+ |(?:id|token)=\$\(|eval "\$\(|echo '[^']*' \| |ls \S+ \| )?fbus |^(systemctl|useradd) `)
	comment     = regexp.MustCompile(`\s+#.*$`)
	// alternatives are words that are not a command as they stand: fbus example bash|node pipe
	alternatives = regexp.MustCompile(`^fbus example \S*\|`)
)

// pageCommands are the commands in blocks of code on the pages.
func pageCommands(t *testing.T) (lines []string) {
	pages, _ := filepath.Glob("../docs/*.md")
	for _, page := range append([]string{"../README.md"}, pages...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if line, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "    "); ok {
				lines = add(lines, strings.TrimPrefix(line, "$ "))
			}
		}
	}
	return lines
}

// helpCommands are the commands in the help texts.
func helpCommands(t *testing.T) (lines []string) {
	help := func(words ...string) string {
		out, err := exec.Command("fbus", append([]string{"help"}, words...)...).Output()
		if err != nil {
			t.Fatal(words, err)
		}
		return string(out)
	}
	texts := []string{help()}
	for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+) `).FindAllStringSubmatch(texts[0], -1) {
		if m[1] != "fbus" {
			texts = append(texts, help(m[1]))
		}
	}
	for _, text := range texts {
		for line := range strings.Lines(text) {
			if line, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "  "); ok {
				lines = add(lines, line)
			}
		}
	}
	return lines
}

// add adds a line that is a command, once.
func add(lines []string, line string) []string {
	line = comment.ReplaceAllString(line, "")
	if !commandLine.MatchString(line) || alternatives.MatchString(line) || slices.Contains(lines, line) {
		return lines // testscripts/example.txtar has the alternatives
	}
	return append(lines, line)
}

// documented is a place where the commands can be run.
type documented struct {
	t     *testing.T
	shell string
	dir   string
	env   []string
}

// functions are those that the commands call.
var functions = map[string]string{
	"wc":       "wc -w",
	"thumb":    "convert - -resize {1} png:-",
	"resize":   "cat",
	"greet":    "cat",
	"price":    "cat",
	"uptime":   "echo up",
	"fetch":    "cat",
	"index":    "cat",
	"notify":   "cat",
	"alarm":    "cat",
	"report":   "cat",
	"webhook":  "cat",
	"test":     "cat",
	"shout":    "tr a-z A-Z",
	"fails":    "false",
	"slow":     "sleep 1000",
	"classify": "cat",
}

// stubs stand in for programs that a machine may lack, or that would change it.
var stubs = map[string]string{
	"convert":      "cat",
	"fbus-gateway": ":",
	"fbus-mesh":    ":",
	"ssh":          `shift; FBUS_HOME=$PWD/theirs exec "$@"`,
	"systemctl":    ":",
	"useradd":      ":",
}

// files are those that the commands read.
var files = map[string]string{
	"big.png": "png", "in.png": "png", "big.jpg": "jpg", "photo.jpg": "jpg", "order.json": `{"n":1}`, "body.json": "{}",
	"urls.txt": "http://a/x\nhttp://b/y\n", "model.py": "", "classify.py": "", "geo.js": "",
	"price.sh": "#!/bin/sh\ncat\n", "price.pl": "#!/bin/sh\ncat\n", "resize.sh": "#!/bin/sh\ncat\n", "lookup.sh": "#!/bin/sh\ncat\n",
}

func newDocumented(t *testing.T, shell string) *documented {
	dir, err := os.MkdirTemp("", "d") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &documented{t: t, shell: shell, dir: dir}
	fbus, err := exec.LookPath("fbus")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string, mode os.FileMode) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(name, text, 0o700)
	}
	for name, text := range stubs {
		write("bin/"+name, "#!/bin/sh\n"+text+"\n", 0o700)
	}
	binary, err := os.ReadFile(fbus) // a copy: see usualSocket
	if err != nil {
		t.Fatal(err)
	}
	write("bin/fbus", string(binary), 0o700)
	if path := python(); path != "" {
		os.Symlink(path, filepath.Join(dir, "bin/python3"))
	}
	for _, sub := range []string{"etc/systemd/system", "run/user/1000", "home", "tmp"} {
		os.MkdirAll(filepath.Join(dir, sub), 0o700)
	}
	readme, _ := os.ReadFile("../README.md")
	write("README.md", string(readme), 0o600)
	page, _ := os.ReadFile("../docs/functions-file.md")
	toml := regexp.MustCompile(`(?s)    # fbus.toml.*?\n\n[^ ]`).FindString(string(page))
	toml = regexp.MustCompile(`(?m)^    |^[^ \n].*$`).ReplaceAllString(toml, "")
	write("fbus.toml", toml, 0o600)
	write("functions.toml", toml, 0o600)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "FBUS_") && !strings.HasPrefix(kv, "PATH=") && !strings.HasPrefix(kv, "HOME=") {
			d.env = append(d.env, kv)
		}
	}
	d.env = append(d.env, "PATH="+filepath.Join(dir, "bin")+":"+filepath.Dir(fbus)+":"+os.Getenv("PATH"), "HOME="+dir+"/home", "TMPDIR="+dir+"/tmp",
		"FBUS_NODE="+dir+"/n.sock", "FBUS_HOME="+dir+"/ours", "FBUS_STATE="+dir+"/state", "GORACE=atexit_sleep_ms=0", "delivery="+filepath.Base(dir))
	toml = ""
	for name, command := range functions {
		toml += fmt.Sprintf("[functions.%s]\ncommand = [%s]\n", name, quoted(strings.Fields(command)))
	}
	toml = fmt.Sprintf("[node]\nserve = true\nsocket = %q\nlisten = \"127.0.0.1:0\"\n%s", dir+"/n.sock", toml)
	write("bed.toml", toml, 0o600)
	d.start("fbus up -c bed.toml", `offering \d+ function`)
	return d
}

func quoted(words []string) string {
	var list []string
	for _, w := range words {
		list = append(list, fmt.Sprintf("%q", w))
	}
	return strings.Join(list, ",")
}

// usualSocket are lines of a node in /tmp.
var usualSocket = regexp.MustCompile(`^fbus serve( &)?$|^fbus serve --socket-group`)

// command makes a process of a line.
func (d *documented) command(line string) *exec.Cmd {
	cmd := exec.Command(d.shell, "-c", line)
	cmd.Dir, cmd.Env = d.dir, d.env
	if usualSocket.MatchString(line) { // other tests would find this node in /tmp: it gets one of its own
		cmd = exec.Command("unshare", "-m", "sh", "-c", `mount -t tmpfs none /tmp && exec "$0" -c "$1"`, d.shell, line)
		cmd.Dir, cmd.Env = d.dir, append(slices.Clone(d.env), "PATH=bin:"+os.Getenv("PATH"), "HOME=home", "TMPDIR=tmp", "FBUS_HOME=theirs", "FBUS_STATE=theirs")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.WaitDelay = patience
		return cmd
	}
	if strings.HasPrefix(line, "FBUS_TICKET=") { // it says where the node is
		cmd.Env = slices.DeleteFunc(slices.Clone(d.env), func(kv string) bool { return strings.HasPrefix(kv, "FBUS_NODE=") })
	}
	if strings.HasPrefix(line, "fbus join ") || strings.HasPrefix(line, "fbus serve") || line == "fbus up" { // another machine, another node
		cmd.Env = append(cmd.Env, "FBUS_HOME="+d.dir+"/theirs", "FBUS_STATE="+d.dir+"/theirs")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = patience
	return cmd
}

// start runs a line that does not end by itself until it says what it should, and ends it with
// the test.
func (d *documented) start(line, ready string) (end func()) {
	d.t.Helper()
	said := new(saying)
	cmd := d.command(line)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with the process
		cmd.Wait()
		close(done)
	}()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(patience):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			d.t.Errorf("%s: did not end", line)
		}
	}
	d.t.Cleanup(end)
	re := regexp.MustCompile(ready)
	for limit := time.Now().Add(patience); !re.MatchString(said.String()); time.Sleep(5 * time.Millisecond) {
		select {
		case <-done:
			if !re.MatchString(said.String()) {
				d.t.Errorf("%s: %s ended with %v\n%s", d.shell, line, cmd.ProcessState, said)
			}
			return end
		default:
		}
		if time.Now().After(limit) {
			d.t.Errorf("%s: %s did not say %s\n%s", d.shell, line, ready, said)
			return end
		}
	}
	return end
}

// run runs a line to its end.
func (d *documented) run(line string) (status int, output string) {
	var out bytes.Buffer
	cmd := d.command(line)
	cmd.Stdout, cmd.Stderr = &out, &out
	stop := time.AfterFunc(patience, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer stop.Stop()
	err := cmd.Run()
	if cmd.ProcessState == nil {
		d.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// must runs a line that prepares another.
func (d *documented) must(line string) string {
	d.t.Helper()
	status, out := d.run(line)
	if status != 0 {
		d.t.Fatalf("%s: status %d\n%s", line, status, out)
	}
	return strings.TrimSpace(out)
}

// set sets a variable of the environment.
func (d *documented) set(name, value string) {
	d.env = append(slices.DeleteFunc(slices.Clone(d.env), func(kv string) bool { return strings.HasPrefix(kv, name+"=") }), name+"="+value)
}

// preparations are what lines need before they are run.
var preparations = []struct {
	line    *regexp.Regexp
	prepare func(d *documented)
}{
	{regexp.MustCompile(`fbus invite`), func(d *documented) {
		d.must("rm -rf ./*.ticket theirs; for name in ci gpu-box farm; do fbus revoke -q $name || :; done")
	}},
	{regexp.MustCompile(`fbus join gpu`), func(d *documented) {
		d.must("rm -rf gpu.ticket theirs; fbus invite -q --offer 'resize*' -o gpu.ticket")
	}},
	{regexp.MustCompile(`^FBUS_TICKET=ci|revoke ci`), func(d *documented) {
		d.must("test -e ci.ticket || { fbus revoke -q ci || :; fbus invite -q --call 'resize*' --name ci --ttl 30d --reusable -o ci.ticket; }")
	}},
	{regexp.MustCompile(`retry "\$id"`), func(d *documented) { d.set("id", d.must(`id=$(fbus post -n fails); fbus wait -q "$id"; echo "$id"`)) }},
	{regexp.MustCompile(`(result|wait|jobs) .*"\$id"`), func(d *documented) { d.set("id", d.must("fbus post resize < big.png")) }},
	{regexp.MustCompile(`"\$job"`), func(d *documented) { d.set("job", d.must("fbus post -n nobody")) }},
	{regexp.MustCompile(`--batch pages`), func(d *documented) {
		d.must(`fbus purge -q $(fbus jobs --batch pages --json | sed 's/.*"id":"\([^"]*\)".*/\1/') || :`) // also what --unique-for keeps
		d.must("fbus post -q --each arg --batch pages fetch < urls.txt && fbus wait --batch pages")
	}},
	{regexp.MustCompile(`cancel --batch`), func(d *documented) { d.must("fbus post -n --batch pages nobody") }},
	{regexp.MustCompile(`fbus ps`), func(d *documented) {
		if !strings.Contains(d.must("fbus ps"), "slow") {
			d.start("fbus call -v -n slow", "node: ")
			d.must("until fbus ps | grep -q running; do sleep 0.02; done")
		}
	}},
	{regexp.MustCompile(`release resize`), func(d *documented) { d.must("fbus hold resize") }},
	{regexp.MustCompile(`release --on`), func(d *documented) { d.must("fbus hold --on 'gpu*'") }},
	{regexp.MustCompile(`log --follow`), func(d *documented) { d.must("fbus call resize < big.png") }},
	{regexp.MustCompile(`jobs --watch`), func(d *documented) { d.must("fbus post resize < big.png") }},
}

// endless are lines that do not end by themselves, and what they say once they work.
var endless = []struct {
	line  *regexp.Regexp
	ready string
}{
	{regexp.MustCompile(`^fbus serve`), `is ready at`},
	{regexp.MustCompile(`fbus offer `), `offering \w+`},
	{regexp.MustCompile(`^fbus up( -c \S+)?$`), `offering \d+ function`},
	{regexp.MustCompile(`log --follow( |$)`), `resize`},
	{regexp.MustCompile(`--watch`), `.`},
	{regexp.MustCompile(`python3 worker.py`), ``},
}

// failing are lines that show a failure, and its status: of a machine that is not there, or
// whose network was not joined.
var failing = map[string][]int{
	"fbus call --node gpu-box resize < in.png": {77, 255},
	"fbus doctor --node gpu-box":               {77, 255},
}

// needed are lines that need what only some machines have.
var needed = []struct {
	line *regexp.Regexp
	what string
	have func() bool
}{
	{regexp.MustCompile(`python3 worker.py`), "python3 with msgpack", func() bool { return python() != "" }},
	{usualSocket, "a mount namespace of its own", func() bool { return exec.Command("unshare", "-m", "mount", "-t", "tmpfs", "none", "/tmp").Run() == nil }},
	{regexp.MustCompile(`python3|^fbus up`), "python3", onPath("python3")},
	{regexp.MustCompile(`node geo.js`), "node", onPath("node")},
	{regexp.MustCompile(`perl `), "perl", onPath("perl")},
	{regexp.MustCompile(`\| jq|json \| jq`), "jq", onPath("jq")},
	{regexp.MustCompile(`alice`), "a user alice", func() bool { _, err := user.Lookup("alice"); return err == nil }},
	{regexp.MustCompile(`^fbus mesh`), "fbus-mesh, which has its own tests", func() bool { return false }},
	{regexp.MustCompile(`group staff`), "a group staff", func() bool { _, err := user.LookupGroup("staff"); return err == nil }},
}

func onPath(name string) func() bool {
	return func() bool { _, err := exec.LookPath(name); return err == nil }
}

// check runs a line, and checks its status.
func (d *documented) check(line string) {
	d.t.Helper()
	for _, n := range needed {
		if n.line.MatchString(line) && !n.have() {
			d.t.Logf("skipped, it needs %s: %s", n.what, line)
			return
		}
	}
	for _, p := range preparations {
		if p.line.MatchString(line) {
			p.prepare(d)
		}
	}
	// Not into the machine's own directories.
	run := strings.NewReplacer("/etc/systemd", d.dir+"/etc/systemd", "/run/user", d.dir+"/run/user").Replace(strings.TrimSuffix(line, " &"))
	for _, e := range endless {
		if e.line.MatchString(line) {
			end := d.start(run, e.ready)
			if e.ready == "" {
				d.must("until fbus describe -q hello; do sleep 0.02; done")
			}
			end()
			return
		}
	}
	status, out := d.run(run)
	if may := failing[line]; status != 0 && may == nil || may != nil && !slices.Contains(may, status) {
		d.t.Errorf("%s: %s: status %d\n%s", d.shell, line, status, out)
	}
	if strings.Contains(line, "hold ") {
		d.run("fbus release resize; fbus release --on 'gpu*'")
	}
	if strings.Contains(line, "revoke ci") {
		d.must("rm -f ci.ticket")
	}
}

// saying keeps what a process says.
type saying struct {
	mu   sync.Mutex // protects text
	text []byte
}

// Write implements io.Writer.
func (s *saying) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	return len(p), nil
}

// String returns what was said so far.
func (s *saying) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.text)
}
