package vectors

import (
	"net"
	"testing"
)

// TestWatch: a rule for senders that is broken in any frame is found, and none that is kept.
func TestWatch(t *testing.T) {
	empty := NewBin(nil)
	bin := func(n int) any { return map[string]any{"zero": float64(n)} }
	deep := any(1)
	for range 16 {
		deep = []any{deep}
	}
	opened := F(5, 1, "f", 0, empty, empty, 0) // of ours
	for name, c := range map[string]struct {
		ours, theirs []any
		rule         string
	}{
		"a long first frame":      {nil, []any{F(1, 1, 0, "", "", "x", []any{}, string(make([]byte, 4096)))}, "C-2-1"},
		"nested elements":         {nil, []any{F(1, 1, 0, "", "", "x", deep)}, "C-2-5"},
		"a second HELLO":          {nil, []any{F(1, 1, 0, "", "", "x"), F(1, 1, 0, "", "", "x")}, "C-3.1-4"},
		"an id that falls":        {nil, []any{Call(2, "f", 1), Call(1, "f", 1)}, "C-5.1-1"},
		"long input in CALL":      {nil, []any{F(5, 1, "f", 0, empty, bin(32769), 1)}, "C-2-7"},
		"a wide window":           {nil, []any{F(5, 1, "f", 0, empty, empty, 1, 0, 0, 0, 0, "", 1, 4194305)}, "C-5.3-2"},
		"EOF twice":               {nil, []any{Call(1, "f", 0), F(7, 1), F(7, 1)}, "C-5.2-1"},
		"EOF after flag 1":        {nil, []any{Call(1, "f", 1), F(7, 1)}, "C-5.2-1"},
		"empty DATA after EOF":    {nil, []any{Call(1, "f", 0), F(7, 1), F(6, 1, 0, empty)}, "C-5.2-2"},
		"input without credit":    {nil, []any{Call(1, "f", 0), F(6, 1, 0, bin(1))}, "C-5.3-1"},
		"grants over the window":  {nil, []any{Call(1, "f", 1), F(8, 1, 1, 4000000)}, "C-5.3-2"},
		"several grants of input": {[]any{opened}, []any{F(8, 1, 0, 4194304), F(8, 1, 0, 1)}, "C-5.3-2"},
		"output over the window":  {[]any{opened}, []any{F(6, 1, 1, bin(262144)), F(10, 1, 0, 0, "exit", "", bin(1))}, "C-5.3-1"},
		"a stream 3":              {[]any{opened}, []any{F(6, 1, 3, empty)}, "C-5.2-3"},
		"END twice":               {[]any{opened}, []any{F(10, 1, 0, 0), F(10, 1, 0, 0)}, "C-5.5-1"},
		"output after END":        {[]any{opened}, []any{F(10, 1, 0, 0), F(6, 1, 1, empty)}, "C-5.5-1"},
		"source 2 and status 0":   {[]any{opened}, []any{F(10, 1, 2, 0)}, "C-5.5-3"},
		"PROGRESS":                {[]any{F(1, 1, 1, "", "", "x"), opened}, []any{F(11, 1, 1, 2)}, "C-5.9-1"},
		"PROGRESS that is wanted": {[]any{F(1, 1, 1, "", "", "x", []any{"progress"}), opened}, []any{F(11, 1, 1, 2)}, ""},
		"a call that keeps the rules": {[]any{opened, F(8, 1, 1, 10), F(6, 1, 0, bin(5))}, []any{
			F(8, 1, 0, 4194304), F(6, 1, 1, bin(262144)), F(8, 1, 0, 5), F(10, 1, 0, 0, "exit", "", bin(10))}, ""},
		"an own call that does so": {nil, []any{Call(1, "f", 0), F(8, 1, 1, 3932160), F(6, 1, 0, empty), F(7, 1), F(8, 1, 2, 1)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if !isType(c.theirs[0], 1) {
				c.theirs = append([]any{F(1, 1, 0, "", "", "x")}, c.theirs...)
			}
			near, far := net.Pipe()
			defer near.Close()
			go func() { // ends when all was read
				other := NewConn(far)
				for range c.ours {
					other.Next()
				}
				other.Send(c.theirs...)
				far.Close()
			}()
			conn := NewConn(near)
			for _, f := range c.ours {
				conn.Send(f)
			}
			for range c.theirs {
				if _, err := conn.Next(); err != nil {
					t.Fatal(err)
				}
			}
			switch b := conn.Broken; {
			case c.rule == "" && b != nil, c.rule != "" && (b == nil || b.Rule != c.rule):
				t.Errorf("broken: %+v, not %q", b, c.rule)
			}
		})
	}
}

// TestRenameBytes: an OFFER in hexadecimal gets the suffix, and what is malformed stays as it is.
func TestRenameBytes(t *testing.T) {
	c := &Conn{Suffix: "-1"}
	offer := func(text string) any { return map[string]any{"hex": text} }
	got := c.rename(offer("0000000f9d0301a1660100a0a0a0a080009001")).(map[string]any)["hex"]
	if got != "00000013dc000d0301a3662d310100a0a0a0a080009001" {
		t.Errorf("renamed to %v", got)
	}
	for _, text := range []string{"ffffffff", "0000000f970a", "00000007ddffffffff0301", "0000000594030100a166"} {
		if got := c.rename(offer(text)).(map[string]any)["hex"]; got != text {
			t.Errorf("%s became %v", text, got)
		}
	}
}
