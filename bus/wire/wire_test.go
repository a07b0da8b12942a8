package wire

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"fbus/bus/args"
)

var update = flag.Bool("update", false, "write testdata/frames.jsonl anew")

const vectorFile = "../testdata/frames.jsonl"

// vector is a frame as bytes and as JSON: bin elements are hex, others as they
// are.
type vector struct {
	Name  string `json:"name"`
	Hex   string `json:"hex"`
	Frame []any  `json:"frame"`
}

// vectorJob is the id of a job.
const vectorJob = "01JC7XKQ4N8T2V5W9Y0Z3A6B7C"

// vectors covers every type, each optional part left out and given, and sizes
// around every change of encoding.
func vectors() []struct {
	name string
	f    Frame
} {
	b := func(s string) []byte { return []byte(s) }
	long := bytes.Repeat([]byte("x"), 300)
	return []struct {
		name string
		f    Frame
	}{
		{"hello of a client", &HelloFrame{Major: 1, Network: b(""), Instance: b("i-1"), Name: b("host"), Connection: b("")}},
		{"hello of a node", &HelloFrame{Major: 1, Network: b("net-1"), Instance: b("i-2"), Name: b("node"), Caps: [][]byte{b("fd"), b("zstd")}, Connection: b("x7k2q-4")}},
		{"hello of a client with fewer rights", &HelloFrame{Major: 1, Minor: 1, Network: b(""), Instance: b("i-1"), Name: b("host"), Connection: b(""), Rights: [][]byte{b("monitor"), b("call:re*")}}},
		{"error", &ErrorFrame{Code: b("protocol"), Message: b("call id 1 after 1")}},
		{"offer", &OfferFrame{Seq: 1, Name: b("wc"), Slots: 4, Flags: FlagIdempotent, Description: b("counts words"), Arguments: b("JSON on stdin")}},
		{"offer withdrawn", &OfferFrame{Seq: 300, Name: b("wc"), Description: b(""), Arguments: b("")}},
		{"offer with a note", &OfferFrame{Seq: 2, Name: b("wc"), Slots: 1, Description: b(""), Arguments: b("lines"), Note: b("wc dies before it is used: exit 1")}},
		{"offer with a schema", &OfferFrame{Seq: 3, Name: b("wc"), Slots: 1, Description: b(""), Arguments: b(""), Note: b(""), Schema: b(`{"type":"array","maxItems":1}`)}},
		{"offer of a worker with few calls at once", &OfferFrame{Seq: 5, Name: b("wc"), Slots: 1, Attributes: [][]byte{}, Behind: [][]byte{}, MaxRunning: 2}},
		{"offer with attributes", &OfferFrame{Seq: 4, Name: b("wc"), Slots: 1, Attributes: [][]byte{b("read-only"), b(""), b("x.price"), b("3")}}},
		{"relay offer", &OfferFrame{Seq: 5, Name: b("wc"), Flags: FlagRelay, Elsewhere: 300, Behind: [][]byte{b("w1"), b("#y-2")}}},
		{"relay offer with held workers", &OfferFrame{Seq: 6, Name: b("wc"), Flags: FlagRelay, Attributes: [][]byte{}, Elsewhere: 300, Behind: [][]byte{b("w1"), b("#y-2")}, Held: [][]byte{b("w1")}}},
		{"call that stays", &CallFrame{ID: 4, Name: b("wc"), Input: b("a b"), Flags: FlagInputEnd | FlagHere, WindowOutput: InitialWindow, WindowStderr: InitialWindow}},
		{"offered", &OfferedFrame{Seq: 1, Code: b(""), Message: b("")}},
		{"offered denied", &OfferedFrame{Seq: 70000, Code: b("denied"), Message: b("no")}},
		{"call raw", &CallFrame{ID: 1, Name: b("wc"), Input: b("a b"), Flags: FlagInputEnd, WaitSlot: Forever, WindowOutput: InitialWindow, WindowStderr: InitialWindow}},
		{"call list", &CallFrame{ID: 127, Name: b("greet"), Kind: args.KindList, Args: args.List("Bob").Data(), Flags: FlagInputEnd, WaitSlot: Forever, WindowOutput: InitialWindow, WindowStderr: InitialWindow}},
		{"call map", &CallFrame{ID: 128, Name: b("greet"), Kind: args.KindMap, Args: args.Fields(args.Field{Name: "n", Value: "Bob"}, args.Field{Name: "age", Value: "41", JSON: true}).Data(), Flags: FlagInputEnd, WaitSlot: Forever, WindowOutput: InitialWindow, WindowStderr: InitialWindow}},
		{"call json", &CallFrame{ID: 256, Name: b("greet"), Kind: args.KindJSON, Args: b(`{"n":1.10}`), Flags: FlagInputEnd | FlagHasInput, WaitSlot: Forever, WindowOutput: InitialWindow, WindowStderr: InitialWindow}},
		{"call with options", &CallFrame{ID: 65536, Name: b("wc"), Input: long, Timeout: 1500, WaitFunction: 10000, WaitSlot: 0, Retries: 2, On: b("gpu-*"), WindowOutput: InitialWindow, WindowStderr: InitialWindow}},
		{"call at a worker", &CallFrame{ID: 1 << 32, Name: b("wc"), Flags: FlagInputEnd, WaitSlot: Forever, WindowOutput: 65536, WindowStderr: 16384, Call: b("x7k2q-4-1"), Caller: b("uid:1000")}},
		{"call of a job", &CallFrame{ID: 3, Name: b("wc"), Input: b("a b"), Flags: FlagInputEnd, WaitSlot: Forever, WindowOutput: 65536, WindowStderr: 16384, Call: b("x7k2q-4-3"), Caller: b("uid:1000"), Job: b(vectorJob), Attempt: 1}},
		{"call of a job posted by another's end", &CallFrame{ID: 4, Name: b("note"), Flags: FlagInputEnd, WaitSlot: Forever, WindowOutput: InitialWindow, WindowStderr: InitialWindow, Call: b("x7k2q-4-4"), Caller: b("ticket:ci"), Job: b("01JC7XKQ4N8T2V5W9Y0Z3A6B7D"), Attempt: 300, Origin: b(`{"id":"` + vectorJob + `","function":"wc","status":0,"attempts":1}`)}},
		{"call with a trace", &CallFrame{ID: 5, Name: b("wc"), Flags: FlagInputEnd, WaitSlot: Forever, WindowOutput: InitialWindow, WindowStderr: InitialWindow, Trace: b("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nvendor=1")}},
		{"data input", &DataFrame{ID: 1, Stream: Input, Payload: b("hello")}},
		{"data output of 256 bytes", &DataFrame{ID: 1, Stream: Output, Payload: bytes.Repeat([]byte{0xff}, 256)}},
		{"data output of 65536 bytes", &DataFrame{ID: 1, Stream: Output, Payload: make([]byte, 65536)}},
		{"data stderr", &DataFrame{ID: 1, Stream: Stderr, Payload: []byte{0, 255}}},
		{"data empty", &DataFrame{ID: 1, Stream: Stderr, Payload: []byte{}}},
		{"eof", &EOFFrame{ID: 1}},
		{"grant", &GrantFrame{ID: 1, Stream: Output, Bytes: 131072}},
		{"cancel", &CancelFrame{ID: 1, Code: b("deadline")}},
		{"progress", &ProgressFrame{ID: 1, Done: 300, Total: 1000, Text: b("300 of 1,000 rows")}},
		{"end of a program", &EndFrame{ID: 1, Source: args.FromProgram, Code: b("exit"), Message: b(""), Output: b("2\n")}},
		{"end by a signal", &EndFrame{ID: 1, Source: args.FromSignal, Status: 137, Code: b("SIGKILL"), Message: b(""), Output: []byte{}}},
		{"end by fbus, from a node", &EndFrame{ID: 1, Source: args.FromBus, Status: 75, Code: b("busy"), Message: b("wc: no slot is free"), Output: []byte{}, Call: b("x7k2q-4-1"), Worker: b("gpu-1")}},
	}
}

// TestCodesAreOnThePage: PROTOCOL.md, section 7, has each code that a peer can be
// told, with the status that the commands give it.
func TestCodesAreOnThePage(t *testing.T) {
	page, err := os.ReadFile("../PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## 7. ")
	section, _, _ = strings.Cut(section, "\n## ")
	found := map[string]int{}
	for _, row := range regexp.MustCompile(`(?m)^\| ([a-z_, ]+) \| (\d+) \| ([A-Z0-9 ]+) \|`).FindAllStringSubmatch(section, -1) {
		status, _ := strconv.Atoi(row[2])
		for code := range strings.SplitSeq(row[1], ", ") {
			if of := slices.Contains(strings.Fields(row[3]), "W"); of != (args.OfWorker(code) == code) {
				t.Errorf("%s: on the page a worker may send it: %v", code, of)
			}
			if _, twice := found[code]; twice {
				t.Errorf("%s stands there twice", code)
			}
			found[code] = status
		}
	}
	// Said by this side alone, about what it has found: no peer is told.
	here := []string{
		args.CodeNotOurs, args.CodeForeign, args.CodeAmbiguous,
		args.CodePlainText, args.CodeHTTP, args.CodeNotFbus, args.CodeReset, args.CodeTimeout, args.CodeBadTicket, args.CodeClock,
	}
	for _, file := range []string{"../args/error.go", "../args/codes.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		codes := regexp.MustCompile(`(?m)^\tCode\w+ += "(\w+)"`).FindAllStringSubmatch(string(source), -1)
		if len(codes) < 15 {
			t.Errorf("%s: %d codes", file, len(codes))
		}
		for _, m := range codes {
			status, ok := found[m[1]]
			if slices.Contains(here, m[1]) == ok {
				t.Errorf("%s of %s: on the page is %v", m[1], file, ok)
			}
			// Those without a status of their own have it from the END that they come in.
			if known := slices.Contains(args.Codes(), m[1]); ok && known && status != args.StatusOf(m[1]) {
				t.Errorf("%s: status %d on the page, and %d here", m[1], status, args.StatusOf(m[1]))
			}
		}
	}
}

// elements lists a frame's elements for JSON, in the order of the wire.
func elements(f Frame) []any {
	list := []any{float64(TypeOf(f))}
	v := reflect.ValueOf(f).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		switch x := v.Field(i).Interface().(type) {
		case []byte:
			if name == "Args" || name == "Input" || name == "Payload" || name == "Output" {
				list = append(list, map[string]any{"bin": hex.EncodeToString(x)})
			} else {
				list = append(list, string(x))
			}
		case [][]byte:
			caps := []any{}
			for _, c := range x {
				caps = append(caps, string(c))
			}
			list = append(list, caps)
		default:
			list = append(list, float64(reflect.ValueOf(x).Convert(reflect.TypeFor[uint64]()).Uint()))
		}
	}
	_, arity := f.shape()
	return list[:arity]
}

func TestVectors(t *testing.T) {
	if *update {
		var out bytes.Buffer
		for _, v := range vectors() {
			line, _ := json.Marshal(vector{v.name, hex.EncodeToString(Append(nil, v.f)), elements(v.f)})
			out.Write(append(line, '\n'))
		}
		if err := os.WriteFile(vectorFile, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Open(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	want := vectors()
	scan := bufio.NewScanner(file)
	scan.Buffer(nil, 1<<20)
	for i := 0; ; i++ {
		if !scan.Scan() {
			if i != len(want) {
				t.Fatalf("%d vectors in the file, %d here", i, len(want))
			}
			break
		}
		var v vector
		if err := json.Unmarshal(scan.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		raw, _ := hex.DecodeString(v.Hex)
		if got := Append(nil, want[i].f); !bytes.Equal(got, raw) {
			t.Errorf("%s: encoded as\n%x, the vector has\n%x", v.Name, got, raw)
		}
		if got := elements(want[i].f); !reflect.DeepEqual(got, v.Frame) {
			t.Errorf("%s: elements %v, the vector has %v", v.Name, got, v.Frame)
		}
		if got, err := new(Decoder).Decode(raw[4:]); err != nil {
			t.Errorf("%s: %v", v.Name, err)
		} else if !bytes.Equal(Append(nil, got), raw) {
			t.Errorf("%s: decoded as %+v", v.Name, got)
		}
	}
}

// TestWireNumbers pins what other programs have been told.
func TestWireNumbers(t *testing.T) {
	for want, got := range map[int]Type{1: TypeHello, 2: TypeError, 3: TypeOffer, 4: TypeOffered, 5: TypeCall, 6: TypeData, 7: TypeEOF, 8: TypeGrant, 9: TypeCancel, 10: TypeEnd, 11: TypeProgress} {
		if int(got) != want {
			t.Errorf("type %d, want %d", got, want)
		}
	}
	for name, pair := range map[string][2]int{
		"MaxFrame": {MaxFrame, 1048576}, "MaxHelloFrame": {MaxHelloFrame, 4096}, "MaxInlineInput": {MaxInlineInput, 32768},
		"MaxArgs": {MaxArgs, 1011712}, "MaxText": {MaxText, 4096}, "MaxSchema": {MaxSchema, 65536}, "InitialWindow": {InitialWindow, 262144}, "MaxWindow": {MaxWindow, 4 << 20},
		"Forever": {Forever, 4294967295}, "kinds": {int(args.KindRaw)*1000 + int(args.KindList)*100 + int(args.KindMap)*10 + int(args.KindJSON), 123},
		"streams": {int(Input)*100 + int(Output)*10 + int(Stderr), 12}, "sources": {int(args.FromProgram)*100 + int(args.FromSignal)*10 + int(args.FromBus), 12},
		"flags": {FlagInputEnd*100 + FlagHasInput*10 + FlagHere, 124}, "flags of offers": {FlagIdempotent*100 + FlagCannotStart*10 + FlagNotFound + 1000*FlagTakesInput + 10000*FlagTakesArgs + 100000*FlagRelay, 3368124}, "major": {Major, 1},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %d, want %d", name, pair[0], pair[1])
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	deep := append([]byte{0x93, 7, 1}, bytes.Repeat([]byte{0x91}, 20)...)
	for name, body := range map[string][]byte{
		"nothing":                 {},
		"no array":                {0x07},
		"nil":                     {0xc0},
		"a map":                   {0x81, 7, 1},
		"too few elements":        {0x91, 7},
		"array of 4 billion":      {0xdd, 0xff, 0xff, 0xff, 0xff, 7, 1},
		"bin of 4 billion":        {0x94, 6, 1, 1, 0xc6, 0xff, 0xff, 0xff, 0xff},
		"str of 4 billion":        {0x93, 9, 1, 0xdb, 0xff, 0xff, 0xff, 0xff},
		"negative id":             {0x92, 7, 0xff},
		"negative int64":          {0x92, 7, 0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0},
		"id over 2^63":            {0x92, 7, 0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"float id":                {0x92, 7, 0xca, 0, 0, 0, 0},
		"string id":               {0x92, 7, 0xa1, '1'},
		"stream 3":                {0x94, 6, 1, 3, 0xc4, 0},
		"grant over the limit":    {0x94, 8, 1, 1, 0xce, 0, 0x40, 0, 1},
		"status 256":              {0x94, 10, 1, 0, 0xcd, 1, 0},
		"source 3":                {0x94, 10, 1, 3, 0},
		"signal, status 0":        {0x94, 10, 1, 1, 0},
		"fbus, status 0":          {0x94, 10, 1, 2, 0},
		"bytes left over":         {0x92, 7, 1, 0},
		"extra element cut short": {0x93, 7, 1, 0xcd, 1},
		"extra map of 4 billion":  {0x93, 7, 1, 0xdf, 0xff, 0xff, 0xff, 0xff},
		"extra ext over the end":  {0x93, 7, 1, 0xc7, 200, 1},
		"extra 0xc1":              {0x93, 7, 1, 0xc1},
		"extra too deep":          deep,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := new(Decoder).Decode(body)
			if !errors.Is(err, args.ErrMalformed) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestDecodeSkips(t *testing.T) {
	extras := []byte{0xdc, 0, 9, 7, 5, 0xc0, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0x82, 1, 2, 3, 0x93, 1, 2, 0xd4, 1, 2, 0xd9, 1, 'x', 0xc7, 1, 5, 9, 0xff, 0xc3}
	f, err := new(Decoder).Decode(extras)
	if eof, ok := f.(*EOFFrame); err != nil || !ok || eof.ID != 5 {
		t.Errorf("%+v, error %v", f, err)
	}
	for _, unknown := range [][]byte{{0x92, 99, 0xc0}, {0x92, 0, 0xc0}} {
		if f, err := new(Decoder).Decode(unknown); f != nil || err != nil {
			t.Errorf("unknown type: %v, error %v", f, err)
		}
	}
}

// TestSession holds the worked session of PROTOCOL.md against the code.
func TestSession(t *testing.T) {
	page, err := os.ReadFile("../PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, session, ok := strings.Cut(string(page), "## 10. A session in hex")
	session, _, _ = strings.Cut(session, "\n## ")
	if !ok {
		t.Fatal("no session in PROTOCOL.md")
	}
	frames := 0
	for line := range strings.SplitSeq(session, "\n") {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "> ") && !strings.HasPrefix(line, "< ") {
			continue
		}
		raw, err := hex.DecodeString(strings.ReplaceAll(line[2:], " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		f, err := new(Decoder).Decode(raw[4:])
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if got := Append(nil, f); !bytes.Equal(got, raw) {
			t.Errorf("%s: encodes as % x", line, got)
		}
		frames++
	}
	if frames < 8 {
		t.Errorf("only %d frames in the session", frames)
	}
}

// TestFrameAllocatesNothing: neither a plain call nor one with all that a node says
// of a job.
func TestFrameAllocatesNothing(t *testing.T) {
	for _, v := range vectors() {
		call, ok := v.f.(*CallFrame)
		if !ok {
			continue
		}
		raw := Append(nil, call)
		buf, d := make([]byte, 0, 2*len(raw)), &Decoder{}
		if n := testing.AllocsPerRun(100, func() {
			buf = Append(buf[:0], call)
			if _, err := d.Decode(buf[4:]); err != nil {
				t.Error(err)
			}
		}); n > 0 {
			t.Errorf("%s: %v allocations", v.name, n)
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	call := &CallFrame{ID: 1000, Name: []byte("echo"), Kind: args.KindList, Args: args.List(strings.Repeat("x", 64)).Data(), Flags: FlagInputEnd, WaitSlot: Forever, WindowOutput: InitialWindow, WindowStderr: InitialWindow}
	raw := Append(nil, call)
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		buf := make([]byte, 0, 256)
		for b.Loop() {
			buf = Append(buf[:0], call)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		var d Decoder
		for b.Loop() {
			if _, err := d.Decode(raw[4:]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, v := range vectors() {
		f.Add(Append(nil, v.f)[4:])
	}
	for kind, l := range layouts { // each element once as the last one
		elements := strings.Split(l.elements, ", ")
		for n := max(l.least, 2); n <= len(elements)+1 && l.make != nil; n++ {
			body := []byte{0xdc, 0, byte(n), byte(kind)}
			for _, element := range elements[:n-1] {
				_, of, _ := strings.Cut(element, " ")
				body = append(body, map[string]string{"uint": "\x01", "str": "\xa1x", "bin": "\xc4\x01x", "array": "\x91\xa1x", "map": "\x81\xa1x\xa1y"}[of]...)
			}
			if _, err := new(Decoder).Decode(body); err != nil {
				f.Errorf("%s: %v", l.name, err)
			}
			f.Add(body)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		frame, err := new(Decoder).Decode(body)
		if err != nil || frame == nil {
			return
		}
		// What was understood survives being written and read again.
		raw := Append(nil, frame)
		again, err := new(Decoder).Decode(raw[4:])
		if err != nil {
			t.Fatalf("%x: %v", body, err)
		}
		if !bytes.Equal(Append(nil, again), raw) {
			t.Fatalf("%x: %+v, then %+v", body, frame, again)
		}
	})
}

// TestMalformedElements: an error about a frame names the frame and the element.
func TestMalformedElements(t *testing.T) {
	nothing := []byte{0xc0}
	for want, body := range map[string][]byte{
		"CALL: 6 elements, at least 7 expected":                                           {0x96, 5, 1, 0xa1, 'f', 0, 0xc4, 0, 0xc4, 0},
		"EOF: 1 elements, at least 2 expected":                                            {0x91, 7},
		"CALL element 4 (args): nil, bin expected":                                        {0x97, 5, 1, 0xa1, 'f', 0, 0xc0, 0xc4, 0, 1},
		"CALL element 2 (name): integer, str expected":                                    {0x97, 5, 1, 7, 0, 0xc4, 0, 0xc4, 0, 1},
		"CALL element 1 (id): negative integer":                                           {0x97, 5, 0xd0, 0xff, 0xa1, 'f', 0, 0xc4, 0, 0xc4, 0, 1},
		"CALL element 3 (kind): uint 4 exceeds the limit of 3":                            {0x97, 5, 1, 0xa1, 'f', 4, 0xc4, 0, 0xc4, 0, 1},
		"CALL element 11 (on): array, str expected":                                       {0x9c, 5, 1, 0xa1, 'f', 0, 0xc4, 0, 0xc4, 0, 1, 0, 0, 0, 0, 0x90},
		"EOF element 1 (id): float, uint expected":                                        {0x92, 7, 0xca, 0, 0, 0, 0},
		"EOF element 1 (id): uint 9007199254740992 exceeds the limit of 9007199254740991": {0x92, 7, 0xcf, 0, 0x20, 0, 0, 0, 0, 0, 0},
		"GRANT element 3 (bytes): uint 4194305 exceeds the limit of 4194304":              {0x94, 8, 1, 1, 0xce, 0, 0x40, 0, 1},
		"DATA element 3 (bytes): element of 5 bytes with 1 left":                          {0x94, 6, 1, 0, 0xc4, 5, 'x'},
		"HELLO element 6 (capabilities): integer, array expected":                         {0x97, 1, 1, 0, 0xa0, 0xa0, 0xa0, 1},
		"HELLO element 6 (capabilities): nil, str or bin expected":                        {0x97, 1, 1, 0, 0xa0, 0xa0, 0xa0, 0x91, 0xc0},
		"EOF: 1 bytes after the last element":                                             {0x92, 7, 1, 0},
		"EOF: 0xc1 is not msgpack":                                                        {0x93, 7, 1, 0xc1},
		"nil, array expected":                                                             nothing,
		"boolean, uint expected":                                                          {0x91, 0xc3},
		"ends early":                                                                      {},
	} {
		_, err := new(Decoder).Decode(body)
		if !errors.Is(err, args.ErrMalformed) || err.Error() != "malformed frame: "+want {
			t.Errorf("%x: %v; want %s", body, err, want)
		}
	}
}

// TestLayouts: the names of the elements are those that the decoders read.
func TestLayouts(t *testing.T) {
	for kind, l := range layouts {
		if l.make == nil {
			continue
		}
		f := l.make()
		most := reflect.TypeOf(f).Elem().NumField()
		elements := strings.Split(l.elements, ", ")
		if len(elements) != most || int(TypeOf(f)) != kind || l.least > most+1 {
			t.Errorf("%s: %d elements of type %d, at least %d; the frame has %d of type %d", l.name, len(elements), kind, l.least, most, TypeOf(f))
		}
		for i, element := range elements {
			want := map[string]string{"str": "[]uint8", "bin": "[]uint8", "uint": "uint", "array": "[][]uint8", "map": "[][]uint8"}
			name, of, _ := strings.Cut(element, " ")
			if field := reflect.TypeOf(f).Elem().Field(i); !strings.HasPrefix(field.Type.String(), want[of]) && field.Type.Kind() != reflect.Uint8 {
				t.Errorf("%s: element %s is %s, the frame has %s %s", l.name, name, of, field.Name, field.Type)
			}
		}
	}
}

// TestLayoutsAreOnThePage: PROTOCOL.md has the number, the name and the least number of elements of each
// frame in its table, and the elements where it describes the frame.
func TestLayoutsAreOnThePage(t *testing.T) {
	text, err := os.ReadFile("../PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for kind, l := range layouts {
		if l.make == nil {
			continue
		}
		if row := fmt.Sprintf(`(?m)^\| %d \| %s \| [^|]+ \| %d \| `, kind, l.name, l.least); !regexp.MustCompile(row).MatchString(page) {
			t.Errorf("no row %s", row)
		}
		_, list, _ := strings.Cut(page, fmt.Sprintf("\n    [%d, ", kind))
		list, _, _ = strings.Cut(list, "\n\n")
		list, _, _ = strings.Cut(list, "\n    [") // DATA and EOF stand together
		least := 1
		var got []string
		for i, part := range strings.Split(list, "[") {
			for element := range strings.SplitSeq(strings.Trim(part, ", ]\n"), ",") {
				got = append(got, strings.Trim(element, " ]\n"))
			}
			if i == 0 {
				least += len(got)
			}
		}
		var want []string
		for element := range strings.SplitSeq(l.elements, ", ") {
			name, _, _ := strings.Cut(element, " ")
			want = append(want, name)
		}
		for i := range got {
			got[i], _, _ = strings.Cut(got[i], " ")
		}
		if !slices.Equal(got, want) || least != l.least {
			t.Errorf("%s: %q, at least %d; here %q, at least %d", l.name, got, least, want, l.least)
		}
	}
}

// TestNotOpen: a frame in the wrong direction is told from one for a call that was never opened.
func TestNotOpen(t *testing.T) {
	for want, f := range map[string]Frame{
		"GRANT of stream 0 for call 1: stream 0 is granted by the acceptor, and you opened it": &GrantFrame{ID: 1},
		"GRANT of stream 1 for call 1: stream 1 is granted by the opener, and you accepted it": &GrantFrame{ID: 1, Stream: Output},
		"DATA of stream 0 for call 1: stream 0 is sent by the opener, and you accepted it":     &DataFrame{ID: 1},
		"DATA of stream 2 for call 1: stream 2 is sent by the acceptor, and you opened it":     &DataFrame{ID: 1, Stream: Stderr},
		"EOF for call 1: EOF is sent by the opener, and you accepted it":                       &EOFFrame{ID: 1},
		"CANCEL for call 1: CANCEL is sent by the opener, and you accepted it":                 &CancelFrame{ID: 1},
		"END for call 1: END is sent by the acceptor, and you opened it":                       &EndFrame{ID: 1},
	} {
		if got := NotOpen(f, 1, true).Error(); got != want {
			t.Errorf("%s; want %s", got, want)
		}
	}
	if got := NotOpen(&EOFFrame{}, 9, false).Error(); got != "EOF for call 9, which was never opened" {
		t.Error(got)
	}
}
