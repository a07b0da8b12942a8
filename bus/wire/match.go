package wire

import (
	"path"
	"strings"
)

// MatchWorker reports whether a call's on (PROTOCOL.md, section 5.1) admits the
// worker of that name and id: empty admits all, # and an id that one, a glob
// those whose name matches.
func MatchWorker(on, name, id string) bool {
	if on == "" {
		return true
	}
	if want, ok := strings.CutPrefix(on, "#"); ok {
		return want == id
	}
	ok, _ := path.Match(on, name)
	return ok
}
