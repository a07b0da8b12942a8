package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"fbus/bus/args"
)

// Explain returns the cause of a failed handshake, or of a failed first read after one:
// under TLS 1.3 that is where a client learns that its certificate was refused. It
// returns nil for nil. A zero now means the current time.
func Explain(err error, now time.Time) *args.Error {
	return explain(err, "the peer's certificate", now)
}

// Explain is [Explain] for a client that dialled with this ticket. It uses the ticket to
// find the reason for the node's refusal. After a failed write, a read gives a better
// explanation.
func (t *Ticket) Explain(err error, now time.Time) *args.Error {
	own := &shown{"ticket " + t.Name, "network " + t.Network, []*x509.Certificate{t.Leaf}}
	return own.explain(err, "the certificate of the node of network "+t.Network, now)
}

// Explain is [Explain] for a client that dialled with these files.
func (f *Files) Explain(err error, now time.Time) *args.Error {
	pair := f.current.Load().pair
	own := &shown{what: "the certificate in " + f.cert, ca: "the network of " + f.ca}
	for _, der := range pair.Certificate {
		if c, err := x509.ParseCertificate(der); err == nil {
			own.chain = append(own.chain, c)
		}
	}
	return own.explain(err, "the node's certificate", now)
}

func (s *shown) explain(err error, whose string, now time.Time) *args.Error {
	if alert := remoteAlert(err); alert != 0 {
		return s.explainAlert(alert, err, orNow(now))
	}
	return explain(err, whose, now)
}

func orNow(now time.Time) time.Time {
	if now.IsZero() {
		return Now()
	}
	return now
}

func explain(err error, whose string, now time.Time) *args.Error {
	var own *args.Error
	var header tls.RecordHeaderError
	var verify *tls.CertificateVerificationError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return own
	case errors.As(err, &header):
		return explainHeader(header)
	case errors.As(err, &verify):
		return explainVerify(verify, whose, orNow(now))
	}
	if alert := remoteAlert(err); alert != 0 {
		return explainAlert(alert, err)
	}
	for _, known := range byText {
		if strings.Contains(err.Error(), known.text) {
			e := known.make()
			e.Err = err
			return e
		}
	}
	var timeout net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return caused(err, args.CodeReset, "the other end closed the connection without a reason").
			WithHint("it may not be an fbus node, or something between the two ends cuts connections")
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return caused(err, args.CodeTimeout, "the other end did not answer in time").
			WithHint("is it the right port? a suspended node, or a firewall that drops packets, looks the same")
	}
	return errorf(args.CodeTLS, "the TLS handshake failed: %v", err).WithHint(hintPort)
}

// byText lists errors of crypto/tls that have no type. A test pins their texts.
var byText = []struct {
	text string
	make func() *args.Error
}{
	{"client didn't provide a certificate", noCertificate},
	{"client offered only unsupported versions", oldTLS},
	{"server selected unsupported protocol version", oldTLS},
	{"client requested unsupported application protocols", notFbus},
	{"server selected unadvertised ALPN protocol", notFbus},
}

func noCertificate() *args.Error {
	return errorf(args.CodeNoCertificate, "no certificate was sent: a ticket is required").WithHint("fbus join TICKET, or FBUS_TICKET=FILE")
}

func oldTLS() *args.Error {
	return errorf(args.CodeTLSVersion, "the two ends have no TLS version in common: fbus needs TLS 1.3").WithHint(hintPort)
}

// hintPort is the next step when the peer is not a node.
const hintPort = "is it the right port? a proxy that terminates TLS looks the same"

func notFbus() *args.Error {
	return errorf(args.CodeNotFbus, "the other end speaks another protocol under TLS, not %s", ALPN).WithHint(hintPort)
}

func explainHeader(h tls.RecordHeaderError) *args.Error {
	head := h.RecordHeader[:]
	for _, verb := range []string{"HTTP/", "GET ", "PUT ", "HEAD ", "POST ", "OPTIO", "CONNE", "DELET", "PATCH", "TRACE", "PRI *"} {
		if bytes.HasPrefix(head, []byte(verb)) {
			return caused(h, args.CodeHTTP, "the other end speaks HTTP without TLS").WithHint("is it the right port?")
		}
	}
	return caused(h, args.CodePlainText, "the other end does not speak TLS").WithHint("is it the right port?")
}

// explainVerify explains why this side refused the peer's certificate.
func explainVerify(v *tls.CertificateVerificationError, whose string, now time.Time) *args.Error {
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	switch {
	case errors.As(v.Err, &invalid):
		return explainInvalid(invalid, whose, now)
	case errors.As(v.Err, &authority) && signedByLeaf(v.UnverifiedCertificates):
		return caused(v.Err, args.CodeWrongUse, "%s was not signed by a CA", whose).WithHint(hintCA)
	case errors.As(v.Err, &authority):
		by := "somebody else"
		if len(v.UnverifiedCertificates) > 0 {
			by = fmt.Sprintf("%q", args.Shown(v.UnverifiedCertificates[0].Issuer.CommonName))
		}
		return caused(v.Err, args.CodeOtherNetwork, "%s is of another network: it was signed by the CA of %s, which this side does not trust", whose, by).
			WithHint("the ticket is for another network, or for an earlier network of that name")
	case errors.As(v.Err, &host):
		return explainHost(host, whose)
	}
	return errorf(args.CodeBadCertificate, "%s is refused: %v", whose, v.Err).WithHint(hintUse)
}

// explainHost explains a certificate with another name. x509 checks the name before the
// signer, so the signer is examined here.
func explainHost(host x509.HostnameError, whose string) *args.Error {
	const domain = ".fbus.invalid"
	for _, name := range host.Certificate.DNSNames {
		if network, ok := strings.CutSuffix(name, domain); ok && strings.HasSuffix(host.Host, domain) && name != host.Host {
			return caused(host, args.CodeOtherNetwork, "%s is of another network: it is that of a node of network %s", whose, args.Shown(network)).
				WithHint("the ticket is for another network than that of the node at this address")
		}
	}
	if by := host.Certificate.Issuer.CommonName; host.Host != ServerName(by) && strings.HasSuffix(host.Host, domain) {
		return caused(host, args.CodeOtherNetwork, "%s is of another network, or of none: it was signed by the CA of %q, which this side does not trust", whose, args.Shown(by)).
			WithHint("is it the right port? there is no node of the ticket's network")
	}
	e := errorf(args.CodeWrongUse, "%s is not for the name %s: %v", whose, host.Host, host)
	if strings.HasSuffix(host.Host, domain) {
		return e.WithHint("the network's CA signed this certificate, but not for a node: is it the right port?")
	}
	return e.WithHint("with your own PKI a node's certificate must name the host: use a name that is in it, or get another certificate")
}

// signedByLeaf reports whether a peer sent its certificate together with a signer's that
// is not a CA.
func signedByLeaf(sent []*x509.Certificate) bool {
	return len(sent) > 1 && issued(sent[0], sent[1]) && !sent[1].IsCA
}

// issued reports whether certificate c names by as its issuer.
func issued(c, by *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, by.RawSubject) }

func explainInvalid(e x509.CertificateInvalidError, whose string, now time.Time) *args.Error {
	switch e.Reason {
	case x509.Expired:
		if own, ok := checkTime(e.Cert, whose, now).(*args.Error); ok {
			own.Err = e
			return own.WithHint(hintClock) // not this network's: a new ticket does not help
		}
		return caused(e, args.CodeClock, "%s has expired or is not valid yet, by a clock that has changed since", whose).WithHint(hintClock)
	case x509.IncompatibleUsage:
		return caused(e, args.CodeWrongUse, "%s is for another use, a node's as a client's or a ticket as a node's", whose).WithHint(hintUse)
	case x509.NotAuthorizedToSign, x509.TooManyIntermediates:
		return caused(e, args.CodeWrongUse, "%s was not signed by a CA", whose).WithHint(hintCA)
	}
	return errorf(args.CodeBadCertificate, "%s is refused: %v", whose, e).WithHint(hintUse)
}

const (
	hintUse = "a node's certificate is for servers only (serverAuth), a client's for clients only (clientAuth): is it the right certificate, and the right port?"
	hintCA  = "do not trust the program that listens there; is it the right port?"
)

const hintClock = "check the clock at both ends: date -u"

func checkTime(c *x509.Certificate, whose string, now time.Time) error {
	switch {
	case now.Before(c.NotBefore):
		return errorf(args.CodeNotYetValid, "%s is not yet valid: not before %s, %s from now by this clock", whose, stamp(c.NotBefore), span(c.NotBefore.Sub(now))).WithHint(hintClock)
	case now.After(c.NotAfter):
		return expired(whose, c.NotAfter, now)
	}
	return nil
}

func expired(whose string, end, now time.Time) *args.Error {
	return errorf(args.CodeExpired, "%s expired at %s, %s ago by this clock", whose, stamp(end), span(now.Sub(end))).
		WithHint("ask for a new ticket; or, if it should still be valid, %s", hintClock)
}

// span formats a duration for people.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	if d/time.Second == 1 {
		return "1 second"
	}
	return fmt.Sprintf("%d seconds", d/time.Second)
}

// errorf returns an error with a code of args. If the last value is an error, it becomes
// the cause, and its hint becomes the new error's hint.
func errorf(code, format string, values ...any) *args.Error {
	e := args.Errorf(code, format, values...)
	if n := len(values); n > 0 {
		e.Err, _ = values[n-1].(error)
	}
	if below, ok := errors.AsType[*args.Error](e.Err); ok {
		e.Hint = below.Hint
	}
	return e
}

// caused returns an error whose message explains err in our words.
func caused(err error, code, format string, values ...any) *args.Error {
	e := errorf(code, format, values...)
	e.Err = err
	return e
}

// orHint adds a hint to an error without one.
func orHint(e *args.Error, format string, values ...any) *args.Error {
	if e.Hint == "" {
		e.WithHint(format, values...)
	}
	return e
}

// refusal is an error of VerifyConnection: this side refuses the peer, and no frame of the
// peer reported it.
type refusal struct{ err *args.Error }

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

// refuse marks an error of VerifyConnection.
func refuse(err error) error {
	if e, ok := errors.AsType[*args.Error](err); ok {
		return refusal{e}
	}
	return err
}

// Refused reports whether this side failed a handshake because it refuses the peer's
// certificate.
func Refused(err error) bool {
	return errors.As(err, new(refusal)) || errors.As(err, new(*tls.CertificateVerificationError))
}
