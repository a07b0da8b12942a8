package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/cmd/fbus-gateway/hooks"
)

// config is how the gateway behaves: gateway.toml, and flags.
type config struct {
	Node      string
	Socket    string
	Listen    []string // host:port
	TLSCert   string
	TLSKey    string
	Proxies   []netip.Prefix // who may pass requests on without TLS
	NoAuth    bool
	Hosts     []string // names of this gateway
	Origins   []string // of pages that may use it
	AccessLog string   // a file; none: there is no log
	Drain     time.Duration
	Limits    limitConfig
	Publish   []string // globs; none: everything
	Functions map[string]functionConfig
	Tokens    map[string]tokenConfig
	Hooks     map[string]hooks.Config
	Send      map[string]hooks.Send

	headerTime time.Duration // how long a client may take to send a header; it is no setting

	MetricsFunctions []string // globs of those with series of their own; none: all
}

type limitConfig struct {
	Body, Header              int64 // bytes
	Idle                      time.Duration
	Calls, Streams, PerMinute int // of one caller; 0: no limit
}

// functionConfig is a table functions.NAME.
type functionConfig struct {
	Status map[int]int // of HTTP, for exit statuses
}

// tokenConfig is a table tokens.NAME or tickets.NAME.
type tokenConfig struct {
	Stderr bool
	limitConfig
}

func defaults() *config {
	return &config{
		Listen: []string{"127.0.0.1:8010"}, Drain: time.Minute,
		headerTime: 10 * time.Second,
		Limits:     limitConfig{Body: 1 << 30, Header: 64 << 10, Idle: 2 * time.Minute, Calls: 1000, Streams: 2000},
		Functions:  map[string]functionConfig{}, Tokens: map[string]tokenConfig{}, Hooks: map[string]hooks.Config{}, Send: map[string]hooks.Send{},
	}
}

// limitsOf returns the limits of a caller.
func (c *config) limitsOf(who *caller) limitConfig {
	if t, ok := c.Tokens[who.name]; ok {
		return t.limitConfig
	}
	return c.Limits
}

// showsStderr reports whether a caller is shown what programs have written to stderr.
func (c *config) showsStderr(who *caller) bool { return who.name == "" || c.Tokens[who.name].Stderr }

// A setting takes the value of a key. Words are those of the key that its pattern leaves open.
type setting func(c *config, words []string, v any) error

// settings are the keys of gateway.toml; * is any word.
var settings = map[string]setting{
	"node":                 text(func(c *config) *string { return &c.Node }),
	"socket":               file(func(c *config) *string { return &c.Socket }),
	"tls-cert":             file(func(c *config) *string { return &c.TLSCert }),
	"tls-key":              file(func(c *config) *string { return &c.TLSKey }),
	"access-log":           file(func(c *config) *string { return &c.AccessLog }),
	"listen":               setListen,
	"hosts":                words(func(c *config) *[]string { return &c.Hosts }, checkHost),
	"origins":              words(func(c *config) *[]string { return &c.Origins }, checkOrigin),
	"metrics.functions":    words(func(c *config) *[]string { return &c.MetricsFunctions }, trust.CheckGlob),
	"publish.allow":        setPublish,
	"drain":                duration(func(c *config) *time.Duration { return &c.Drain }),
	"limits.idle":          duration(func(c *config) *time.Duration { return &c.Limits.Idle }),
	"limits.body":          size(func(c *config) *int64 { return &c.Limits.Body }),
	"limits.header":        size(func(c *config) *int64 { return &c.Limits.Header }),
	"limits.calls":         count(func(c *config) *int { return &c.Limits.Calls }),
	"limits.streams":       count(func(c *config) *int { return &c.Limits.Streams }),
	"limits.per-minute":    count(func(c *config) *int { return &c.Limits.PerMinute }),
	"functions.*.status.*": setStatus,
	"tokens.*.*":           setToken("token:"),
	"tickets.*.*":          setToken("ticket:"),
	"no-auth": func(c *config, _ []string, v any) (err error) {
		c.NoAuth, err = as[bool](v, "true or false")
		return err
	},
	"behind-proxy": func(c *config, _ []string, v any) error {
		list, wrong := asWords(v)
		c.Proxies, wrong = parsePrefixes(list, wrong)
		return wrong.err()
	},
}

func as[T any](v any, kind string) (T, error) {
	t, ok := v.(T)
	if !ok {
		return t, fmt.Errorf("it must be %s", kind)
	}
	return t, nil
}

// elements are what is wrong with elements of a list, by their index. -1: it is no list.
type elements map[int]error

func (e elements) err() error {
	if len(e) == 0 {
		return nil
	}
	return e
}

func (e elements) Error() string {
	var list []string
	for _, i := range slices.Sorted(maps.Keys(e)) {
		list = append(list, args.Plain(e[i]))
	}
	return strings.Join(list, "; ")
}

// asWords returns the strings of a list. One that is wrong is empty.
func asWords(v any) ([]string, elements) {
	if s, ok := v.(string); ok {
		return []string{s}, elements{}
	}
	list, err := as[[]any](v, "a list of strings")
	if err != nil {
		return nil, elements{-1: err}
	}
	words, wrong := make([]string, len(list)), elements{}
	for i := range list {
		if words[i], err = as[string](list[i], "a string"); err != nil {
			wrong[i] = err
		}
	}
	return words, wrong
}

func text(of func(c *config) *string) setting {
	return func(c *config, _ []string, v any) (err error) {
		*of(c), err = as[string](v, "a string")
		return err
	}
}

// file takes a path, which is relative to the file's directory: see readConfig.
func file(of func(c *config) *string) setting { return text(of) }

func words(of func(c *config) *[]string, check func(word string) error) setting {
	return func(c *config, _ []string, v any) error {
		list, wrong := asWords(v)
		for i, word := range list {
			if err := check(word); err != nil && wrong[i] == nil {
				wrong[i] = err
			}
		}
		*of(c) = list
		return wrong.err()
	}
}

// maxPublish bounds the globs that each job of a list is compared with.
const maxPublish = 256

func setPublish(c *config, _ []string, v any) error {
	err := words(func(c *config) *[]string { return &c.Publish }, trust.CheckGlob)(c, nil, v)
	switch n := len(c.Publish); {
	case err == nil && n == 0:
		err = args.Errorf(args.CodeUsage, "it must have a glob: without it everything is served")
	case err == nil && n > maxPublish:
		err = args.Errorf(args.CodeUsage, "%d globs exceed the limit of %d", n, maxPublish)
	}
	return err
}

func setListen(c *config, _ []string, v any) error {
	seen := map[string]bool{}
	return words(func(c *config) *[]string { return &c.Listen }, func(addr string) error {
		err := checkListen(addr)
		if err == nil && seen[addr] && !strings.HasSuffix(addr, ":0") {
			err = args.Errorf(args.CodeUsage, "%q is there twice", addr)
		}
		seen[addr] = true
		return err
	})(c, nil, v)
}

func duration(of func(c *config) *time.Duration) setting {
	return func(c *config, _ []string, v any) error {
		s, err := as[string](v, `a duration as "30s"`)
		if err == nil {
			*of(c), err = parseDuration("", s)
		}
		return err
	}
}

func size(of func(c *config) *int64) setting {
	return func(c *config, _ []string, v any) error {
		s, err := as[string](v, `a size as "64M"`)
		if err == nil {
			*of(c), err = parseSize(s)
		}
		return err
	}
}

func count(of func(c *config) *int) setting {
	return func(c *config, _ []string, v any) error {
		n, err := as[int64](v, "a whole number")
		if err == nil && (n < 0 || n > 1<<30) {
			err = errors.New("it must be from 0, which is no limit, to 1073741824")
		}
		*of(c) = int(n)
		return err
	}
}

// setStatus sets the status of HTTP for an exit status of a function.
func setStatus(c *config, words []string, v any) error {
	if !args.ValidName(words[0]) {
		return fmt.Errorf("invalid function name %q", args.Shown(words[0]))
	}
	exit, err := strconv.Atoi(words[1])
	if err != nil || exit < 1 || exit > 255 {
		return errors.New("an exit status is from 1 to 255: 0 is always 200")
	}
	status, err := as[int64](v, "a status of HTTP")
	if err == nil && (status < 400 || status > 599) {
		err = errors.New("the status of HTTP for a failure is from 400 to 599")
	}
	f := c.Functions[words[0]]
	if f.Status == nil {
		f.Status = map[int]int{}
	}
	f.Status[exit] = int(status)
	c.Functions[words[0]] = f
	return err
}

// setToken sets what holds for a token or ticket.
func setToken(kind string) setting {
	return func(c *config, words []string, v any) error {
		if err := trust.CheckName(words[0]); err != nil {
			return err
		}
		name := kind + words[0]
		t, ok := c.Tokens[name]
		if !ok {
			t.limitConfig = limitConfig{Calls: -1, Streams: -1, PerMinute: -1} // as [limits] says
		}
		var err error
		switch words[1] {
		case "stderr":
			t.Stderr, err = as[bool](v, "true or false")
		case "calls", "streams", "per-minute":
			to := map[string]*int{"calls": &t.Calls, "streams": &t.Streams, "per-minute": &t.PerMinute}[words[1]]
			err = count(func(*config) *int { return to })(c, nil, v)
		default:
			return errUnknown
		}
		c.Tokens[name] = t
		return err
	}
}

var errUnknown = errors.New("unknown key")

func checkListen(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return args.Errorf(args.CodeUsage, "%q must be HOST:PORT, with a port from 0 to 65535", args.Shown(addr))
	}
	return nil
}

func checkHost(host string) error {
	if strings.Contains(host, "*") {
		return fmt.Errorf("%q is not a host: hosts are names, without *", host)
	}
	if host == "" || host != strings.ToLower(host) || strings.ContainsAny(host, "/:@ ") && net.ParseIP(host) == nil {
		return fmt.Errorf("%q is not a host: it has no port, and no capitals", host)
	}
	return nil
}

func checkOrigin(origin string) error {
	scheme, host, ok := strings.Cut(origin, "://")
	if !ok || scheme != "http" && scheme != "https" || host == "" || strings.ContainsAny(host, "/*@ ") {
		return fmt.Errorf("%q is not an origin: it must be as https://app.example.com", origin)
	}
	return nil
}

// parsePrefixes parses addresses and networks, but not those that are wrong already, to which it adds.
func parsePrefixes(list []string, wrong elements) (out []netip.Prefix, _ elements) {
	for i, s := range list {
		if wrong[i] != nil {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if ip, ierr := netip.ParseAddr(s); ierr == nil {
			p, err = netip.PrefixFrom(ip, ip.BitLen()), nil
		}
		switch {
		case err != nil:
			wrong[i] = fmt.Errorf("%q is not an address or network, as 10.1.2.3 or 10.0.0.0/8", s)
		case p.Bits() == 0:
			wrong[i] = fmt.Errorf("%q is every address: anybody could read and send tokens without TLS", s)
		default:
			out = append(out, p.Masked())
		}
	}
	return out, wrong
}

func parseSize(s string) (int64, error) {
	n, unit := s, int64(1)
	if i := strings.IndexByte("KMGT", s[max(0, len(s)-1):][0]); s != "" && i >= 0 {
		n, unit = s[:len(s)-1], 1<<(10*(i+1))
	}
	v, err := strconv.ParseInt(n, 10, 64)
	if err != nil || v < 1 || v > (1<<50)/unit {
		return 0, fmt.Errorf("invalid size %q: it must be as 64K, 16M or 1G", s)
	}
	return v * unit, nil
}
