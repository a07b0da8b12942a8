//go:build linux

package main

import (
	"testing"

	"fbus/cmd/testbus"
)

func TestMain(m *testing.M) { testbus.Main(m, map[string]func(){"fbus-mcp": main}) }

// TestScripts runs fbus mcp as its users do.
func TestScripts(t *testing.T) { testbus.Scripts(t, nil) }
