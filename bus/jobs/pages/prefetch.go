//go:build !linux

package pages

import "os"

// prefetch does nothing: the pages are read as they come.
func prefetch(*os.File) {}
