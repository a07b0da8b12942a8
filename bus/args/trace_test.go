package args

import (
	"strings"
	"testing"
)

func TestTrace(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, tc := range []struct{ parent, state, want string }{
		{parent, "", parent},
		{parent, "a=1,b=2", parent + "\na=1,b=2"},
		{"cc-" + parent[3:] + "-more", "", "cc-" + parent[3:] + "-more"},
		{parent, "a=\n", parent},
		{parent, strings.Repeat("x", 513), parent},
		{"", "a=1", ""},
		{"ff" + parent[2:], "", ""},
		{strings.ToUpper(parent), "", ""},
		{parent + "\n", "", ""},
		{parent[:54], "", ""},
		{"00-00000000000000000000000000000000-b7ad6b7169203331-01", "", ""},
		{"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", "", ""},
		{parent + "-" + strings.Repeat("x", 512), "", ""},
	} {
		got := Trace(tc.parent, tc.state)
		if got != tc.want {
			t.Errorf("%q %q: %q, not %q", tc.parent, tc.state, got, tc.want)
		}
		if p, s := SplitTrace(got); p+strings.Repeat("\n", min(len(s), 1))+s != got {
			t.Errorf("%q is split into %q and %q", got, p, s)
		}
	}
}
