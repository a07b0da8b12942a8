package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"fbus/bus/args"
)

// A bearer token lets a program without TLS certificates use the bus through a relay, which asks
// the node about it. Its text is fbus_ and, in base64url without padding, 32 random bytes and
// their CRC-32 (IEEE, big-endian). The list has its SHA-256 alone.
const tokenBytes = 32

// newToken returns the text of a new token.
func newToken() string {
	var p [tokenBytes]byte
	rand.Read(p[:]) // never fails
	return args.TokenPrefix + base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(p[:], crc32.ChecksumIEEE(p[:])))
}

// wellFormedToken reports whether a text can be a token, by its checksum.
func wellFormedToken(text string) bool {
	code, ok := strings.CutPrefix(text, args.TokenPrefix)
	p, err := base64.RawURLEncoding.DecodeString(code)
	return ok && err == nil && len(p) == tokenBytes+4 && binary.BigEndian.Uint32(p[tokenBytes:]) == crc32.ChecksumIEEE(p[:tokenBytes])
}

// tokenNamed begins the name of a token's bearer, and the key of its name in the index.
const tokenNamed = "token:"

func hashToken(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// IssueToken creates a bearer token, and returns its text, which is kept nowhere, and its record.
// It is [Authority.Issue] in all else.
func (a *Authority) IssueToken(by string, q Request) (token string, r Record, err error) {
	q.token = true
	if err := a.checkRequest(&q); err != nil {
		return "", r, err
	}
	if err := a.checkClock(); err != nil {
		return "", r, err
	}
	token = newToken()
	now := a.now().UTC().Truncate(time.Second)
	r = newRecord(&q, hashToken(token), now, a.root.Load().ca.NotAfter)
	if err := a.list.update(func(t *table) (bool, error) { return true, t.issue(r, by, now) }); err != nil {
		return "", r, err
	}
	return token, r, nil
}

// checkToken refuses what is for tickets alone. The bearer of a token has no connection to the node. A
// relay must not offer, relay or administer for them.
func (q *Request) checkToken() error {
	switch {
	case q.Reusable, q.Uses > 0, q.Ephemeral:
		return errorf(args.CodeBadRight, "a token is used as it is: nobody joins with it")
	case len(q.Addresses) > 0:
		return errorf(args.CodeBadRight, "a token is used through a relay: it has no addresses")
	case q.Rights.Admin, q.Rights.Relay, len(q.Rights.Offer) > 0:
		return errorf(args.CodeBadRight, "a token cannot allow to offer, to administer or to relay").WithHint("use a ticket for that; a token has --call GLOB and --monitor")
	}
	return nil
}

// Token returns the record of a token that a relay presents, or an error with the reason for its
// refusal. The look-up is by its SHA-256: its time tells nothing about other tokens. The list
// records from, the relay's address.
func (a *Authority) Token(text, from string) (*Record, error) {
	t, err := a.list.load()
	if err != nil {
		return nil, err
	}
	serial, ok := t.tokens[hashToken(text)]
	switch {
	case !ok && !wellFormedToken(text):
		return nil, errorf(args.CodeUnlisted, "this is not a token").WithHint("was it cut short? it is %s and 48 letters, digits, - or _", args.TokenPrefix)
	case !ok:
		return nil, errorf(args.CodeUnlisted, "the token is not on the list of this network").WithHint("ask for a new one")
	}
	r, err := t.state(serial)
	if err != nil {
		return nil, err
	}
	if now := a.now(); now.After(r.Expires) {
		return nil, expired(r.what(), r.Expires, now)
	}
	a.list.saw(serial, from)
	return r, nil
}

// TokenSerial returns the serial of the valid token of that name; "": there is none. It does not wait
// for the disk.
func (a *Authority) TokenSerial(name string) string {
	if t := a.list.current.Load(); t != nil {
		if r := t.get(t.tokens[tokenNamed+name]); r != nil && r.Live(a.now()) {
			return r.Serial
		}
	}
	return ""
}

// TokenExpired reports whether a token has expired between two times.
func (a *Authority) TokenExpired(from, to time.Time) bool {
	if t := a.list.current.Load(); t != nil {
		for i := range t.records {
			if r := &t.records[i]; r.Kind == Token && r.Expires.After(from) && !r.Expires.After(to) {
				return true
			}
		}
	}
	return false
}
