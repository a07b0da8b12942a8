package args

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
)

// doc marks a JSON document in a test's arguments; a string is a string.
type doc string

func pack(t testing.TB, write func(enc *msgpack.Encoder)) []byte {
	t.Helper()
	var buf bytes.Buffer
	write(msgpack.NewEncoder(&buf))
	return buf.Bytes()
}

func packValue(enc *msgpack.Encoder, v any) {
	if d, ok := v.(doc); ok {
		enc.EncodeBytes([]byte(d))
		return
	}
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
}

func list(t testing.TB, values ...any) Args {
	return Args{KindList, pack(t, func(enc *msgpack.Encoder) {
		enc.EncodeArrayLen(len(values))
		for _, v := range values {
			packValue(enc, v)
		}
	})}
}

func fields(t testing.TB, pairs ...any) Args {
	return Args{KindMap, pack(t, func(enc *msgpack.Encoder) {
		enc.EncodeMapLen(len(pairs) / 2)
		for _, v := range pairs {
			packValue(enc, v)
		}
	})}
}

func document(text string) Args { return Args{KindJSON, []byte(text)} }

func encode(a Args, e Encoding) ([]byte, error) {
	v, err := Decode(a.kind, a.data)
	if err != nil {
		return nil, err
	}
	return v.Encode(e)
}

const isBad = "\x00bad"

func TestEncodeStdin(t *testing.T) {
	tests := []struct {
		name string
		enc  Encoding
		args Args
		want string // or isBad and a part of the message
	}{
		{"json list", EncodeJSON, list(t, "a", "b\"\n\t\x01\\é<"), `["a","b\"\n\t\u0001\\é<"]` + "\n"},
		{"json empty list", EncodeJSON, list(t), "[]\n"},
		{"json map in order", EncodeJSON, fields(t, "z", "1", "a", doc("2")), `{"z":"1","a":2}` + "\n"},
		{"json empty map", EncodeJSON, fields(t), "{}\n"},
		{"json numbers verbatim", EncodeJSON, list(t, doc("1.10"), doc("1e400"), doc("12345678901234567890")), "[1.10,1e400,12345678901234567890]\n"},
		{"json document verbatim", EncodeJSON, document(`{ "a": 1.10 }`), "{ \"a\": 1.10 }\n"},
		{"json document with newline", EncodeJSON, document("[1]\n"), "[1]\n"},
		{"json duplicate key", EncodeJSON, fields(t, "a", "1", "a", "2"), isBad + `field "a" is given twice`},
		{"json no utf-8", EncodeJSON, list(t, "ok", "\xff"), isBad + "argument 2 is not UTF-8"},
		{"json bad document", EncodeJSON, document(`{"a":`), isBad + "this is not JSON"},
		{"json two documents", EncodeJSON, document(`1 2`), isBad + "this is not JSON"},
		{"json empty document", EncodeJSON, document(``), isBad + "this is not JSON"},
		{"json document no utf-8", EncodeJSON, document("\"\xff\""), isBad + "not UTF-8"},
		{"json bad value", EncodeJSON, list(t, doc("01")), isBad + "this is not JSON"},
		{"json foreign values", EncodeJSON, list(t, nil, true, -5, 300, uint64(1)<<63, 1.5, []any{"x", int8(-1)}, map[string]any{"k": nil}),
			`[null,true,-5,300,9223372036854775808,1.5,["x",-1],{"k":null}]` + "\n"},
		{"msgpack list", EncodeMsgpack, list(t, "a", "\xff", doc("-3"), doc("1.5"), doc("18446744073709551615")),
			"\x95\xa1a\xc4\x01\xff\xfd\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\xcf\xff\xff\xff\xff\xff\xff\xff\xff"},
		{"msgpack document", EncodeMsgpack, document(`{"a":[1,{"b":null}],"c":true}`), "\x82\xa1a\x92\x01\x81\xa1b\xc0\xa1c\xc3"},
		{"msgpack huge number", EncodeMsgpack, list(t, doc("1e400")), isBad + "does not fit"},
		{"msgpack big integer", EncodeMsgpack, document("123456789012345678901"), "\xcb\x44\x1a\xc5\x3a\x7e\x04\xbc\xda"},
		{"lines list", EncodeLines, list(t, "a", "", "c d\xff"), "a\n\nc d\xff\n"},
		{"lines map", EncodeLines, fields(t, "k", "v", "n", doc("1.10")), "k=v\nn=1.10\n"},
		{"lines array", EncodeLines, document(`["a\u0062",1.10,true,null]`), "ab\n1.10\ntrue\nnull\n"},
		{"lines object", EncodeLines, document(`{"b":"x","a":2}`), "b=x\na=2\n"},
		{"lines scalar", EncodeLines, document(` "x" `), "x\n"},
		{"lines nothing", EncodeLines, list(t), ""},
		{"lines newline", EncodeLines, list(t, "a\nb"), isBad + "argument 1 holds a newline"},
		{"lines newline in key", EncodeLines, fields(t, "a\n", "b"), isBad + "newline"},
		{"lines nested", EncodeLines, document(`["a",[1]]`), isBad + "argument 2 is an array"},
		{"lines nested value", EncodeLines, list(t, doc(" {}")), isBad + "argument 1 is an array"},
		{"lines key with =", EncodeLines, fields(t, "a=b", "c"), isBad + "="},
		{"lines duplicate in object", EncodeLines, document(`{"a":1,"a":2}`), isBad + "twice"},
		{"nul list", EncodeNUL, list(t, "a\nb", "c"), "a\nb\x00c\x00"},
		{"nul NUL", EncodeNUL, list(t, "a\x00b"), isBad + "NUL"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := encode(tt.args, tt.enc)
			checkBad(t, tt.want, err)
			if err == nil && string(out) != tt.want {
				t.Errorf("got %q, want %q", out, tt.want)
			}
		})
	}
}

// TestMsgpackForms holds what is written, on both sides of each limit between
// forms, against the library's encoder.
func TestMsgpackForms(t *testing.T) {
	for _, n := range []int{0, 15, 16, 31, 32, 255, 256, 65535, 65536} {
		text := strings.Repeat("x", n)
		bin := strings.Repeat("\xff", n)
		array := make([]any, n)
		var object strings.Builder
		for i := range n {
			fmt.Fprintf(&object, `,"%d":null`, i)
		}
		for name, f := range map[string]struct {
			args Args
			want func(*msgpack.Encoder)
		}{
			"str":   {document(`"` + text + `"`), func(enc *msgpack.Encoder) { enc.EncodeString(text) }},
			"array": {document("[" + strings.TrimPrefix(strings.Repeat(",null", n), ",") + "]"), func(enc *msgpack.Encoder) { enc.Encode(array) }},
			"map": {document("{" + strings.TrimPrefix(object.String(), ",") + "}"), func(enc *msgpack.Encoder) {
				enc.EncodeMapLen(n)
				for i := range n {
					enc.EncodeMulti(fmt.Sprint(i), nil)
				}
			}},
			"bin": {list(t, bin), func(enc *msgpack.Encoder) {
				enc.EncodeArrayLen(1)
				if n == 0 {
					enc.EncodeString(bin) // nothing is text as well
					return
				}
				enc.EncodeBytes([]byte(bin))
			}},
		} {
			checkMsgpack(t, fmt.Sprintf("%s of %d", name, n), f.args, pack(t, f.want))
		}
	}
	for _, n := range []int64{0, 127, 128, 255, 256, 65535, 65536, 1<<32 - 1, 1 << 32, math.MaxInt64,
		-1, -32, -33, -128, -129, -32768, -32769, math.MinInt32, math.MinInt32 - 1, math.MinInt64} {
		checkMsgpack(t, fmt.Sprint(n), document(fmt.Sprint(n)), pack(t, func(enc *msgpack.Encoder) { enc.EncodeInt(n) }))
	}
	checkMsgpack(t, "-0", document("-0"), []byte{0})
}

func checkMsgpack(t *testing.T, name string, a Args, want []byte) {
	t.Helper()
	out, err := encode(a, EncodeMsgpack)
	if err != nil {
		t.Errorf("%s: %v", name, err)
	} else if !bytes.Equal(out, want) {
		t.Errorf("%s: %d bytes that begin with % x, want %d with % x", name, len(out), out[:min(12, len(out))], len(want), want[:min(12, len(want))])
	}
}

// checkBad holds an error against a wanted string that begins with isBad.
func checkBad(t *testing.T, want string, err error) {
	t.Helper()
	part, bad := strings.CutPrefix(want, isBad)
	switch {
	case !bad && err != nil:
		t.Fatalf("unexpected error: %v", err)
	case !bad:
	case err == nil:
		t.Fatalf("no error, want one about %q", part)
	case AsError(err, "").Code != CodeBadInput || !strings.Contains(err.Error(), part):
		t.Fatalf("got %+v, want bad input about %q", err, part)
	}
}

func TestMalformedArguments(t *testing.T) {
	tests := []struct {
		name string
		kind Kind
		args string
	}{
		{"nothing", KindList, ""},
		{"array of 4 G", KindList, "\xdd\xff\xff\xff\xff"},
		{"map of 4 G", KindMap, "\xdf\xff\xff\xff\xff"},
		{"string of 4 G", KindList, "\x91\xdb\xff\xff\xff\xff"},
		{"bin of 4 G", KindList, "\x91\xc6\xff\xff\xff\xff"},
		{"map for a list", KindList, "\x80"},
		{"list for a map", KindMap, "\x90"},
		{"trailing bytes", KindList, "\x90\x00"},
		{"missing element", KindList, "\x92\x01"},
		{"deep", KindList, "\x91" + strings.Repeat("\x91", 100) + "\x01"},
		{"extension", KindList, "\x91\xd4\x01\x00"},
		{"never used code", KindList, "\x91\xc1"},
		{"key is a number", KindMap, "\x81\x01\x01"},
		{"key is bin", KindMap, "\x81\xc4\x01a\x01"},
		{"cut number", KindList, "\x91\xcf\x00"},
		{"NaN", KindList, "\x91\xcb\x7f\xf8\x00\x00\x00\x00\x00\x01"},
		{"unknown kind", Kind(9), "\x90"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decode(tt.kind, []byte(tt.args))
			checkBad(t, isBad, err)
		})
	}
}

// FuzzArguments: whatever a peer sends, every encoding takes it or refuses it
// as bad input, and JSON made of it is JSON.
func FuzzArguments(f *testing.F) {
	for _, c := range []Args{list(f, "a", doc("1.10"), nil, []any{1.5}), fields(f, "k", "v", "n", doc(`{"a":[]}`)), document(`[1,"x",{"a":null}]`)} {
		f.Add(int(c.kind), c.data)
	}
	f.Add(1, []byte("\xdd\xff\xff\xff\xff"))
	f.Add(1, bytes.Repeat([]byte{0x91}, 1000))
	f.Fuzz(func(t *testing.T, kind int, raw []byte) {
		v, err := Decode(Kind(kind), raw)
		for _, enc := range []Encoding{EncodeJSON, EncodeMsgpack, EncodeLines, EncodeNUL} {
			if err != nil {
				break
			}
			out, eerr := v.Encode(enc)
			if eerr != nil && AsError(eerr, "").Code != CodeBadInput {
				t.Errorf("%v: %v", enc, eerr)
			}
			if enc == EncodeJSON && eerr == nil && v.Kind != KindRaw {
				if err := checkJSON(out); err != nil {
					t.Errorf("%q became %q", raw, out)
				}
			}
		}
		if err != nil {
			if AsError(err, "").Code != CodeBadInput {
				t.Error(err)
			}
			return
		}
		v.Flat()
	})
}

func TestUnpaired(t *testing.T) {
	for doc, want := range map[string]bool{
		`"a"`: false, `"\u00e9"`: false, `"\\ud800"`: false, `"\ud83d\ude00"`: false, `"\ufffd"`: false, `["\n\t\\"]`: false,
		`"\ud800"`: true, `"\udc00"`: true, `"\ud800\n"`: true, `"\ud83d\ud83d\ude00"`: true, `"\ud83d\u0041"`: true, `{"a\uD800":1}`: true, `"\ude00\ud83d"`: true,
	} {
		if Unpaired([]byte(doc)) != want {
			t.Errorf("%s: %v", doc, !want)
		}
	}
}

// What is no text reaches a program as JSON, or not at all.
func TestUnpairedArguments(t *testing.T) {
	for _, doc := range []string{`["\ud800"]`, `{"a":"\ud800"}`, `{"\ud800":1}`, `"\ud800"`} {
		if out, err := encode(document(doc), EncodeJSON); err != nil || string(out) != doc+"\n" {
			t.Errorf("%s as JSON: %q, %v", doc, out, err)
		}
		for _, as := range []Encoding{EncodeLines, EncodeMsgpack} {
			_, err := encode(document(doc), as)
			if err == nil || !strings.Contains(err.Error(), "half of a surrogate pair") {
				t.Errorf("%s as %s: %v", doc, as, err)
			}
		}
	}
	if _, err := encode(fields(t, "k", doc(`"\ud800"`)), EncodeNUL); err == nil {
		t.Error("a field became text")
	}
}
