package commands

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/node"
	"fbus/bus/trust"

	"github.com/urfave/cli/v2"
)

// sharing controls which other users of this machine may use a node, and their rights.
type sharing struct {
	group  string  // its members may connect; empty: no other user may
	rights *rights // nil: they may call and offer everything
	gid    int     // of group, once resolved

	absent func(format string, args ...any) // reports a missing group; nil: that is an error
}

// rights is the table [rights] of a configuration, which grants rights to users and
// groups.
type rights struct {
	at     string // FILE:LINE:COLUMN
	grants []*grant
}

// grant is one entry of the table: "uid:1000", "user:alice", "gid:100" or "group:staff".
type grant struct {
	part
	group bool // id is a gid
	id    int
	trust.Rights
}

// same reports whether two tables differ at most in their place in the file.
func (r *rights) same(m *rights) bool {
	if r == nil || m == nil {
		return r == m
	}
	return slices.EqualFunc(r.grants, m.grants, func(a, b *grant) bool {
		return a.group == b.group && a.id == b.id && a.Equal(b.Rights)
	})
}

// resolve finds the group and checks the options.
func (s *sharing) resolve() error {
	if s.group == "" {
		if s.rights != nil {
			return usage("%s: rights: nobody else can connect: the socket is only for this user", s.rights.at).
				WithHint("use --socket-group GROUP, or socket-group in [node]")
		}
		return nil
	}
	gid, err := find.GroupID(s.group)
	switch {
	case err != nil && s.absent != nil:
		s.absent("--socket-group: %v", err)
	case err != nil:
		return usage("--socket-group: %v", err)
	}
	s.gid = gid
	return nil
}

// everything is the default grant for members of the group. It covers the team's use of
// the node, but not the owner's administration.
var everything = trust.Rights{Call: []string{"*"}, Offer: []string{"*"}}

// local returns the rights of another user, and reports whether that user may connect at
// all. The rights of all entries for the user and the user's groups add up.
func (n *servedNode) local(uid int, gids []int) (sum trust.Rights, found bool) {
	r := n.rights.Load()
	switch {
	case !slices.Contains(gids, n.o.sharing.gid):
		return sum, false
	case r == nil:
		return everything, true
	}
	for _, g := range r.grants {
		if g.group && slices.Contains(gids, g.id) || !g.group && g.id == uid {
			sum.Call, sum.Offer, sum.Admin = append(sum.Call, g.Call...), append(sum.Offer, g.Offer...), sum.Admin || g.Admin
			sum.Monitor, sum.Relay = sum.Monitor || g.Monitor, sum.Relay || g.Relay
			found = true
		}
	}
	return sum, found
}

// rightsFile is a configuration file whose table [rights] is read again when it changes.
type rightsFile struct {
	read func() (*rights, error)
	seen os.FileInfo // of the file that was read last
}

// reread applies a change of the table. After an error the rights stay as they were.
func (n *servedNode) reread() {
	f := n.o.rereads
	info, err := os.Stat(n.o.config)
	if err != nil || os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size() {
		return // a file that is missing may be about to be replaced
	}
	f.seen = info
	r, err := f.read()
	if err != nil {
		e := explain(err)
		n.warn("%s", e.Message)
		n.warn("%s: the rights stay as they were", n.o.config)
		return
	}
	n.setRights(r, n.o.config)
}

// setRights applies a changed table. One that was removed needs a restart: a file that is
// only half written must not give rights to all. An empty one gives rights to nobody.
func (n *servedNode) setRights(r *rights, file string) {
	switch old := n.rights.Load(); {
	case r.same(old):
	case r == nil:
		n.warn("%s: the table [rights] was added or removed: that needs a restart", file)
	default:
		n.rights.Store(r)
		n.CheckLocal()
		if !n.o.quiet {
			n.warn("%s: [rights] have changed, and hold from now on", file)
		}
	}
}

// open makes the socket accessible to the group.
func (s *sharing) open(l *node.Listener, warn func(string, ...any)) error {
	if s.group == "" {
		return nil
	}
	err := l.Share(s.gid)
	switch {
	case errors.Is(err, syscall.EPERM):
		return fail(args.CodeDenied, "--socket-group %s: only a member of the group, or root, can share a socket with it", s.group).
			WithHint("id shows your groups; after you were added to one, log in again")
	case err != nil:
		return fail(args.CodeInternal, "--socket-group %s: %v", s.group, err)
	}
	if dir := s.closed(l.Path()); dir != "" {
		warn("--socket-group %s: some members cannot reach %s: not all may enter %s", s.group, l.Path(), dir)
		warn("hint: chmod g+x or o+x, or --socket PATH elsewhere")
	}
	return nil
}

// closed returns a directory on the path that members of the group cannot pass, judging
// by its mode.
func (s *sharing) closed(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err == nil && st.Mode()&0o001 == 0 && (st.Mode()&0o010 == 0 || int(st.Sys().(*syscall.Stat_t).Gid) != s.gid) {
			return dir
		}
		if dir == "/" || err != nil {
			return ""
		}
	}
}

// String formats sharing for the ready line.
func (s *sharing) String() string {
	switch {
	case s.group == "":
		return ""
	case s.rights != nil:
		return fmt.Sprintf(" for group %s, with the rights of the configuration", s.group)
	}
	return " for group " + s.group
}

// rights returns the table [rights], or a new one.
func (c *configFile) rights(at string) *rights {
	r := &c.config.node.options.sharing.rights
	if *r == nil {
		*r = &rights{at: at}
	}
	return *r
}

// grant returns the entry of [rights] for a user or group, or a new one.
func (c *configFile) grant(who, at string) *grant {
	r := c.rights(at)
	for _, g := range r.grants {
		if g.name == "rights: "+who {
			return g
		}
	}
	g := &grant{}
	g.part = part{name: "rights: " + who, at: at, places: map[string]string{}, flags: tableOf([]cli.Flag{
		&cli.GenericFlag{Name: "call", Value: &listValue{&g.Call, trust.CheckGlob}},
		&cli.GenericFlag{Name: "offer", Value: &listValue{&g.Offer, trust.CheckGlob}},
		&cli.BoolFlag{Name: "admin", Destination: &g.Admin},
		&cli.BoolFlag{Name: "monitor", Destination: &g.Monitor},
		&cli.BoolFlag{Name: "relay", Destination: &g.Relay},
	})}
	if err := g.identify(who); err != nil {
		c.problems.add(at, "%s: %v", g.name, err)
		g.wrong = true
	}
	r.grants = append(r.grants, g)
	return g
}

// identify finds the user or group of an entry.
func (g *grant) identify(who string) (err error) {
	kind, name, _ := strings.Cut(who, ":")
	g.group = kind == "gid" || kind == "group"
	number := strings.Trim(name, "0123456789") == ""
	switch {
	case name != "" && (kind == "user" || kind == "uid" && number || kind == "gid" && number):
		g.id, err = find.UserID(name)
	case name != "" && kind == "group":
		g.id, err = find.GroupID(name)
	case name != "" && (kind == "uid" || kind == "gid"):
		err = fmt.Errorf("%s is not a number", name)
	default:
		err = errors.New("it must be \"uid:1000\", \"user:NAME\", \"gid:100\" or \"group:NAME\"")
	}
	return err
}

// check reports useless entries.
func (r *rights) check(p *problems) {
	if r == nil {
		return
	}
	for _, g := range r.grants {
		if g.wrong {
			continue
		}
		if err := g.Check(); g.Empty() {
			p.add(g.at, "%s: the entry needs call, offer, monitor, relay or admin", g.name)
		} else if err != nil {
			p.add(g.at, "%s: %v", g.name, err)
		}
	}
}
