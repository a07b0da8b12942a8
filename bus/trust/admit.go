package trust

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"fbus/bus/args"
)

// Identity is who is at the other end of a connection, and what it may do.
type Identity struct {
	Name    string
	Serial  string
	Rights  Rights    // empty while Joining
	Expires time.Time // the connection has to end then
	Joining bool      // an invitation: it may exchange itself, and nothing else
}

// Caller is who it is for FBUS_CALLER and the log: "ticket:NAME". Who holds an
// invitation is not yet who will have its name: whatever he does takes nothing from that one.
func (id *Identity) Caller() string {
	if id.Joining {
		return "invitation:" + id.Name
	}
	return "ticket:" + id.Name
}

// Admit says who has completed this handshake, as the authority's list has it
// now, or why nobody has. It is to be called before anything that the peer sent
// is read; the error's code and message may be told to the peer. from is the
// peer's address, for the list. Beside an error an identity is only what the CA has
// signed, for the log.
//
// An invitation is admitted (Joining) after it was burnt too, while it lasts,
// since the reply may have been lost; what it gets then is decided by Exchange.
func (a *Authority) Admit(cs tls.ConnectionState, from string) (*Identity, error) {
	now := a.now()
	if err := checkClient(cs, now); err != nil {
		return nil, err
	}
	chain := cs.VerifiedChains[0]
	if len(cs.VerifiedChains) != 1 || len(chain) != 2 || !bytes.Equal(chain[1].Raw, a.ca.Raw) {
		return nil, errorf(args.CodeOtherNetwork, "the certificate was not signed by the CA of network %s itself", a.network)
	}
	cert := chain[0]
	if !onlyUse(cert, clientUse) {
		return nil, errorf(args.CodeWrongUse, "the certificate is not for clients only").WithHint(hintClient)
	}
	n, err := parseNames(cert.URIs)
	if err != nil {
		return nil, err
	}
	id := &Identity{Name: n.name, Serial: serialText(cert.SerialNumber), Rights: n.rights, Expires: cert.NotAfter, Joining: n.join}
	r, err := a.check(id, now)
	if err != nil {
		return id, err
	}
	hash, err := keyHash(cert.PublicKey)
	if err != nil || hash != r.Key {
		return id, errorf(args.CodeBadCertificate, "the certificate's key is not the one that was recorded for ticket %s", r.Name)
	}
	a.list.saw(id.Serial, from)
	return id, nil
}

// Shown is whose certificate it is that a handshake has failed for, because it has expired
// or is not valid yet; nil if the CA has not signed it, or the list does not hold it. That
// its holder has the key was not seen yet: it is for the log, and no more.
func (a *Authority) Shown(err error) *Identity {
	var e x509.CertificateInvalidError
	if !errors.As(err, &e) || a.ca.CheckSignature(e.Cert.SignatureAlgorithm, e.Cert.RawTBSCertificate, e.Cert.Signature) != nil {
		return nil
	}
	n, err := parseNames(e.Cert.URIs)
	if err != nil {
		return nil
	}
	t, err := a.list.load()
	if err != nil {
		return nil
	}
	serial := serialText(e.Cert.SerialNumber)
	if r := t.get(serial); r == nil || r.Name != n.name {
		return nil
	}
	return &Identity{Name: n.name, Serial: serial, Joining: n.join}
}

// Check says whether somebody who was admitted would be so still.
func (a *Authority) Check(id *Identity) error {
	_, err := a.check(id, a.now())
	return err
}

// Unused says whether the invitation with that serial can still be exchanged for any
// key, or why not. It changes nothing.
func (a *Authority) Unused(serial string) error {
	t, err := a.list.load()
	if err != nil {
		return err
	}
	switch r, err := a.list.state(t, serial); {
	case err != nil:
		return err
	case r.State == Burnt:
		return used(r)
	case r.State != Invited:
		return errorf(args.CodeWrongUse, "ticket %s is not an invitation: it is used as it is", r.Name)
	case a.now().After(r.Expires):
		return expired("ticket "+r.Name, r.Expires, a.now())
	}
	return nil
}

// Standing says what the holder of a serial may do now, through whatever that was
// exchanged or renewed into. It is for work that was left here: who is not
// connected cannot be asked for a certificate.
func (a *Authority) Standing(serial string) (Rights, error) {
	t, err := a.list.load()
	if err != nil {
		return Rights{}, err
	}
	for range 64 { // a chain is short: one link for each renewal that is still listed
		r, err := a.list.state(t, serial)
		switch {
		case err != nil:
			return Rights{}, err
		case r.Into != "":
			serial = r.Into
			continue
		case a.now().After(r.Expires):
			return Rights{}, expired("ticket "+r.Name, r.Expires, a.now())
		}
		return r.Rights, nil
	}
	return Rights{}, unlisted(serial)
}

// check compares what a certificate says with what the list does.
func (a *Authority) check(id *Identity, now time.Time) (*Record, error) {
	t, err := a.list.load()
	if err != nil {
		return nil, err
	}
	r, err := a.list.state(t, id.Serial)
	if err != nil {
		return nil, err
	}
	if end := earlier(r.Expires, id.Expires); now.After(end) {
		return nil, expired("ticket "+r.Name, end, now)
	}
	if id.Name != r.Name || id.Joining != (r.State == Invited || r.State == Burnt) {
		return nil, errorf(args.CodeBadCertificate, "the certificate is not what was issued with the serial %s", r.Serial)
	}
	want := r.Rights
	if id.Joining {
		want = Rights{}
	}
	if !id.Rights.Equal(want) {
		return nil, errorf(args.CodeBadCertificate, "the certificate of ticket %s allows %s, but the list %s", r.Name, id.Rights, want)
	}
	return r, nil
}

// checkClient checks what is cryptographic about a peer that came as a client.
func checkClient(cs tls.ConnectionState, now time.Time) error {
	switch {
	case cs.Version != tls.VersionTLS13:
		return errorf(args.CodeTLSVersion, "the connection is not TLS 1.3")
	case cs.DidResume:
		return errorf(args.CodeTLS, "the connection resumes another one, which would skip checks")
	case len(cs.PeerCertificates) == 0:
		return noCertificate()
	case cs.PeerCertificates[0].IsCA:
		return errorf(args.CodeWrongUse, "the certificate is a CA's, not a client's")
	case len(cs.VerifiedChains) == 0 || len(cs.VerifiedChains[0]) < 2:
		return errorf(args.CodeOtherNetwork, "the certificate was not verified")
	}
	cert := cs.PeerCertificates[0]
	if !slices.Contains(cert.ExtKeyUsage, clientUse) {
		return errorf(args.CodeWrongUse, "the certificate is not for clients")
	}
	return checkTime(cert, "the certificate", now)
}

// onlyUse: x509 takes a certificate that says nothing of its use for one that is
// good for any.
func onlyUse(c *x509.Certificate, use x509.ExtKeyUsage) bool {
	return !c.IsCA && len(c.ExtKeyUsage) == 1 && c.ExtKeyUsage[0] == use && len(c.UnknownExtKeyUsage) == 0
}
