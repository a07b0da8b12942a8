package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"
	"fbus/cmd/fbus-gateway/hooks"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
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

// fault is something wrong with a setting.
type fault struct {
	line, column  int // in the file; 0: a flag
	key           string
	message, hint string
}

// faults are all that is wrong with a file and the flags.
type faults struct {
	path string            // of the file
	at   map[string][2]int // places of its keys: see positions
	list []fault
}

func (f *faults) add(at [2]int, key, format string, a ...any) {
	f.list = append(f.list, fault{line: at[0], column: at[1], key: key, message: fmt.Sprintf(format, a...)})
}

// refuse adds what is wrong with the value of a key, or an element of it, wherever that was set. An element of
// -1 is all of it.
func (f *faults) refuse(key string, element int, err *args.Error) {
	at, inFile := f.at[key]
	if !inFile {
		f.list = append(f.list, fault{key: key, message: "--" + key + ": " + err.Error(), hint: err.Hint})
		return
	}
	if p, ok := f.at[elementKey(key, element)]; ok {
		at = p
	}
	f.list = append(f.list, fault{at[0], at[1], key, key + ": " + err.Error(), err.Hint})
}

// has reports whether something is wrong with a key.
func (f *faults) has(keys ...string) bool {
	return slices.ContainsFunc(f.list, func(x fault) bool { return slices.Contains(keys, x.key) })
}

// flag has a flag replace what the file says.
func (f *faults) flag(key string) {
	delete(f.at, key)
	f.list = slices.DeleteFunc(f.list, func(x fault) bool { return x.key == key })
}

// err returns the faults as one error, a line each, nil if there are none.
func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	slices.SortStableFunc(f.list, func(a, b fault) int { return cmp.Or(a.line-b.line, a.column-b.column) })
	return f
}

func (f *faults) Error() string { return strings.Join(f.lines(), "; ") }

func (f *faults) lines() (lines []string) {
	for _, x := range f.list {
		if x.line > 0 {
			x.message = fmt.Sprintf("%s:%d:%d: %s", f.path, x.line, x.column, x.message)
		}
		lines = append(lines, x.message)
		if x.hint != "" {
			lines = append(lines, "hint: "+x.hint)
		}
	}
	return lines
}

// read reads gateway.toml into c, and returns all that is wrong with it. The error is that it cannot be read.
func (c *config) read(path string) (wrong *faults, err error) {
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s must be a regular file", path)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "%v", err)
	}
	wrong = &faults{path: path}
	data = args.WithoutBOM(data)
	doc := map[string]any{}
	if err := toml.Unmarshal(data, &doc); err != nil {
		at := [2]int{1, 1}
		if e, ok := errors.AsType[*toml.DecodeError](err); ok {
			at[0], at[1] = e.Position()
		}
		wrong.add(at, "", "%s", strings.TrimPrefix(err.Error(), "toml: "))
		return nil, wrong
	}
	at := positions(data)
	wrong.at = at
	where := func(key []string) [2]int {
		for ; len(key) > 0; key = key[:len(key)-1] {
			if p, ok := at[strings.Join(key, "\x00")]; ok {
				return p
			}
		}
		return [2]int{1, 1}
	}
	base, err := filepath.Abs(filepath.Dir(path))
	in := func(path string) string {
		if path == "" || filepath.IsAbs(path) || err != nil {
			return path
		}
		return filepath.Join(base, path)
	}
	readTables(doc, "hooks", c.Hooks, where, wrong, func(_ string, h *hooks.Config) []hooks.Fault {
		h.SecretFile = in(h.SecretFile)
		return h.Check()
	})
	readTables(doc, "send", c.Send, where, wrong, func(name string, s *hooks.Send) []hooks.Fault {
		s.SecretFile = in(s.SecretFile)
		return s.Check(name)
	})
	c.readTable(doc, nil, where, wrong)
	for _, p := range []*string{&c.Socket, &c.TLSCert, &c.TLSKey, &c.AccessLog} {
		*p = in(*p)
	}
	for key, path := range map[string]string{"tls-cert": c.TLSCert, "tls-key": c.TLSKey} {
		if _, ok := doc[key].(string); ok && path != "" {
			if st, err := os.Stat(path); err != nil {
				wrong.add(where([]string{key}), key, "%s: %s", key, args.Plain(err))
			} else if !st.Mode().IsRegular() {
				wrong.add(where([]string{key}), key, "%s: it must be a regular file", key)
			}
		}
	}
	for name, t := range c.Tokens {
		for to, all := range map[*int]int{&t.Calls: c.Limits.Calls, &t.Streams: c.Limits.Streams, &t.PerMinute: c.Limits.PerMinute} {
			if *to < 0 {
				*to = all
			}
		}
		c.Tokens[name] = t
	}
	return wrong, nil
}

// readTable takes the keys of a table.
func (c *config) readTable(table map[string]any, above []string, where func(key []string) [2]int, wrong *faults) {
	for name, v := range table {
		key := append(slices.Clone(above), name)
		set, words := settingOf(key)
		inner, isTable := v.(map[string]any)
		switch {
		case set != nil:
			dotted, list := strings.Join(key, "."), elements(nil)
			if err := set(c, words, v); errors.As(err, &list) {
				for i, err := range list {
					wrong.add(where(append(slices.Clone(key), elementName(i))), dotted, "%s: %s", dotted, args.Plain(err))
				}
			} else if err != nil {
				wrong.add(where(key), dotted, "%s: %s", dotted, args.Plain(err))
			}
		case isTable && isPrefix(key):
			c.readTable(inner, key, where, wrong)
		default:
			wrong.add(where(key), "", "%s: unknown key", strings.Join(key, "."))
		}
	}
}

// readTables takes the tables KIND.NAME out of a document.
func readTables[T any](doc map[string]any, kind string, into map[string]T, where func(key []string) [2]int, wrong *faults, check func(name string, t *T) []hooks.Fault) {
	add := func(message string, key ...string) {
		key = append([]string{kind}, key...)
		wrong.add(where(key), "", "%s: %s", strings.Join(key, "."), message)
	}
	all, ok := doc[kind]
	if !ok {
		return
	}
	delete(doc, kind)
	tables, ok := all.(map[string]any)
	if !ok {
		add("it must be tables [" + kind + ".NAME]")
	}
	for name, v := range tables {
		table, ok := v.(map[string]any)
		if !ok {
			add("it must be a table", name)
			continue
		}
		var t T
		var bad []string // keys whose values have a wrong type
		for key, v := range table {
			if err := setField(&t, key, v); err != nil {
				add(err.Error(), name, key)
				bad = append(bad, key)
			}
		}
		for _, f := range check(name, &t) {
			missing, _, _ := strings.Cut(f.Message, " is ")
			if f.Key == "" && slices.ContainsFunc(strings.Fields(missing), func(key string) bool { return slices.Contains(bad, key) }) {
				continue // it is there
			}
			message := f.Message
			if f.Hint != "" {
				message += " (" + f.Hint + ")"
			}
			key := []string{name}
			if f.Key != "" {
				key = append(key, f.Key)
			}
			add(message, key...)
		}
		into[name] = t
	}
}

// setField sets the field of a struct that has that key.
func setField(to any, key string, v any) (err error) {
	s := reflect.ValueOf(to).Elem()
	for i := range s.NumField() {
		if s.Type().Field(i).Tag.Get("toml") != key {
			continue
		}
		switch field := s.Field(i).Addr().Interface().(type) {
		case *string:
			*field, err = as[string](v, "a string")
		case *[]string:
			if _, err = as[[]any](v, "a list of strings"); err == nil {
				list, wrong := asWords(v)
				if *field = list; len(wrong) > 0 {
					err = errors.New("it must be a list of strings")
				}
			}
		case *any:
			*field = v
		}
		return err
	}
	return errUnknown
}

// settingOf returns the setting for a key, and the words that its pattern leaves open.
func settingOf(key []string) (setting, []string) {
	for pattern, set := range settings {
		parts := strings.Split(pattern, ".")
		if words, ok := matches(parts, key); ok && len(parts) == len(key) {
			return set, words
		}
	}
	return nil, nil
}

// isPrefix reports whether a key has further ones below it.
func isPrefix(key []string) bool {
	for pattern := range settings {
		if parts := strings.Split(pattern, "."); len(parts) > len(key) {
			if _, ok := matches(parts[:len(key)], key); ok {
				return true
			}
		}
	}
	return false
}

func matches(parts, key []string) (open []string, ok bool) {
	for i := range min(len(parts), len(key)) {
		if parts[i] == "*" {
			open = append(open, key[i])
		} else if parts[i] != key[i] {
			return nil, false
		}
	}
	return open, true
}

// elementName stands for an element of a list below its key.
func elementName(i int) string { return "#" + strconv.Itoa(i) }

func elementKey(key string, i int) string { return key + "\x00" + elementName(i) }

// positions returns where each key of a document is, and each element of a list: the decoder knows that only of
// some faults.
func positions(data []byte) map[string][2]int {
	at := map[string][2]int{}
	var p unstable.Parser
	p.Reset(data)
	add := func(above []string, parts unstable.Iterator) []string {
		key := slices.Clone(above)
		for parts.Next() {
			key = append(key, string(parts.Node().Data))
			start := p.Shape(parts.Node().Raw).Start
			if joined := strings.Join(key, "\x00"); at[joined] == ([2]int{}) {
				at[joined] = [2]int{start.Line, start.Column}
			}
		}
		return key
	}
	var set func(above []string, kv *unstable.Node)
	set = func(above []string, kv *unstable.Node) {
		key := add(above, kv.Key())
		if v := kv.Value(); v.Kind == unstable.InlineTable {
			for inner := v.Children(); inner.Next(); {
				set(key, inner.Node())
			}
		} else if v.Kind == unstable.Array {
			i := 0
			for inner := v.Children(); inner.Next(); i++ {
				if raw := inner.Node().Raw; raw.Length > 0 {
					start := p.Shape(raw).Start
					at[elementKey(strings.Join(key, "\x00"), i)] = [2]int{start.Line, start.Column}
				}
			}
		}
	}
	var table []string
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = add(nil, e.Key())
		case unstable.KeyValue:
			set(table, e)
		}
	}
	return at
}

// check refuses what would let in anybody, or tell others what is sent, and what cannot work.
func (c *config) check(wrong *faults) {
	usage := func(format string, a ...any) *args.Error { return args.Errorf(args.CodeUsage, format, a...) }
	if c.Drain < 0 {
		wrong.refuse("drain", -1, usage("it must not be negative"))
	}
	pair := [2]string{"tls-cert", "tls-key"}
	secure := c.TLSCert != "" || wrong.has(pair[:]...)
	switch {
	case wrong.has(pair[:]...):
	case c.TLSCert != "" && c.TLSKey == "":
		wrong.refuse(pair[0], -1, usage("it needs tls-key"))
	case c.TLSCert == "" && c.TLSKey != "":
		wrong.refuse(pair[1], -1, usage("it needs tls-cert"))
		secure = true
	case c.TLSCert != "":
		if _, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey); err != nil {
			wrong.refuse(pair[0], -1, usage("it cannot be used with tls-key: %s", strings.TrimPrefix(args.Plain(err), "tls: ")))
		}
	}
	behind := len(c.Proxies) > 0 || wrong.has("behind-proxy")
	invalid := wrong.has("listen")
	for i, addr := range c.Listen {
		if err := checkListen(addr); err != nil {
			if !invalid { // the file's have been checked
				wrong.refuse("listen", i, args.AsError(err, args.CodeUsage))
			}
			continue
		}
		switch host, _, _ := net.SplitHostPort(addr); {
		case isLoopback(strings.ToLower(host)):
		case c.NoAuth:
			wrong.refuse("no-auth", -1, usage("%s is not an address of this machine alone", addr).WithHint("--listen %s", defaultListen))
		case !secure && !behind:
			wrong.refuse("listen", i, usage("%s: other machines could read the tokens", addr).
				WithHint("--tls-cert FILE --tls-key FILE, or --behind-proxy ADDR, that of a proxy with TLS"))
		}
	}
	if c.NoAuth && behind {
		wrong.refuse("no-auth", -1, usage("no-auth and behind-proxy exclude each other: anybody could use the proxy"))
	}
	for key, path := range map[string]string{"socket": c.Socket, "access-log": c.AccessLog} {
		if path == "" || filepath.Base(path) == "none" || wrong.has(key) {
			continue // the default's directory is made
		}
		if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
			wrong.refuse(key, -1, usage("%s: its directory does not exist", args.Shown(path)))
		}
	}
	if err := wire.CheckPath(c.Socket); err != nil && c.Socket != "" {
		wrong.refuse("socket", -1, usage("%s", args.Plain(err)))
	}
}
