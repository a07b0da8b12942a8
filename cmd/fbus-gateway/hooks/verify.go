package hooks

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fbus/bus/args"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// scheme is how the sender of a delivery is verified.
type scheme struct {
	kind      string // github, standard, hmac or token
	file      string // of the secrets
	header    string
	prefix    string
	newHash   func() hash.Hash
	decode    func(string) ([]byte, error)
	signed    *template
	timestamp string    // header
	id        *template // of the delivery's id; nil: none
}

// tolerance is how far the time of a delivery may be off, as that of Standard Webhooks.
const tolerance = 5 * time.Minute

var (
	hashes    = map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New}
	encodings = map[string]func(string) ([]byte, error){"hex": hex.DecodeString, "base64": base64.StdEncoding.DecodeString}
)

// errSignature refuses a delivery. It does not say how close the sender came to a valid signature.
var errSignature = errors.New("the signature does not match")

// verify returns a digest of the signed data, or why the delivery is refused. For a
// token, which signs nothing, the digest is empty.
func (s *scheme) verify(d *delivery, secrets []secret) (digest string, err error) {
	switch s.kind {
	case "token":
		text := d.header.Get(s.header)
		got, ok := strings.CutPrefix(text, s.prefix)
		if n := len(s.prefix); !ok && s.header == "Authorization" && len(text) > n {
			got, ok = text[n:], strings.EqualFold(text[:n], s.prefix) // the scheme has no case (RFC 9110, section 11.1)
		}
		sum, valid := sha256.Sum256([]byte(got)), 0
		for _, secret := range secrets {
			want := sha256.Sum256(secret.text) // equal lengths: the time tells nothing of the secret's
			valid |= subtle.ConstantTimeCompare(sum[:], want[:])
		}
		if !ok || valid == 0 {
			return "", errors.New("the token does not match")
		}
		return "", nil
	case "standard":
		for _, secret := range secrets {
			if err = secret.standard.Verify(d.raw, d.header); err == nil {
				break
			}
		}
		switch {
		case errors.Is(err, standardwebhooks.ErrMessageTooOld), errors.Is(err, standardwebhooks.ErrMessageTooNew):
			return "", errOld
		case err != nil:
			return "", errSignature
		}
		return digestOf(d.raw), nil
	}
	text, ok := strings.CutPrefix(d.header.Get(s.header), s.prefix)
	got, err := s.decode(text)
	signed, missing := s.signed.fill(d)
	if !ok || err != nil || len(got) == 0 || missing != nil {
		return "", errSignature
	}
	valid := false
	for _, secret := range secrets {
		mac := hmac.New(s.newHash, secret.text)
		io.WriteString(mac, signed)
		valid = hmac.Equal(got, mac.Sum(nil)) || valid
	}
	if !valid {
		return "", errSignature
	}
	if s.timestamp != "" {
		seconds, err := strconv.ParseInt(d.header.Get(s.timestamp), 10, 64)
		if err != nil || time.Since(time.Unix(seconds, 0)).Abs() > tolerance {
			return "", errOld
		}
	}
	return digestOf([]byte(signed)), nil
}

var errOld = errors.New("its time is more than 5 minutes from now")

func digestOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// secret is one line of a secret file.
type secret struct {
	text     []byte
	standard *standardwebhooks.Webhook
}

const maxSecrets = 64 << 10 // bytes of the file

// secrets reads the secret file. That is done for each delivery, so a change needs no restart.
func (s *scheme) secrets() ([]secret, *args.Error) {
	text, err := readPrivate(s.file)
	if err != nil {
		return nil, err
	}
	var list []secret
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		one := secret{text: line}
		if s.kind == "standard" {
			key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(string(line), "whsec_"))
			if err != nil || len(key) == 0 {
				return nil, args.Errorf(args.CodeUsage, "%s: a secret of Standard Webhooks is whsec_ and base64", s.file)
			}
			one.standard, _ = standardwebhooks.NewWebhookRaw(key)
		}
		list = append(list, one)
	}
	if len(list) == 0 {
		return nil, args.Errorf(args.CodeUsage, "%s: it has no secret", s.file).WithHint("write the sender's secret there, on a line of its own")
	}
	return list, nil
}

// readPrivate reads a file that nobody else may read.
func readPrivate(path string) ([]byte, *args.Error) {
	// A FIFO must not hold up the gateway, so the open does not wait.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "%v", err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, args.Errorf(args.CodeUsage, "%v", err)
	case !st.Mode().IsRegular():
		return nil, args.Errorf(args.CodeUsage, "%s: is not a regular file", path)
	case st.Mode().Perm()&0o077 != 0:
		return nil, args.Errorf(args.CodeUnsafe, "%s: mode %04o gives others access", path, st.Mode().Perm()).WithHint("chmod 600 %s", args.Quote(path))
	}
	if owner := int(st.Sys().(*syscall.Stat_t).Uid); owner != 0 && owner != os.Geteuid() {
		return nil, args.Errorf(args.CodeUnsafe, "%s: belongs to uid %d, and is not used", path, owner)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecrets+1))
	switch {
	case err != nil:
		return nil, args.Errorf(args.CodeUsage, "%v", err)
	case len(text) > maxSecrets:
		return nil, args.Errorf(args.CodeUsage, "%s: exceeds the limit of %d bytes", path, maxSecrets)
	}
	return text, nil
}
