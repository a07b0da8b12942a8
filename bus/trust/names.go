package trust

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"fbus/bus/args"
)

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
