package commands

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// socket checks a unix socket, and connects to it.
func (x *examination) socket() {
	path := x.place.Addr.String()
	why, hint := "", "--node ADDR: the path of a node's socket, or HOST[:PORT]"
	st, err := os.Stat(path)
	tooLong := wire.CheckPath(path)
	switch {
	case tooLong != nil:
		why, hint = tooLong.Error(), "use a shorter path, or one relative to the current directory"
	case errors.Is(err, os.ErrNotExist):
		why, hint = "does not exist: no node listens there", serveThere(path)
	case errors.Is(err, os.ErrPermission):
		why, hint = "you may not enter a directory of this path", "it belongs to another user; --node names another socket"
	case err != nil:
		why = args.Plain(err)
	default:
		why = find.NotSocket(path)
		if in := find.SocketIn(path); in != "" {
			hint = "a node listens at " + in
		}
	}
	if elsewhere := find.Elsewhere(path); elsewhere != "" && errors.Is(err, os.ErrNotExist) {
		hint += "; " + elsewhere
	}
	if why != "" {
		x.fail("socket", fail(args.CodeNoNode, "%s: %s", path, why).WithHint("%s", hint))
		return
	}
	owner, mode := st.Sys().(*syscall.Stat_t), st.Mode().Perm()
	user, group := userName(int(owner.Uid)), groupName(int(owner.Gid))
	x.ok("socket", "it belongs to %s, mode %04o", user, mode)
	if x.client, err = bus.Connect(context.Background(), &bus.Options{Node: path, Name: hostname()}); err == nil {
		x.ok("connection", "a node answered")
		return
	}
	f := explain(err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Message, f.Hint = "a stale socket: the node that made it was killed", serveThere(path)
		if os.Getuid() != 0 && int(owner.Uid) != os.Getuid() {
			f.Hint = user + " must start the node again"
		}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		f.Message = fmt.Sprintf("permission denied: it belongs to %s and group %s, mode %04o", user, group, mode)
		f.Hint = "a node is only for its user; fbus serve starts one of your own"
		if mode&0o020 != 0 {
			f.Hint = "members of group " + group + " may use it"
		}
	case f.Code == args.CodeForeign:
		f.Hint = "a node of another user sees everything that you send, and is not trusted; " + f.Hint
	case f.Code == args.CodeProtocol:
		f.Hint = "the program that listens there is not an fbus node: is it the right socket?"
	case f.Code == args.CodeNoNode:
		f.Hint = "the program that listens there is not an fbus node, or is stopped"
	}
	if !strings.HasPrefix(f.Message, path) {
		f.Message = path + ": " + f.Message
	}
	x.fail("connection", f)
}

// pidOf returns the process id in the default path of a node's socket, 0 if there is none.
func pidOf(socket string) (pid int) {
	fmt.Sscanf(socket, find.SocketDir+"/"+find.SocketPrefix+"%d"+find.SocketSuffix, &pid)
	return pid
}

// serveThere returns the command that starts a node at a path, which a node may have
// chosen itself.
func serveThere(path string) string {
	if pidOf(path) > 0 {
		return "fbus serve starts a node"
	}
	return join("fbus", "serve", "--socket", path) + " starts a node there"
}

func userName(uid int) string {
	if uid == os.Getuid() {
		return "you"
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return fmt.Sprintf("%s (uid %d)", u.Username, uid)
	}
	return fmt.Sprintf("uid %d", uid)
}

func groupName(gid int) string {
	if g, err := user.LookupGroupId(strconv.Itoa(gid)); err == nil {
		return g.Name
	}
	return strconv.Itoa(gid)
}

// remote connects over TCP, and reports the steps of each address that is tried.
func (x *examination) remote() {
	left := len(x.place.Addresses())
	missed := func(step string, f *args.Error) {
		if left == 0 || errors.Is(f, bus.ErrDenied) { // a denial is the same for every address
			x.fail(step, f)
		} else {
			x.warn(step, f.Hint, "%s; trying the next address", f.Message)
		}
	}
	refused := func(err error) {
		f := explain(err)
		step := stepOf(f)
		if step != "tls" && !x.reported["tls"] {
			x.ok("tls", "fine until a certificate was refused")
		}
		missed(step, f)
	}
	x.client, _ = bus.Dial(context.Background(), x.place.Addr, &bus.Options{Name: hostname(), Identity: x.place.Identity, Trace: &bus.Trace{
		Lookup: func(host string, found []string, err error) {
			left--
			var dns *net.DNSError
			switch _, other := netip.ParseAddr(host); {
			case host == "" || other == nil:
				x.ok("dns", "%s is an address: nothing to look up", orLocal(host))
			case err == nil:
				x.ok("dns", "%s is %s", host, strings.Join(found, ", "))
			default:
				why := err.Error()
				if errors.As(err, &dns) {
					why = dns.Err
				}
				missed("dns", fail(args.CodeNoNode, "%s: cannot resolve the name: %s", host, why).
					WithHint("check the spelling; --node takes an address too; getent hosts %s asks the system", host))
			}
		},
		Connected: func(addr bus.Addr, nc net.Conn, err error) {
			if err != nil {
				missed("tcp", unanswered(addr, err))
				return
			}
			x.ok("tcp", "%s answers", nc.RemoteAddr())
		},
		Secured: func(_ bus.Addr, state tls.ConnectionState, err error) {
			if err != nil {
				refused(err)
				return
			}
			x.ok("tls", "%s, %s", tls.VersionName(state.Version), cmp.Or(state.NegotiatedProtocol, "no protocol"))
		},
		Greeted: func(_ bus.Addr, err error) {
			if err != nil {
				refused(err)
				return
			}
			x.certificate()
		},
	}})
}

func orLocal(host string) string { return cmp.Or(host, "this machine") }

// unanswered explains why a TCP connection failed.
func unanswered(addr bus.Addr, err error) *args.Error {
	host, port, _ := net.SplitHostPort(addr.String())
	why, hint := err.Error(), ""
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "connection refused: the machine answers, but nothing listens on that port"
		hint = fmt.Sprintf("is fbus serve running on %s, without --no-tcp, on port %s? it prints where it listens", orLocal(host), port)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		why, hint = "no answer", "is the machine up? a firewall that drops packets looks the same: TCP port "+port
	case errors.As(err, &errno):
		why = errno.Error()
		if errno == syscall.EHOSTUNREACH || errno == syscall.ENETUNREACH {
			hint = "there is no route to it: is the network up, is it the right address?"
		}
	}
	return fail(args.CodeNoNode, "%s: %s", addr, why).WithHint("%s", hint)
}

// stepOf returns the step that a refusal belongs to.
func stepOf(err error) string {
	code := ""
	var e *args.Error
	for below := err; errors.As(below, &e); below = e.Err { // the innermost one knows best
		code = e.Code
	}
	switch code {
	case args.CodeNotYetValid, args.CodeClock:
		return "clock"
	case args.CodeNotOurs:
		// A node renews its certificate long before it expires, so the two clocks disagree.
		if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return "clock"
		}
		return "certificate"
	case args.CodeExpired, args.CodeNoCertificate, args.CodeOtherNetwork, args.CodeNetwork, args.CodeRevoked, args.CodeUnlisted, args.CodeUsed,
		args.CodeWrongUse, args.CodeBadCertificate, args.CodeBadRight, args.CodeListLost:
		return "certificate"
	case args.CodeTLSVersion, args.CodePlainText, args.CodeHTTP, args.CodeNotFbus, args.CodeReset, args.CodeTimeout, args.CodeTLS:
		return "tls"
	}
	return "node"
}

// certificate reports that the node has accepted our certificate.
func (x *examination) certificate() {
	id := x.place.Identity
	cert, err := id.Config("").GetClientCertificate(nil)
	if err != nil || cert.Leaf == nil {
		x.ok("certificate", "accepted")
		return
	}
	what, until := "your certificate", cert.Leaf.NotAfter.UTC().Format(time.RFC3339)
	if t := id.Ticket; t != nil {
		what = fmt.Sprintf("ticket %s of network %s", t.Name, t.Network)
	}
	if id.Dir != "" && id.Ticket.RenewalDue(trust.Now()) {
		x.warn("certificate", "every command renews it if it can write to "+id.Dir, "%s was accepted; it needs renewal and is good until %s", what, until)
		return
	}
	x.ok("certificate", "%s was accepted; it is good until %s", what, until)
}
