package args

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// TestHideSecrets: no PEM and no base64 of a secret is left of a message, quoted, escaped or
// cut in any way; paths and ids stay.
func TestHideSecrets(t *testing.T) {
	key := make([]byte, 138)
	rand.Read(key)
	body := base64.StdEncoding.EncodeToString(key)
	pem := "# a ticket\n-----BEGIN PRIVATE KEY-----\n" + body[:64] + "\n" + body[64:128] + "\n" + body[128:] + "\n-----END PRIVATE KEY-----\n"
	whole := base64.StdEncoding.EncodeToString([]byte(pem))
	for _, secret := range []string{pem, strings.ReplaceAll(pem, "\n", " "), fmt.Sprintf("%q", pem), body, whole, whole[7:], base64.URLEncoding.EncodeToString(key)} {
		got := HideSecrets("no node at " + secret + ": no such file")
		for i := 0; i+24 < len(body); i++ {
			if strings.Contains(got, body[i:i+24]) {
				t.Fatalf("%s shows %s", got, secret)
			}
		}
		if strings.Contains(got, whole[20:60]) || !strings.HasPrefix(got, "no node at ") || !strings.HasSuffix(got, ": no such file") {
			t.Errorf("%s", got)
		}
	}
	for _, plain := range []string{
		"/home/somebody/Projects/2026/Invoices-and-Reports/getUserByIdFromDatabase/run-this-function-Now",
		"01M8JXMZ1GW5VGGVQ61ZYVTYVX", "01M8JXMZ1GW5VGGVQ61ZYVTYVX_01M8JXMZ1GW5VGGVQ61ZYVTYVX", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "/tmp/TestScripts_batch2075563693/script-map_constant/001/home",
	} {
		if got := HideSecrets(plain); got != plain {
			t.Errorf("%s became %s", plain, got)
		}
	}
}

// TestHideTokens: no part of a token is left of a message, and no function, ticket or batch can have
// one as its name. Names of functions stay.
func TestHideTokens(t *testing.T) {
	for range 100 {
		p := make([]byte, 36)
		rand.Read(p)
		token := TokenPrefix + base64.RawURLEncoding.EncodeToString(p)
		for _, text := range []string{token, token + token, "Bearer " + token + ": no", fmt.Sprintf("[%q]", token), "fbus_fbus_" + token, token[:40], "x" + token} {
			for _, got := range []string{HideSecrets(text), Shown(text)} {
				if strings.Contains(got, token[5:15]) || strings.Contains(got, token[20:30]) || !strings.Contains(got, "not shown") {
					t.Fatalf("%s became %s", text, got)
				}
			}
		}
		if ValidName(token) || ValidName(token[:40]) || ValidName([]byte(token)) {
			t.Fatalf("%s can be a name", token)
		}
	}
	for _, name := range []string{"fbus_conformance_worker_of_this_test", "fbus_", "fbus", "FBUS_CALLER_IN_CAPITALS_ONLY_2026", "fbus_E2E"} {
		if HideSecrets(name) != name || !ValidName(name) {
			t.Errorf("%s is hidden: %s", name, HideSecrets(name))
		}
	}
}
