package commands

import (
	"embed"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"fbus/bus/args"
	"fbus/bus/find"

	"github.com/urfave/cli/v2"
)

//go:embed units
var unitFiles embed.FS

// unitOptions are the flags of fbus unit.
type unitOptions struct {
	command string // serve or up
	words   []string
	user    bool
	socket  bool
}

func unitCommand() *cli.Command {
	o := &unitOptions{}
	return &cli.Command{
		Usage:     "print a systemd unit for a node, or for functions",
		UsageText: "unit serve|up [--user] [--socket-unit] [-- FLAGS…]",
		Description: `FLAGS are those of fbus serve or fbus up. They are checked and written into the unit. A
configuration file among them is read too: where the socket is, for example, decides what
the unit must allow. A file or group that does not exist here is only a warning, because
the service may run on another machine. The time to stop depends on the drain. The service
of fbus up runs in the current directory.

  fbus unit serve > /etc/systemd/system/fbus.service
  fbus unit serve --socket-unit > /etc/systemd/system/fbus.socket
  systemctl daemon-reload && systemctl enable fbus.socket fbus.service
  systemctl start fbus.socket fbus.service

With the socket unit, a restart refuses nobody: clients that connect during the restart
wait for the next node, up to 10s. With the service alone they are refused. With --user
the files belong into ~/.config/systemd/user, and the command is systemctl --user.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "user", Usage: "for the service manager of this user, not of the machine", Destination: &o.user, DisableDefaultText: true},
			&cli.BoolFlag{Name: "socket-unit", Usage: "print the socket unit that belongs to the service of serve", Destination: &o.socket, DisableDefaultText: true},
		},
		Action: func(ctx *cli.Context) error {
			words := ctx.Args().Slice()
			if i := slices.Index(words, "--"); i >= 0 {
				words, o.words = words[:i], words[i+1:]
			}
			switch {
			case len(words) == 0:
				return usage("fbus unit needs serve or up").WithHint("fbus unit serve")
			case len(words) > 1:
				return usage("flags of fbus %s must follow --", words[0]).WithHint("%s", join("fbus", "unit", words[:1], "--", words[1:]))
			case words[0] != "serve" && words[0] != "up":
				return usage("fbus unit prints no unit for %s, only for serve and up", words[0]).WithHint("fbus unit serve")
			case o.socket && words[0] != "serve":
				return usage("--socket-unit is for serve only: up does not listen")
			}
			o.command = words[0]
			warn, _ := logger(ctx.App.ErrWriter)
			return unit(o, ctx.App.Writer, warn)
		},
	}
}

// unitText is the data of the templates.
type unitText struct {
	User, System bool
	ExecStart    string
	Socket       string // the service manager listens there
	SocketGroup  string // its members may connect as well
	Directory    string
	Drain, Stop  string
	Target       string
	Writable     []string // directories outside of the service's own
	InHome       bool     // it needs a file below a home directory
	InTmp        string   // the socket, if it is in /tmp
}

// unit checks the flags for the unit as their command does, and prints the unit.
func unit(o *unitOptions, stdout io.Writer, warn logf) error {
	self, err := os.Executable()
	if err != nil {
		return fail(args.CodeInternal, "%v", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return fail(args.CodeInternal, "%v", err)
	}
	if strings.Contains(strings.Join(o.words, "")+self+dir, "\n") {
		return usage("a unit cannot contain a newline: %s", join(o.words))
	}
	t := &unitText{User: o.user, System: !o.user, Directory: strings.ReplaceAll(dir, "%", "%%"), Target: "multi-user.target"}
	if o.user {
		t.Target = "default.target"
	}
	var drain time.Duration
	if o.command == "serve" {
		drain, err = o.serve(t, warn)
	} else {
		drain, err = o.up(warn)
	}
	if err != nil {
		return err
	}
	if !o.user && !o.socket && below(self, homes, temporary) {
		warn("%s: a service of the machine may not be able to run it there", self)
		warn("hint: install it for all users: install %s /usr/local/bin/fbus", join(self))
	}
	words := append([]string{self, o.command}, o.words...)
	for i, w := range words {
		words[i] = strings.ReplaceAll(unitWord(w), "$", "$$")
	}
	t.ExecStart = strings.Join(words, " ")
	t.Drain, t.Stop = formatDuration(drain), fmt.Sprintf("%ds", int64((drain+endMargin).Round(time.Second).Seconds()))
	all, err := template.ParseFS(unitFiles, "units/*")
	if err != nil {
		return fail(args.CodeInternal, "%v", err)
	}
	name := o.command + ".service"
	if o.socket {
		name = "serve.socket"
	}
	return all.ExecuteTemplate(stdout, name, t)
}

// parseFor parses the flags for the unit, and leaves them in o.words in normal form.
func (o *unitOptions) parseFor(flags []cli.Flag, operands int) (*cli.Context, error) {
	words, err := normalize(o.command, flags, interleaved, o.words)
	if err != nil {
		return nil, err
	}
	ctx, err := parse(nil, &cli.Command{Name: o.command, Flags: flags}, words)
	if err == nil && ctx.NArg() > operands {
		err = usage("fbus %s takes no operand %s", o.command, ctx.Args().Get(operands)).WithHint("fbus %s --help", o.command)
	}
	if words[len(words)-1] == "--" {
		words = words[:len(words)-1]
	}
	o.words = words
	return ctx, err
}

// here reports whether a file exists, and warns if it does not.
func here(path string, warn logf) bool {
	_, err := os.Stat(path)
	if err != nil {
		warn("%v", err)
	}
	return err == nil
}

// up checks the flags of fbus up, and returns its drain.
func (o *unitOptions) up(warn logf) (time.Duration, error) {
	up := &upOptions{workerOptions: newWorkerOptions()}
	ctx, err := o.parseFor(up.flags(), 1)
	if err != nil {
		return 0, err
	}
	up.take(ctx.Args().First(), ctx.IsSet)
	if up.config != "" && !here(up.config, warn) {
		up.config = ""
	}
	if up.dir != "" && !here(up.dir, warn) {
		up.dir = ""
	}
	up.owners.warn, up.warn = warn, warn
	config, wrong := up.read()
	up.apply(&config.node)
	return up.drain.d, wrong.err()
}

// serve checks the flags of fbus serve, and returns its drain. It fills in what the
// node needs outside of its own directories.
func (o *unitOptions) serve(t *unitText, warn logf) (time.Duration, error) {
	s := newServeOptions()
	files := map[string]*string{
		"socket": &s.socket, "log": &s.log, "config": &s.config, "tls-cert": &s.tcp.cert, "tls-key": &s.tcp.key, "tls-ca": &s.tcp.ca, "tls-crl": &s.tcp.crl,
	}
	ctx, err := o.parseFor(s.flags(), 0)
	if err != nil {
		return 0, err
	}
	for i, w := range o.words { // the service runs in another directory
		name, path, _ := strings.Cut(strings.TrimPrefix(w, "--"), "=")
		if files[name] == nil || path == "" || path == "-" {
			continue
		}
		if path, err = filepath.Abs(path); err != nil {
			return 0, fail(args.CodeInternal, "%v", err)
		}
		*files[name], o.words[i] = path, "--"+name+"="+path
	}
	s.hasNetwork, s.sharing.absent, s.owners.warn = ctx.IsSet("network"), warn, warn
	if s.config != "" && here(s.config, warn) {
		err = s.readConfig(s.config, ctx.IsSet)
	} else {
		err = s.check()
	}
	if err != nil {
		return 0, err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := files[name]
		if !filepath.IsAbs(*path) {
			continue
		}
		if strings.HasPrefix(name, "tls-") {
			here(*path, warn)
		}
		t.InHome = t.InHome || below(*path, homes)
		if below(*path, temporary) {
			t.InTmp = unitWord(*path)
		}
		dir := filepath.Dir(*path)
		if (name == "socket" || name == "log") && dir != filepath.Dir(find.SystemSocket) {
			t.Writable = append(t.Writable, unitWord(dir))
		}
	}
	slices.Sort(t.Writable)
	t.Writable = slices.Compact(t.Writable)
	t.Socket, t.SocketGroup = unitWord(s.socket), s.sharing.group
	switch {
	case s.socket == "" && o.user:
		t.Socket = find.SocketDir + "/" + find.SocketPrefix + "%U" + find.SocketSuffix
	case s.socket == "":
		t.Socket = find.SystemSocket
		o.words = append([]string{"--socket=" + find.SystemSocket}, o.words...)
	}
	if t.SocketGroup != "" {
		t.SocketGroup = unitWord(t.SocketGroup)
	}
	return s.drain.d, nil
}

var (
	homes     = []string{"/home/", "/root/", "/run/user/"}
	temporary = []string{"/tmp/", "/var/tmp/"}
)

func below(path string, lists ...[]string) bool {
	return slices.ContainsFunc(slices.Concat(lists...), func(dir string) bool { return strings.HasPrefix(path, dir) })
}

// unitWord quotes a word as systemd.syntax(7) and systemd.unit(5) require.
func unitWord(w string) string {
	w = strings.ReplaceAll(w, "%", "%%")
	if w != "" && !strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`"'\;#`, r) }) {
		return w
	}
	return strconv.Quote(w)
}
