package testscripts

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	_ "unsafe" // for go:linkname

	"fbus/bus/trust"
	"fbus/bus/wire"

	"github.com/rogpeppe/go-internal/testscript"
)

// shiftClock sets the clock that certificates are held against: FBUS_TEST_CLOCK is
// how far it is ahead of the machine's.
func shiftClock() {
	if text := os.Getenv("FBUS_TEST_CLOCK"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			log.Fatal(err)
		}
		trustClock = func() time.Time { return time.Now().Add(d) }
	}
}

//go:linkname trustClock fbus/bus/trust.wallClock
var trustClock func() time.Time

// forge makes a certificate with whatever is wrong with it:
//
//	forge -o FILE [-by FILE] [-ca] [-from D] [-to D] [-cn NAME] [-dns NAME] [-ip ADDR] [-uri URI,…] [-use client,server]
//
// The first certificate of -by signs it, whether it may or not; without, it signs
// itself. FILE gets the certificate, its key, and that of who has signed it, as a
// ticket has them.
//
//	forge -crl -o FILE -by FILE [REVOKED…]
//
// makes a list of revoked certificates, the first of each file.
func forge(ts *testscript.TestScript, neg bool, args []string) {
	flags := flag.NewFlagSet("forge", flag.ContinueOnError)
	o := flags.String("o", "", "")
	by := flags.String("by", "", "")
	ca := flags.Bool("ca", false, "")
	from, to := flags.Duration("from", -time.Hour, ""), flags.Duration("to", time.Hour, "")
	cn, dns, ip := flags.String("cn", "ticket x", ""), flags.String("dns", "", ""), flags.String("ip", "", "")
	uris, uses := flags.String("uri", "fbus:name:x,fbus:call:*", ""), flags.String("use", "client", "")
	crl := flags.Bool("crl", false, "")
	ts.Check(flags.Parse(args))
	if *crl {
		parent, _, signer := readSigner(ts, *by)
		list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
		for _, file := range flags.Args() {
			c, _, _ := readSigner(ts, file)
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
		}
		der, err := x509.CreateRevocationList(rand.Reader, list, parent, signer)
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(*o), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o600))
		return
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	ts.Check(err)
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: *cn}, NotBefore: now.Add(*from), NotAfter: now.Add(*to),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	if *ca {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
		*uris, *uses = "", ""
	}
	for _, u := range split(*uris) {
		parsed, err := url.Parse(u)
		ts.Check(err)
		c.URIs = append(c.URIs, parsed)
	}
	c.DNSNames = split(*dns)
	if *ip != "" {
		c.IPAddresses = []net.IP{net.ParseIP(*ip)}
	}
	for _, use := range split(*uses) {
		c.ExtKeyUsage = append(c.ExtKeyUsage, map[string]x509.ExtKeyUsage{"client": x509.ExtKeyUsageClientAuth, "server": x509.ExtKeyUsageServerAuth}[use])
	}
	var signer crypto.Signer = key
	parent := c
	var chain []byte
	if *by != "" {
		var raw []byte
		parent, raw, signer = readSigner(ts, *by)
		chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	ts.Check(err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...)
	ts.Check(os.WriteFile(ts.MkAbs(*o), append(text, chain...), 0o600))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

// readSigner reads the first certificate and the key of a file.
func readSigner(ts *testscript.TestScript, file string) (cert *x509.Certificate, raw []byte, key crypto.Signer) {
	var err error
	for block, rest := pem.Decode([]byte(ts.ReadFile(file))); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case block.Type == "CERTIFICATE" && cert == nil:
			cert, err = x509.ParseCertificate(block.Bytes)
			raw = block.Bytes
		case block.Type == "PRIVATE KEY":
			var k any
			k, err = x509.ParsePKCS8PrivateKey(block.Bytes)
			key = k.(crypto.Signer)
		}
		ts.Check(err)
	}
	return cert, raw, key
}

// impostor listens where a node is expected and is none:
//
//	impostor KIND ADDRESS FILE [CERTIFICATE]
//
// A full one needs net.core.somaxconn to be 0. ADDRESS is HOST:PORT or a path; FILE gets the one that it has. It ends when it is
// killed.
func impostor() int {
	kind, address, file := os.Args[1], os.Args[2], os.Args[3]
	network := "tcp"
	if strings.Contains(address, "/") {
		network = "unix"
	}
	l, err := net.Listen(network, address)
	check(err)
	if kind == "full" { // connects to it are lost: its queue is full, and stays so
		for err == nil {
			_, err = net.DialTimeout("tcp", l.Addr().String(), time.Second)
		}
	}
	check(os.WriteFile(file+".new", []byte(l.Addr().String()), 0o666))
	check(os.Rename(file+".new", file))
	if kind == "full" {
		select {}
	}
	for {
		nc, err := l.Accept()
		check(err)
		go func() { // ends with the connection
			defer nc.Close()
			pretend(kind, nc)
		}()
	}
}

// pretend answers one client.
func pretend(kind string, nc net.Conn) {
	switch kind {
	case "silent":
		io.Copy(io.Discard, nc)
	case "closing":
		io.ReadFull(nc, make([]byte, 4))
	case "http":
		io.ReadFull(nc, make([]byte, 4))
		io.WriteString(nc, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
	case "ssh":
		io.WriteString(nc, "SSH-2.0-OpenSSH_9.9\r\n")
		io.Copy(io.Discard, nc)
	case "tls12", "https", "node":
		cert, err := tls.LoadX509KeyPair(os.Args[4], os.Args[4])
		check(err)
		c := &tls.Config{Certificates: []tls.Certificate{cert}}
		switch kind {
		case "tls12":
			c.MaxVersion = tls.VersionTLS12
		case "https":
			c.NextProtos = []string{"h2", "http/1.1"}
		}
		tc := tls.Server(nc, c)
		if tc.Handshake() == nil {
			io.Copy(io.Discard, tc)
		}
	default:
		log.Fatalf("no impostor is %s", kind)
	}
}

// knock speaks to a node in ways that no client does, and prints what comes back:
//
//	knock FILE plain|http|tls12|none|CERTIFICATE…
//
// FILE holds the node's address. It sends a HELLO, an OFFER and a CALL as early as it
// can: they must come to nothing.
func knock(ts *testscript.TestScript, neg bool, args []string) {
	for _, how := range args[1:] {
		fmt.Fprintf(ts.Stdout(), "%s: %s\n", how, knockAs(ts, strings.TrimSpace(ts.ReadFile(args[0])), how))
	}
}

func knockAs(ts *testscript.TestScript, address, how string) string {
	nc, err := net.DialTimeout("tcp", address, patience)
	ts.Check(err)
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	var w io.ReadWriter = nc
	switch how {
	case "plain":
	case "http":
		io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	default:
		config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{trust.ALPN}}
		if how == "tls12" {
			config.MaxVersion = tls.VersionTLS12
		} else if how != "none" {
			cert, err := tls.LoadX509KeyPair(ts.MkAbs(how), ts.MkAbs(how))
			ts.Check(err)
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
		}
		tc := tls.Client(nc, config)
		if err := tc.Handshake(); err != nil {
			return err.Error()
		}
		w = tc
	}
	if how != "http" {
		w.Write(hostile)
	}
	answer, err := io.ReadAll(w)
	return fmt.Sprint(string(bytes.Map(printable, answer)), " ", err)
}

func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return ' '
	}
	return r
}

// hostile is a HELLO, an OFFER, and a CALL of a function that leaves a trace.
var hostile = slices.Concat(
	wire.Append(nil, &wire.HelloFrame{Major: wire.Major, Name: []byte("hostile")}),
	wire.Append(nil, &wire.OfferFrame{Seq: 1, Name: []byte("hostile"), Slots: 1}),
	wire.Append(nil, &wire.CallFrame{ID: 1, Name: []byte("trace"), Flags: wire.FlagInputEnd, WaitSlot: wire.Forever}),
)
