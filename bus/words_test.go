package bus_test

import (
	"slices"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
)

// TestWords: a JSON string among the arguments is the string that it stands for.
func TestWords(t *testing.T) {
	for _, tc := range []struct {
		kind args.Kind
		args []byte
		want []string
		bad  bool
	}{
		{args.KindRaw, nil, nil, false},
		{args.KindList, args.List("a", "\xff b", "").Data(), []string{"a", "\xff b", ""}, false},
		{args.KindList, []byte{0x91, 0xc4, 4, '"', 'w', 'c', '"'}, []string{"wc"}, false},
		{args.KindList, []byte{0x91, 0xc4, 1, '7'}, nil, true},
		{args.KindList, []byte{0x91, 0x07}, nil, true},
		{args.KindList, []byte{0x91, 0xc1}, nil, true},
		{args.KindJSON, []byte(`["a"]`), []string{"a"}, false},
		{args.KindJSON, []byte(`"a"`), nil, true},
		{args.KindMap, args.Fields(args.Field{Name: "a", Value: "b"}).Data(), nil, true},
	} {
		inv := bus.Invocation{Kind: tc.kind, Args: tc.args}
		got, err := inv.Words()
		if !slices.Equal(got, tc.want) || (err != nil) != tc.bad {
			t.Errorf("%x: %q, %v", tc.args, got, err)
		}
	}
}
