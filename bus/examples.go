package bus

import "embed"

// Examples holds worked callers and workers in other languages, as
// testdata/clients/caller.py and so on.
//
//go:embed testdata/clients
var Examples embed.FS
