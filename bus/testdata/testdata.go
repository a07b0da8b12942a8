// Package testdata holds the vectors and transcripts of PROTOCOL.md, section 11.
package testdata

import "embed"

// Files has wrong.jsonl and the transcripts.
//
//go:embed wrong.jsonl transcripts/*.jsonl
var Files embed.FS
