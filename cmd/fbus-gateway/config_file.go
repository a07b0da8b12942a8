package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fbus/bus/args"
	"fbus/bus/wire"
	"fbus/cmd/fbus-gateway/hooks"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

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
