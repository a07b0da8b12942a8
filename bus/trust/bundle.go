package trust

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"os"
	"strings"
	"time"

	"fbus/bus/args"

	"golang.org/x/sys/unix"
)

// maxTicket limits a bundle. A ticket with the maximum number of rights is smaller.
const maxTicket = 64 << 10

// parseBundle reads the PEM blocks of a text: certificates, and at most one key. key is
// nil if there is none.
func parseBundle(text []byte) (certs []*x509.Certificate, key crypto.Signer, err error) {
	if len(text) > maxTicket {
		return nil, nil, errorf(args.CodeBadTicket, "%d bytes or more exceed the limit of %d", len(text), maxTicket)
	}
	text = unixLines(text)
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			return certs, key, nil
		}
		switch block.Type {
		case certBlock:
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, errorf(args.CodeBadTicket, "a certificate in it is malformed: %v", err)
			}
			certs = append(certs, c)
		case keyBlock:
			if key != nil {
				return nil, nil, errorf(args.CodeBadTicket, "there are two keys in it")
			}
			if key, err = parseKey(block.Bytes); err != nil {
				return nil, nil, err
			}
		default:
			return nil, nil, errorf(args.CodeBadTicket, "there is a block %q in it", args.Shown(block.Type)).
				WithHint("a ticket has certificates and one PRIVATE KEY (PKCS#8, not encrypted)")
		}
	}
}

var pemBegin = []byte("-----BEGIN ")

// unpack returns the lines of a ticket that was made one line, as the variables of many CI
// systems need it: in base64, or with \n for each line end. Other text stays as it is.
func unpack(text []byte) []byte {
	text = args.WithoutBOM(text)
	if !bytes.Contains(text, pemBegin) && len(text) <= 2*maxTicket {
		packed := strings.Trim(strings.Join(strings.Fields(string(text)), ""), `"'=`)
		packed = strings.NewReplacer("-", "+", "_", "/").Replace(packed)
		plain, err := base64.RawStdEncoding.DecodeString(packed)
		if err != nil || !bytes.Contains(plain, pemBegin) {
			return text
		}
		text = plain
	}
	if bytes.IndexByte(text, '\\') >= 0 {
		text = []byte(strings.NewReplacer(`\r\n`, "\n", `\n`, "\n", `\r`, "\n").Replace(string(text)))
	}
	return markedLines(text)
}

// markedLines puts the marks of PEM blocks on lines of their own, where a system made spaces of
// line ends or removed them. The lines within a block may have any length and spaces.
func markedLines(text []byte) []byte {
	if bytes.Count(text, []byte("\n-----")) >= bytes.Count(text, pemBegin)*2-1 {
		return text
	}
	var out []byte
	for _, key := range []string{"address:", "invitation:", "use:", "-----BEGIN "} { // of the comment
		text = bytes.ReplaceAll(text, []byte(" "+key), []byte("\n"+key))
	}
	for len(text) > 0 {
		begin := bytes.Index(text, pemBegin)
		if begin < 0 {
			break
		}
		mark := len(pemBegin) + bytes.Index(text[begin+len(pemBegin):], []byte("-----")) + 5
		end := bytes.Index(text[begin:], []byte("-----END "))
		if mark < len(pemBegin)+5 || end < mark {
			break
		}
		last := bytes.Index(text[begin+end+5:], []byte("-----"))
		if last < 0 {
			break
		}
		last += begin + end + 10
		out = append(append(out, text[:begin]...), '\n')
		out = append(append(out, text[begin:begin+mark]...), '\n')
		out = append(append(out, bytes.Join(bytes.Fields(text[begin+mark:begin+end]), []byte("\n"))...), '\n')
		out = append(append(out, text[begin+end:last]...), '\n')
		text = text[last:]
	}
	return append(out, text...)
}

// unixLines converts a text's line ends to LF. A text that passed through Windows and a
// shell's $(…) ends its last line in a bare CR. encoding/pem would not see the end of
// that block, and the ticket would be cut short.
func unixLines(text []byte) []byte {
	if bytes.IndexByte(text, '\r') < 0 {
		return text
	}
	text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
	return bytes.ReplaceAll(text, []byte("\r"), []byte("\n"))
}

func parseKey(der []byte) (crypto.Signer, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errorf(args.CodeBadTicket, "the key in it is malformed: %v", err)
	}
	key, ok := k.(crypto.Signer)
	if !ok || !goodKey(key.Public()) {
		return nil, errorf(args.CodeBadTicket, "the key in it is of an unsupported kind")
	}
	return key, nil
}

// readBounded reads a file named by the user, without blocking on a FIFO.
func readBounded(path string) ([]byte, os.FileMode, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, errorf(args.CodeStorage, "%v", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errorf(args.CodeStorage, "%v", err)
	}
	if info.IsDir() {
		return nil, 0, errorf(args.CodeBadTicket, "%s: is a directory", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, listLimit+1))
	if err != nil {
		return nil, 0, errorf(args.CodeStorage, "%v", err)
	}
	if len(data) > listLimit {
		return nil, 0, errorf(args.CodeBadTicket, "%s: has more than %d bytes", path, listLimit)
	}
	return data, info.Mode(), nil
}

// comment returns the text before the first PEM block.
func comment(text []byte) []string {
	before, _, _ := bytes.Cut(unixLines(text), []byte("-----BEGIN"))
	return strings.Split(string(before), "\n")
}

// CertificateName returns the ticket's name in the first certificate (PEM).
func CertificateName(cert []byte) (string, error) {
	certs, _, err := parseBundle(cert)
	if err != nil || len(certs) == 0 {
		return "", err
	}
	n, err := parseNames(certs[0].URIs)
	return n.name, err
}

// CertificateEnd returns the serial of the first certificate (PEM) and the end of its
// validity.
func CertificateEnd(cert []byte) (serial string, end time.Time, err error) {
	certs, _, err := parseBundle(cert)
	if err != nil {
		return "", time.Time{}, err
	}
	if len(certs) == 0 {
		return "", time.Time{}, errorf(args.CodeBadCertificate, "there is no certificate")
	}
	return serialText(certs[0].SerialNumber), certs[0].NotAfter, nil
}
