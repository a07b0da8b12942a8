package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"fbus/bus/args"
)

// TLS alerts (RFC 8446, section 6.2) that concern admission.
const (
	alertHandshake          = 40
	alertBadCertificate     = 42
	alertUnsupportedCert    = 43
	alertCertificateRevoked = 44
	alertExpired            = 45 // or not yet valid: Go's server has one alert for both
	alertUnknownCertificate = 46
	alertUnknownCA          = 48
	alertAccessDenied       = 49
	alertDecrypt            = 51
	alertVersion            = 70
	alertCertRequired       = 116
	alertNoProtocol         = 120
)

var alerts = []tls.AlertError{
	alertHandshake, alertBadCertificate, alertUnsupportedCert, alertCertificateRevoked, alertExpired, alertUnknownCertificate,
	alertUnknownCA, alertAccessDenied, alertDecrypt, alertVersion, alertCertRequired, alertNoProtocol,
}

// remoteAlert returns the alert sent by the other end, or 0 if there is no known alert.
// crypto/tls exports the alert's type only for QUIC, but its text is the same.
func remoteAlert(err error) tls.AlertError {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0
	}
	for _, a := range alerts {
		if op.Err.Error() == a.Error() {
			return a
		}
	}
	return 0
}

// explainAlert explains an alert without further context, to either side.
func explainAlert(alert tls.AlertError, err error) *args.Error {
	var e *args.Error
	switch alert {
	case alertUnknownCA:
		e = errorf(args.CodeOtherNetwork, "the other end does not know the CA of the certificate: it is in another network").
			WithHint("the ticket is for another network, or for an earlier network of that name")
	case alertExpired:
		e = errorf(args.CodeExpired, "by the clock of the other end the certificate has expired or is not valid yet").WithHint(hintClock)
	case alertCertRequired:
		e = noCertificate()
	case alertCertificateRevoked, alertAccessDenied:
		e = errorf(args.CodeRevoked, "the ticket was revoked, by the other end's alert").WithHint("ask for a new ticket")
	case alertVersion:
		e = oldTLS()
	case alertNoProtocol:
		e = notFbus()
	case alertBadCertificate, alertUnsupportedCert, alertUnknownCertificate, alertDecrypt:
		e = errorf(args.CodeBadCertificate, "the other end refuses the certificate: it is in another network, or expects something else").
			WithHint("ask for a ticket of the node's network")
	default:
		e = errorf(args.CodeTLS, "the other end aborted the TLS handshake: %v", err).WithHint(hintPort)
	}
	e.Err = err
	return e
}

const hintClient = "get one that is for clients only (clientAuth), or use a ticket of fbus invite"

// shown describes the certificate that a client presented.
type shown struct {
	what  string // "ticket ci"
	ca    string // the owner of the CA that the node should use
	chain []*x509.Certificate
}

// explainAlert picks the likely meaning of an ambiguous alert from the client's own
// certificate.
func (s *shown) explainAlert(alert tls.AlertError, err error, now time.Time) *args.Error {
	leaf := s.chain[0]
	switch alert {
	case alertExpired:
		if e, ok := checkTime(leaf, s.what, now).(*args.Error); ok {
			e.Err = err
			return e
		}
		return caused(err, args.CodeClock, "by the node's clock %s has expired or is not valid yet; by this clock, %s, it is valid from %s to %s: one of the clocks is wrong",
			s.what, stamp(now), stamp(leaf.NotBefore), stamp(leaf.NotAfter)).WithHint(hintClock)
	case alertUnknownCA:
		if signedByLeaf(s.chain) {
			return caused(err, args.CodeWrongUse, "%s was not signed by a CA", s.what).WithHint("ask for a new ticket")
		}
		return caused(err, args.CodeOtherNetwork, "the node does not know the CA of %s: it is not in %s, or its CA is new", s.what, s.ca).
			WithHint("ask for a ticket of the node's network")
	case alertBadCertificate, alertUnsupportedCert, alertUnknownCertificate:
		if leaf.IsCA {
			return caused(err, args.CodeWrongUse, "%s is a CA's, not a client's", s.what).WithHint(hintClient)
		}
		if !onlyUse(leaf, clientUse) {
			return caused(err, args.CodeWrongUse, "%s is not for clients", s.what).WithHint(hintClient)
		}
		return caused(err, args.CodeBadCertificate, "the node refuses %s: it is not a ticket, or not complete", s.what).WithHint("ask for a new ticket")
	}
	return explainAlert(alert, err)
}
