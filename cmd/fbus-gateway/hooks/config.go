// Package hooks runs functions for webhooks that come in, and sends webhooks for jobs that ask
// for one.
package hooks

import (
	"net/http"
	"slices"
	"strings"

	"fbus/bus/args"
)

// Config is a table [hooks.NAME] of gateway.toml: what a webhook that comes to /hook/NAME runs,
// and how it proves where it comes from.
type Config struct {
	Function   string   `toml:"function"`
	SecretFile string   `toml:"secret-file"` // one secret a line: each is valid
	Verify     string   `toml:"verify"`      // github, standard, hmac or token
	Header     string   `toml:"header"`      // hmac, token: the header with the signature, or the token
	Prefix     string   `toml:"prefix"`      // hmac, token: what precedes it there
	Algorithm  string   `toml:"algorithm"`   // hmac: sha256 (default), sha1 or sha512
	Encoding   string   `toml:"encoding"`    // hmac: hex (default) or base64
	Signed     string   `toml:"signed"`      // hmac: template of the signed data; default {body}
	Timestamp  string   `toml:"timestamp"`   // hmac: the header with the time, in Unix seconds, which has to be signed
	ID         string   `toml:"id"`          // hmac, token: template of the delivery's id
	Args       []string `toml:"args"`        // templates of the arguments; nil: the whole request as JSON
	When       any      `toml:"when"`        // a condition, or a list of them that all must hold
	Mode       string   `toml:"mode"`        // post (default) or call
}

// A Fault is something wrong with a table.
type Fault struct {
	Key     string // of the table; empty: the table itself
	Message string
	Hint    string
}

// Error returns the fault as one text.
func (f Fault) Error() string {
	if f.Key == "" {
		return f.Message
	}
	return f.Key + ": " + f.Message
}

// hook is a table that was checked.
type hook struct {
	name     string
	function string
	call     bool // mode call
	scheme   scheme
	args     []*template // nil: the envelope
	when     []condition
}

// Check returns all faults of a table. It reads the secret file.
func (c *Config) Check() []Fault {
	_, faults := c.compile("")
	return faults
}

// compile checks the table and makes the hook of it.
func (c *Config) compile(name string) (*hook, []Fault) {
	var faults []Fault
	fault := func(key, format string, a ...any) {
		faults = append(faults, Fault{Key: key, Message: args.Sprintf(format, a...)})
	}
	h := &hook{name: name, function: c.Function, call: c.Mode == "call"}
	switch {
	case c.Function == "":
		fault("", "function is missing: what the webhook runs")
	case !args.ValidName(c.Function):
		fault("function", "invalid function name %q", args.Shown(c.Function))
	case strings.HasPrefix(c.Function, "fbus."):
		fault("function", "%s: the node's own functions cannot be run by webhooks", args.Shown(c.Function))
	}
	if !slices.Contains([]string{"", "post", "call"}, c.Mode) {
		fault("mode", "%q must be post or call", args.Shown(c.Mode))
	}
	h.scheme = c.scheme(fault)
	if c.SecretFile == "" {
		fault("", "secret-file is missing: a file with the secret that the sender has, one a line")
	} else if _, err := h.scheme.secrets(); err != nil {
		faults = append(faults, Fault{"secret-file", err.Message, err.Hint})
	}
	if c.Args != nil {
		h.args = []*template{}
	}
	for _, text := range c.Args {
		t, err := parseTemplate(text)
		if err != nil {
			fault("args", "%v", err)
		}
		h.args = append(h.args, t)
	}
	var conditions []any
	switch when := c.When.(type) {
	case nil:
	case []any:
		conditions = when
	default:
		conditions = []any{when}
	}
	for _, text := range conditions {
		s, ok := text.(string)
		if !ok {
			fault("when", "must be a string or a list of strings")
			continue
		}
		cond, err := parseCondition(s)
		if err != nil {
			fault("when", "%v", err)
		}
		h.when = append(h.when, cond)
	}
	return h, faults
}

// scheme returns how deliveries are verified.
func (c *Config) scheme(fault func(key, format string, a ...any)) scheme {
	s := scheme{kind: c.Verify, file: c.SecretFile, header: c.Header, prefix: c.Prefix}
	given := map[string]string{
		"header": c.Header, "prefix": c.Prefix, "id": c.ID,
		"algorithm": c.Algorithm, "encoding": c.Encoding, "signed": c.Signed, "timestamp": c.Timestamp,
	}
	template := func(key, text string) *template {
		t, err := parseTemplate(text)
		if err != nil {
			fault(key, "%v", err)
		}
		return t
	}
	var allowed []string
	id := c.ID
	switch c.Verify {
	case "":
		fault("", "verify is missing: github, standard, hmac or token")
		return s
	case "github":
		s.header, s.prefix, s.newHash, s.decode = "X-Hub-Signature-256", "sha256=", hashes["sha256"], encodings["hex"]
		s.signed, id = bodyTemplate, "{header.X-GitHub-Delivery}"
	case "standard":
		id = "{header.Webhook-Id}"
	case "hmac":
		allowed = []string{"header", "prefix", "id", "algorithm", "encoding", "signed", "timestamp"}
		if c.Header == "" {
			fault("", "header is missing: the header that has the signature")
		}
		if s.newHash = hashes[orDefault(c.Algorithm, "sha256")]; s.newHash == nil {
			fault("algorithm", "%q must be sha256, sha1 or sha512", args.Shown(c.Algorithm))
		}
		if s.decode = encodings[orDefault(c.Encoding, "hex")]; s.decode == nil {
			fault("encoding", "%q must be hex or base64", args.Shown(c.Encoding))
		}
		s.signed = template("signed", orDefault(c.Signed, "{body}"))
		if s.signed != nil && !s.signed.has("body", "") {
			fault("signed", "it has no {body}, so that anybody could change what is sent")
		}
		if s.timestamp = c.Timestamp; c.Timestamp != "" && s.signed != nil && !s.signed.has("header", c.Timestamp) {
			fault("timestamp", "signed has no {header.%s}, so that anybody could change the time", args.Shown(c.Timestamp))
		}
	case "token":
		allowed = []string{"header", "prefix", "id"}
		if c.Header == "" {
			s.header, s.prefix = "Authorization", orDefault(c.Prefix, "Bearer ")
		}
	default:
		fault("verify", "%q must be github, standard, hmac or token", args.Shown(c.Verify))
		return s
	}
	for _, key := range []string{"header", "prefix", "id", "algorithm", "encoding", "signed", "timestamp"} {
		if given[key] != "" && !slices.Contains(allowed, key) {
			fault(key, "verify = %q does not use it", c.Verify)
		}
	}
	for _, key := range []string{"header", "timestamp"} {
		if given[key] != "" && strings.ContainsFunc(given[key], func(c rune) bool { return c > 0x7f || !args.NameByte(byte(c)) }) {
			fault(key, "%q is not the name of a header", args.Shown(given[key]))
		}
	}
	if id != "" {
		s.id = template("id", id)
	}
	s.header = http.CanonicalHeaderKey(s.header)
	return s
}

func orDefault(text, other string) string {
	if text == "" {
		return other
	}
	return text
}
