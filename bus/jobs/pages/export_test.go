package pages

import (
	"bytes"
	"io"
)

// CheckBytes is Check for a file in memory.
func CheckBytes(b []byte, valid func(bucket string, key, value []byte) bool) *Report {
	return check(bytes.NewReader(b), int64(len(b)), valid).report
}

// CheckReader is Check for a file that may fail.
func CheckReader(r io.ReaderAt, size int64) *Report { return check(r, size, nil).report }

// SalvageReader is Salvage for a file that may fail.
func SalvageReader(r io.ReaderAt, size int64, each func(Entry, Where) error) error {
	return salvage(r, size, each)
}

// SalvageBytes is Salvage for a file in memory.
func SalvageBytes(b []byte, each func(Entry, Where) error) error {
	return salvage(bytes.NewReader(b), int64(len(b)), each)
}
