package commands

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

const (
	lookupTime = 5 * time.Second
	// dialTime limits an address, aloneTime the last one, as for a call.
	dialTime  = 3 * time.Second
	aloneTime = 10 * time.Second
	// clockLimit is the difference of two clocks from which doctor warns.
	clockLimit = time.Minute
)

// remote tries the addresses in turn, as a call does.
func (x *examination) remote(ctx context.Context) {
	list := x.place.Addresses()
	for i, addr := range list {
		r := &remoteAddress{examination: x, addr: addr, last: i == len(list)-1}
		if r.try(ctx) {
			return
		}
	}
}

// remoteAddress is one address of a node.
type remoteAddress struct {
	*examination
	addr bus.Addr
	last bool // the last address
}

// try takes the steps from the name to the handshake. It returns false if the next
// address should be tried.
func (r *remoteAddress) try(ctx context.Context) bool {
	limit := dialTime
	if r.last {
		limit = aloneTime
	}
	if !r.lookUp(ctx) {
		return false
	}
	try, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tcp, ok := r.dial(try)
	if !ok {
		return false
	}
	creds := r.place.Identity
	host, _, _ := net.SplitHostPort(r.addr.String())
	config := creds.Config(host)
	nc := tls.Client(wire.NewSocket(tcp), config)
	err := nc.HandshakeContext(try)
	if err != nil {
		tcp.Close()
		return r.refused(creds.Failure(r.addr, err), err)
	}
	r.agreed(nc.ConnectionState())
	c, err := bus.NewClient(ctx, nc, &bus.Options{Name: hostname(), Identity: creds})
	if err != nil {
		return r.refused(err, err)
	}
	r.client = c
	r.certificate(config)
	return true
}

// missed reports a failure of the last address, and a warning for any other.
func (r *remoteAddress) missed(step string, f *args.Error) bool {
	if r.last {
		r.fail(step, f)
		return true
	}
	r.warn(step, f.Hint, "%s; trying the next address", f.Message)
	return false
}

// lookUp finds the addresses of a name.
func (r *remoteAddress) lookUp(ctx context.Context) bool {
	host, _, _ := net.SplitHostPort(r.addr.String())
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		r.ok("dns", "%s is an address: nothing to look up", orLocal(host))
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		why := err.Error()
		var dns *net.DNSError
		if errors.As(err, &dns) {
			why = dns.Err
		}
		r.missed("dns", noNodeAt("%s: cannot resolve the name: %s", host, why).WithHint("check the spelling; --node takes an address too; getent hosts %s asks the system", host))
		return false
	}
	r.ok("dns", "%s is %s", host, strings.Join(found, ", "))
	return true
}

func orLocal(host string) string {
	if host == "" {
		return "this machine"
	}
	return host
}

func noNodeAt(format string, a ...any) *args.Error {
	return &args.Error{Code: args.CodeNoNode, Message: fmt.Sprintf(format, a...)}
}

// dial connects. The addresses of a name are tried in parallel.
func (r *remoteAddress) dial(ctx context.Context) (net.Conn, bool) {
	dialer := net.Dialer{KeepAlive: -1}
	tcp, err := dialer.DialContext(ctx, "tcp", r.addr.String())
	if err == nil {
		r.ok("tcp", "%s answers", tcp.RemoteAddr())
		return tcp, true
	}
	host, port, _ := net.SplitHostPort(r.addr.String())
	var errno syscall.Errno
	var timeout net.Error
	f := noNodeAt("%s: %v", r.addr, err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		f = noNodeAt("%s: connection refused: the machine answers, but nothing listens on that port", r.addr).
			WithHint("is fbus serve running on %s, without --no-tcp, on port %s? it prints where it listens", orLocal(host), port)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		errors.As(err, &errno)
		f = noNodeAt("%s: %s", r.addr, errno.Error()).WithHint("there is no route to it: is the network up, is it the right address?")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		f = noNodeAt("%s: no answer", r.addr).WithHint("is the machine up? a firewall that drops packets looks the same: TCP port %s", port)
	case errors.As(err, &errno):
		f = noNodeAt("%s: %s", r.addr, errno.Error())
	}
	r.missed("tcp", f)
	return nil, false
}

// agreed reports a handshake that has succeeded on this side.
func (r *remoteAddress) agreed(cs tls.ConnectionState) {
	protocol := cs.NegotiatedProtocol
	if protocol == "" {
		protocol = "no protocol"
	}
	r.ok("tls", "%s, %s", tls.VersionName(cs.Version), protocol)
}

// refused reports a failed handshake, or a node that refused this client after it,
// under the step that it belongs to.
func (r *remoteAddress) refused(err, cause error) bool {
	f := explain(err)
	step := stepOf(err, f.Code)
	if step != "tls" && !r.reported["tls"] {
		r.ok("tls", "fine until a certificate was refused")
	}
	denied := f.Status() == args.StatusOf(args.CodeDenied) // the same for every address
	if denied || r.last {
		r.fail(step, f)
		return true
	}
	return r.missed(step, f)
}

// stepOf returns the step that a refusal belongs to.
func stepOf(err error, code string) string {
	var e *args.Error
	for below := err; errors.As(below, &e); below = e.Err { // the innermost one knows best
		code = e.Code
	}
	switch code {
	case args.CodeNotYetValid, args.CodeClock:
		return "clock"
	case args.CodeExpired:
		// A node renews its certificate long before that, so the two clocks disagree.
		if errors.As(err, new(x509.CertificateInvalidError)) {
			return "clock"
		}
		return "certificate"
	case args.CodeNoCertificate, args.CodeOtherNetwork, args.CodeNetwork, args.CodeRevoked, args.CodeUnlisted, args.CodeUsed,
		args.CodeWrongUse, args.CodeBadCertificate, args.CodeBadRight, args.CodeListLost:
		return "certificate"
	case args.CodeTLSVersion, args.CodePlainText, args.CodeHTTP, args.CodeNotFbus, args.CodeReset, args.CodeTimeout, args.CodeTLS:
		return "tls"
	}
	return "node"
}

// certificate reports that the node has accepted our certificate.
func (r *remoteAddress) certificate(config *tls.Config) {
	cert, err := config.GetClientCertificate(nil)
	if err != nil || cert.Leaf == nil {
		r.ok("certificate", "accepted")
		return
	}
	what := "your certificate"
	t := r.place.Identity.Ticket
	if t != nil {
		what = fmt.Sprintf("ticket %s of network %s", t.Name, t.Network)
	}
	if r.place.Identity.Dir != "" && t.RenewalDue(trust.Now()) {
		r.warn("certificate", "every command renews it if it can write to "+r.place.Identity.Dir, "%s was accepted; it needs renewal and is good until %s", what, cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
		return
	}
	r.ok("certificate", "%s was accepted; it is good until %s", what, cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
}

// clock compares the clock of the node with ours. took is the time of the request.
func (x *examination) clock(n *bus.NodeInfo, took time.Duration) {
	if n.Time.IsZero() {
		x.skip("clock", "the node does not report its time")
		return
	}
	here := trust.Now().Add(-took / 2)
	off := here.Sub(n.Time)
	if off.Abs() < time.Second+took {
		x.ok("clock", "same as the node's")
		return
	}
	way := "ahead of"
	if off < 0 {
		way = "behind"
	}
	what := fmt.Sprintf("this clock is %s %s the node's: %s here, %s there", age(off.Abs().Seconds()), way, here.UTC().Format(time.RFC3339), n.Time.Format(time.RFC3339))
	if off.Abs() < clockLimit {
		x.ok("clock", "%s", what)
		return
	}
	x.warn("clock", "check date -u at both ends: certificates are checked against either clock, and may be refused early or late", "%s", what)
}
