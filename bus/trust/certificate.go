package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"fbus/bus/args"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	nodeLife = 365 * 24 * time.Hour

	// secondLife is the validity period of a second node's certificate as a node. No client
	// knows when it was revoked, so it is short, and renewed each day.
	secondLife = 30 * 24 * time.Hour

	// IdentityLife is the validity period of an identity. It is renewed in the last third.
	IdentityLife = 365 * 24 * time.Hour

	// caRenewal is how long before its end the CA's certificate is replaced. Identities are
	// renewed more often, and then get the new one.
	caRenewal = caLife / 5

	backdate = time.Hour // of NotBefore: clocks are seldom equal

	certBlock    = "CERTIFICATE"
	keyBlock     = "PRIVATE KEY"
	requestBlock = "CERTIFICATE REQUEST"
	listBlock    = "X509 CRL"
)

// The uses of a certificate. No certificate has both.
const (
	clientUse = x509.ExtKeyUsageClientAuth
	serverUse = x509.ExtKeyUsageServerAuth
)

// ServerName returns the DNS name of a network's nodes, whatever their addresses.
func ServerName(network string) string { return network + ".fbus.invalid" }

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// newSerial returns 128 random bits.
func newSerial() string {
	var p [16]byte
	rand.Read(p[:]) // never fails
	return fmt.Sprintf("%x", p)
}

func serialText(n *big.Int) string { return fmt.Sprintf("%032x", n) }

func serialNumber(text string) *big.Int {
	n, _ := new(big.Int).SetString(text, 16)
	return n
}

// keyHash returns the SHA-256 of a public key in its certificate encoding.
func keyHash(pub any) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(der)), nil
}

// makeCA creates a network's self-signed CA. It may sign only leaf certificates. It has
// no name constraints: with any, verifiers fail on URI names without a host, such as
// ours. A certificate that replaces old has the same name, key and start: what the CA has
// signed is valid under both, and a slow clock accepts either.
func makeCA(network string, key *ecdsa.PrivateKey, now time.Time, old *x509.Certificate) ([]byte, error) {
	template := &x509.Certificate{
		SerialNumber:          serialNumber(newSerial()),
		Subject:               pkix.Name{CommonName: network},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	if old != nil {
		template.NotBefore, template.SubjectKeyId = old.NotBefore, old.SubjectKeyId
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}

// sameCA reports whether two certificates are of the same CA: of the same name and key.
func sameCA(a, b *x509.Certificate) bool {
	return isCA(a) && isCA(b) && bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo) &&
		a.CheckSignatureFrom(b) == nil && b.CheckSignatureFrom(a) == nil
}

// leaf returns the template shared by node and ticket certificates.
func leaf(commonName string, use x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{use},
		BasicConstraintsValid: true,
	}
}

// signNode makes a node's certificate. It is backdated to the CA's start, so that a client
// with a slow clock accepts it however recently the node was started.
func (a *Authority) signNode(pub any, now time.Time, life time.Duration) (*x509.Certificate, error) {
	ca := a.root.Load().ca
	t := leaf(ServerName(a.network), serverUse)
	t.SerialNumber = serialNumber(newSerial())
	t.DNSNames = []string{ServerName(a.network)}
	t.NotBefore, t.NotAfter = ca.NotBefore, earlier(now.Add(life), ca.NotAfter)
	der, err := x509.CreateCertificate(rand.Reader, t, ca, pub, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// signClient makes a record's certificate. Its content is always the same for one record
// and key.
func (a *Authority) signClient(ca *x509.Certificate, r *Record, join bool, pub any) (*x509.Certificate, error) {
	// For people. The space prevents confusion with a DNS name.
	t := leaf("ticket "+r.Name, clientUse)
	t.SerialNumber = serialNumber(r.Serial)
	t.NotBefore, t.NotAfter = r.Issued.Add(-backdate), r.Expires
	n := names{name: r.Name, join: join}
	if !join {
		n.rights = r.Rights
	}
	t.URIs = n.uris()
	der, err := x509.CreateCertificate(rand.Reader, t, ca, pub, a.key)
	if err != nil {
		return nil, errorf(args.CodeBadRight, "the certificate cannot be signed: %v", err)
	}
	return x509.ParseCertificate(der)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// parseRequest reads a PKCS#10 request. Only its key is used.
func parseRequest(text []byte) (pub any, err error) {
	if len(text) > maxTicket {
		return nil, errorf(args.CodeBadCertificate, "a certificate request of %d bytes exceeds the limit of %d", len(text), maxTicket)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != requestBlock {
		return nil, errorf(args.CodeBadCertificate, "not a certificate request").WithHint("it must be PKCS#10 in PEM: BEGIN CERTIFICATE REQUEST")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, errorf(args.CodeBadCertificate, "the certificate request is malformed: %v", err)
	}
	if !goodKey(req.PublicKey) {
		return nil, errorf(args.CodeBadCertificate, "the certificate request has a key of an unsupported kind").
			WithHint("ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits")
	}
	return req.PublicKey, nil
}

func goodKey(pub any) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256() || k.Curve == elliptic.P384()
	case ed25519.PublicKey:
		return true
	case *rsa.PublicKey:
		n := k.N.BitLen()
		return n >= 2048 && n <= 8192 // crypto/tls refuses larger ones
	}
	return false
}

func makeRequest(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, errorf(args.CodeBadTicket, "the certificate request cannot be made: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der}), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der})
}

func keyPEM(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, errorf(args.CodeBadTicket, "the key cannot be written: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// maxName is the longest name of a ticket.
const maxName = 64

// names holds the contents of a certificate's URI names.
type names struct {
	name   string
	rights Rights
	join   bool
}

// CheckName checks the name of a ticket.
func CheckName(name string) error {
	if args.HasToken(name) {
		return errorf(args.CodeBadRight, "invalid ticket name: it contains a token").WithHint("--name gives a name that lists and logs show")
	}
	if len(name) > maxName || !args.ValidName(name) {
		return errorf(args.CodeBadRight, "invalid ticket name %q", args.Shown(name)).
			WithHint("it must be at most %d letters, digits, _ . -, and not begin with . or -", maxName)
	}
	if isSerial(name) { // revoke NAME|SERIAL would be ambiguous
		return errorf(args.CodeBadRight, "%q is not a valid ticket name: it looks like a serial number", name).WithHint("32 hexadecimal digits are a serial")
	}
	return nil
}

// uris encodes names for a certificate. The package documentation describes the
// encoding.
func (n names) uris() []*url.URL {
	uris := []*url.URL{fbusURI("name:", n.name)}
	if n.join {
		uris = append(uris, fbusURI("join", ""))
	}
	for _, w := range n.rights.Words() {
		kind, glob, ok := strings.Cut(w, ":")
		if ok {
			kind += ":"
		}
		uris = append(uris, fbusURI(kind, glob))
	}
	return uris
}

func fbusURI(kind, value string) *url.URL {
	return &url.URL{Scheme: "fbus", Opaque: kind + escape(value)}
}

// escape encodes the characters that a URI cannot hold (RFC 3986): ? would begin a
// query.
func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; args.NameByte(c) || c == '*' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// parseNames reads the URI names of a certificate, and ignores names of other schemes.
func parseNames(uris []*url.URL) (names, error) {
	var n names
	var words []string
	for _, u := range uris {
		if u.Scheme != "fbus" {
			continue
		}
		if u.ForceQuery || u.RawQuery != "" || u.Fragment != "" {
			return n, errorf(args.CodeBadCertificate, "the certificate's name %q has a query or a fragment", args.Shown(u.String())).WithHint("a ? in a glob is written %%3F")
		}
		kind, raw, _ := strings.Cut(u.Opaque, ":")
		value, err := url.PathUnescape(raw)
		switch {
		case err != nil:
			return n, errorf(args.CodeBadCertificate, "the certificate's name %q is malformed", args.Shown(u.String()))
		case raw != escape(value):
			return n, errorf(args.CodeBadCertificate, "the certificate's name %q is not in its normal form", args.Shown(u.String())).
				WithHint("A-Z a-z 0-9 _ . - * are written as they are, and every other character as in %%5B for [, with upper-case digits")
		case kind == "name" && n.name != "":
			return n, errorf(args.CodeBadCertificate, "the certificate has two fbus:name: names")
		case kind == "name":
			if err := CheckName(value); err != nil {
				return n, errorf(args.CodeBadCertificate, "the certificate's fbus:name: is invalid: %v", err)
			}
			n.name = value
		case u.Opaque == "join":
			n.join = true
		case u.Opaque == "admin", u.Opaque == "monitor", u.Opaque == "relay":
			words = append(words, u.Opaque)
		default:
			words = append(words, kind+":"+value)
		}
	}
	if n.name == "" {
		return n, errorf(args.CodeBadCertificate, "the certificate has no URI name fbus:name:NAME").
			WithHint("other names, such as the common name or DNS names, do not count")
	}
	var err error
	if n.rights, err = ParseRights(words...); err != nil {
		return n, errorf(args.CodeBadCertificate, "the certificate has an invalid fbus name: %v", err)
	}
	return n, nil
}

func isSerial(s string) bool { return len(s) == 32 && isHex(s) }

// isHex accepts lower case only, so that a serial has one spelling.
func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && !strings.ContainsAny(s, "ABCDEF")
}
