package exec

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fbus/bus/args"
)

// Files that the kernel can never execute are refused when they are offered.
func TestFormat(t *testing.T) {
	dir, formats := t.TempDir(), t.TempDir()
	set(t, &binfmt, filepath.Join(formats, "none"))
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	object := append([]byte{}, self[:4096]...)
	object[16], object[17] = 1, 0 // ET_REL
	other := append([]byte{}, self...)
	other[18], other[19] = 0xff, 0x7f // no machine has this number
	lost := slices.Concat(self[:64], make([]byte, 56), []byte("/nonexistent/ld.so\x00"))
	le := binary.LittleEndian
	if self[4] == 2 && self[5] == 1 {
		le.PutUint64(lost[32:], 64) // one segment, PT_INTERP
		le.PutUint16(lost[56:], 1)
		le.PutUint32(lost[64:], 3)
		le.PutUint64(lost[72:], 120)
		le.PutUint64(lost[96:], 19)
	} else {
		lost = []byte("\x7fELF") // only the 64-bit little-endian form is made here
	}
	noise := []byte("\x8e\x00\xffnoise\x01\x02")
	script(t, dir, "text", "echo hello\n", 0o755)
	script(t, dir, "sh", "#!/bin/sh\n", 0o755)
	for name, c := range map[string]struct {
		file string
		why  string // "": it is accepted
	}{
		"empty":          {"", "it is empty"},
		"no first line":  {"echo hello\n", "it has no #! line"},
		"one letter":     {"x", "it has no #! line"},
		"UTF-8, cut":     {strings.Repeat("x", 255) + "äöü\n", "it has no #! line"},
		"no interpreter": {"#! \nexit\n", "its first line names no interpreter"},
		"noise":          {string(noise), "it is neither a script nor a program"},
		"object file":    {string(object), "it is neither a script nor a program"},
		"cut ELF":        {string(self[:20]), "it is an ELF file that was cut short"},
		"ELF's magic":    {"\x7fELF", "it is an ELF file that was cut short"},
		"no segments":    {string(self[:100]), "it is an ELF file that was cut short"},
		"half an ELF":    {string(self[:len(self)/2]), "it is an ELF file that was cut short"},
		"ELF":            {string(self), ""},
		"no loader":      {string(lost), map[bool]string{true: "its loader cannot be executed: /nonexistent/ld.so: no such file", false: "cut short"}[len(lost) > 4]},
		"other machine":  {string(other), "it is a program for another machine than"},
		"script":         {"#!/bin/sh\n", ""},
		"last line":      {"#!/bin/sh", ""},
		"env":            {"#!/usr/bin/env sh\n", ""},
		"by a script":    {"#!" + dir + "/sh\n", ""},
		"by a text":      {"#!" + dir + "/text\n", "bad interpreter"},
		"Windows":        {"MZ\x90\x00", ""}, // the kernel decides
	} {
		t.Run(name, func(t *testing.T) {
			file := script(t, dir, "program", c.file, 0o755)
			_, err := Check(Spec{Argv: []string{file}})
			e, _ := err.(*args.Error)
			switch {
			case c.why == "" && err == nil:
			case c.why == "" || e == nil || e.Code != args.CodeCannotRun || !strings.Contains(e.Message, c.why):
				t.Errorf("%v, want %q", err, c.why)
			}
		})
	}

	binfmt = formats
	for name, text := range map[string]string{
		"status":   "enabled\n",
		"register": "",
		"noise":    "enabled\ninterpreter /usr/bin/x\nflags: \noffset 0\nmagic 8e00ff\nmask ffffff\n",
		"off":      "disabled\ninterpreter /usr/bin/x\nflags: \noffset 0\nmagic 4d5a\n",
		"jar":      "enabled\ninterpreter /usr/bin/java\nflags: \nextension .jar\n",
	} {
		os.WriteFile(filepath.Join(formats, name), []byte(text), 0o644)
	}
	for name, ok := range map[string]bool{"noise": true, "a.jar": true, "a.exe": false} {
		file := script(t, dir, name, map[string]string{"noise": string(noise), "a.jar": "PK\x03\x04", "a.exe": "MZ\x90\x00"}[name], 0o755)
		if _, err := Check(Spec{Argv: []string{file}}); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
