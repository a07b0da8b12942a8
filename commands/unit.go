package commands

import (
	"embed"
	"fbus/bus/args"
	"fbus/bus/find"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

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
		Name:      "unit",
		Usage:     "print a systemd unit for a node, or for functions",
		UsageText: "unit serve|up [--user] [--socket-unit] [-- FLAGS…]",
		Description: `FLAGS are those of fbus serve or fbus up; they are checked, and stand in the unit,
with the whole paths of the files that serve is given. The configuration is read for
what the unit must allow; what is not here, a file or a group, only gets a warning. The
time to stop follows from the drain. Functions are offered from the directory that is the
current one now.

  fbus unit serve > /etc/systemd/system/fbus.service
  fbus unit serve --socket-unit > /etc/systemd/system/fbus.socket
  systemctl daemon-reload && systemctl enable fbus.socket fbus.service
  systemctl start fbus.socket fbus.service

With the socket unit a restart refuses nobody: who connects meanwhile waits for the
next node, for up to 10s. The service alone works too; then who connects is refused.
With --user the files go to ~/.config/systemd/user, and it is systemctl --user.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "user", Usage: "for this user's service manager, not the machine's", Destination: &o.user, DisableDefaultText: true},
			&cli.BoolFlag{Name: "socket-unit", Usage: "print the socket unit beside the service of serve", Destination: &o.socket, DisableDefaultText: true},
		},
		Action: func(ctx *cli.Context) error {
			if err := o.operands(ctx.Args().Slice()); err != nil {
				return err
			}
			return unit(o, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

func (o *unitOptions) operands(words []string) error {
	if i := slices.Index(words, "--"); i >= 0 {
		words, o.words = words[:i], words[i+1:]
	}
	switch {
	case len(words) == 0:
		return usage("a unit for what? serve or up is due").WithHint("fbus unit serve")
	case len(words) > 1:
		return usage("%s stands before --", words[1]).WithHint("%s", join("fbus", "unit", words[:1], "--", words[1:]))
	case words[0] != "serve" && words[0] != "up":
		return usage("there is no unit for %s: serve or up is due", words[0]).WithHint("fbus unit serve")
	case o.socket && words[0] != "serve":
		return usage("--socket-unit is for serve: up listens at no socket of its own")
	}
	o.command = words[0]
	return nil
}

// unitText is what the templates are filled with.
type unitText struct {
	User, System bool
	ExecStart    string
	Socket       string // where the manager listens
	SocketGroup  string // who may connect as well
	Directory    string
	Drain, Stop  string
	Target       string
	Writable     []string // outside of its own directories
	InHome       bool     // something that it needs is there
	InTmp        string   // the socket, if it is in /tmp
}

const socketFlag = "socket"

func unit(o *unitOptions, stdout, stderr io.Writer) error {
	f, err := o.parse(logger(stderr))
	if err != nil {
		return err
	}
	t := &unitText{User: o.user, System: !o.user, Target: "multi-user.target"}
	if o.user {
		t.Target = "default.target"
	}
	if o.command == "serve" {
		o.place(t, f)
	}
	if err := o.paths(t, stderr); err != nil {
		return err
	}
	t.Drain, t.Stop = formatDuration(f.drain), unitTime(f.drain+endMargin)
	name := o.command + ".service"
	if o.socket {
		name = "serve.socket"
	}
	all, err := template.ParseFS(unitFiles, "units/*")
	if err != nil {
		return fail(args.CodeInternal, "%v", err)
	}
	return all.ExecuteTemplate(stdout, name, t)
}

// unitTime is a time as systemd reads it: it has no fractions of a unit.
func unitTime(d time.Duration) string {
	return fmt.Sprintf("%ds", int64((d+time.Second-1)/time.Second))
}

// place says where the node listens, and what else it needs.
func (o *unitOptions) place(t *unitText, f *unitFlags) {
	t.Socket = f.value(socketFlag)
	switch {
	case t.Socket == "" && o.user:
		t.Socket = find.SocketDir + "/" + find.SocketPrefix + "%U" + find.SocketSuffix
	case t.Socket == "":
		t.Socket = find.SystemSocket
		o.words = append([]string{"--" + socketFlag, find.SystemSocket}, o.words...)
	default:
		t.Socket = unitWord(t.Socket)
	}
	if group := f.value("socket-group"); group != "" {
		t.SocketGroup = unitWord(group)
	}
	for _, name := range fileFlags {
		path := f.value(name)
		if !filepath.IsAbs(path) {
			continue
		}
		t.InHome = t.InHome || below(path, homes...)
		if below(path, temporary...) {
			t.InTmp = unitWord(path)
		}
		if name != socketFlag && name != "log" { // those are only read
			continue
		}
		dir := filepath.Dir(path)
		if dir != filepath.Dir(find.SystemSocket) && !slices.Contains(t.Writable, unitWord(dir)) {
			t.Writable = append(t.Writable, unitWord(dir))
		}
	}
}

var (
	homes     = []string{"/home", "/root", "/run/user"}
	temporary = []string{"/tmp", "/var/tmp"}
)

func below(path string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(path, dir+"/") })
}

// paths finds this program and the current directory.
func (o *unitOptions) paths(t *unitText, stderr io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return fail(args.CodeInternal, "%v", err)
	}
	if !o.user && !o.socket && below(self, append(homes, temporary...)...) {
		say(stderr, fmt.Sprintf("%s: a service of the machine may not be able to run it there", self))
		say(stderr, fmt.Sprintf("hint: install it where all can: install %s /usr/local/bin/fbus", args.Quote(self)))
	}
	dir, err := os.Getwd()
	if err != nil {
		return fail(args.CodeInternal, "%v", err)
	}
	if strings.Contains(self+dir, "\n") {
		return usage("%q: no line of a unit has room for a newline", dir)
	}
	words := []string{unitWord(self), o.command}
	for _, w := range o.words {
		words = append(words, strings.ReplaceAll(unitWord(w), "$", "$$"))
	}
	t.ExecStart, t.Directory = strings.Join(words, " "), strings.ReplaceAll(dir, "%", "%%")
	return nil
}

// unitWord writes a word as systemd.syntax(7) and systemd.unit(5) read it: quoted
// where need be, specifiers not taken for such.
func unitWord(w string) string {
	w = strings.ReplaceAll(w, "%", "%%")
	plain := func(r rune) bool { return r > ' ' && r != 0x7f && !strings.ContainsRune(`"'\;#`, r) }
	if w != "" && !strings.ContainsFunc(w, func(r rune) bool { return !plain(r) }) {
		return w
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(w) {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
