package fanout

import "testing"

// TestTemplateLeaves: an item names a file below the directory that the template has
// reached before the item, whatever is in the item. A template that begins with the item
// writes where the item says.
func TestTemplateLeaves(t *testing.T) {
	for _, c := range []struct {
		template Template
		item     string
		want     string // "": refused
	}{
		{"out/{}", "a/b", "out/a/b"},
		{"out/{}", "a/../b", "out/b"},
		{"out/{}", "../b", ""},
		{"out/{}", "..", ""},
		{"out/{}", "/etc/x", "out/etc/x"},
		{"out/a{}", "/../../x", ""},
		{"out/a{}", "../x", "out/a../x"},
		{"a{}", "/../../x", ""},
		{"{#}/{}", "../../x", ""},
		{"{#}/{}", "../7/x", "7/x"},
		{"{#}/{}", "x/../y", "7/y"},
		{"{#}/{}", "/etc/x", "7/etc/x"},
		{"{#}{}", "/../x", "x"},
		{"{#}{}", "/../../x", ""},
		{"out/{#}/{/}", "a/..", ""},
		{"out/{//}/{/}", "../x", ""},
		{"{//}/{/.}.png", "../a/b.jpg", "../a/b.png"},
		{"{//}/small/{/}", "../a/..", ""},
		{"{//}/../{/}", "a/b", "b"},
		{"{.}.png", "/tmp/a.jpg", "/tmp/a.png"},
		{"{}", "../a", "../a"},
		{"../{#}/{}", "a", "../7/a"},
		{"out/{}", "a\x00b", ""},
		{"out/{}", "a/", ""},
		{"out/{/.}", "..", ""},
		{"out/{/.}", ".x", ""},
		{"out/{}", ".", ""},
		{"{}", "a/..", ""},
		{"{}", "..", ""},
		{"out/{}/.", "a", ""},
	} {
		if got, err := c.template.name(c.item, 7); got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s with %q: %q, %v; want %q", c.template, c.item, got, err, c.want)
		}
	}
}
