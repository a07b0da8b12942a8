package wire

import (
	"path"
	"strings"
	"testing"
	"time"
)

// FuzzOn: a compiled glob matches what path.Match does.
func FuzzOn(f *testing.F) {
	for _, glob := range []string{"*", "a*", "*a", "a*b*c", "?*", "[a-c]*d", `\**`, "*é?", "[^x]", "a**b", "*[*]*", "é*[é-ü]"} {
		for _, name := range []string{"", "a", "abc", "axbxc", "ab", "*", "éa", "xaybzc", "a/b", "\xff", "aé"} {
			f.Add(glob, name)
		}
	}
	f.Fuzz(func(t *testing.T, glob, name string) {
		if strings.HasPrefix(glob, "#") || !strings.ContainsAny(glob, `*?[\`) {
			return
		}
		want, bad := path.Match(glob, name)
		on, err := ParseOn(glob)
		if err != nil {
			if _, bad := path.Match(glob, ""); bad == nil && len(glob) <= MaxGlob {
				t.Fatalf("%q: %v", glob, err)
			}
			return
		}
		if got := on.Match(name, ""); bad == nil && got != want {
			t.Errorf("%q matches %q: %v, not %v", glob, name, got, want)
		}
	})
}

// TestOnIsCheap: no glob of the greatest length takes long for any name.
func TestOnIsCheap(t *testing.T) {
	name := strings.Repeat("a", 128)
	for _, glob := range []string{
		strings.Repeat("*a", 128), strings.Repeat("a*", 100) + "b", "*" + strings.Repeat("a", 127) + "b*", "*" + strings.Repeat("[ab]", 60) + "c*", strings.Repeat("*?", 127) + "b",
	} {
		on, err := ParseOn(glob)
		if err != nil {
			t.Fatal(err)
		}
		best := time.Hour
		for range 20 {
			began := time.Now()
			on.Match(name, "")
			best = min(best, time.Since(began))
		}
		if best > time.Millisecond {
			t.Errorf("%.20s… takes %v", glob, best)
		}
	}
	if _, err := ParseOn(strings.Repeat("*", MaxGlob+1)); err == nil {
		t.Error("a longer glob is accepted")
	}
}
