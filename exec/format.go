package exec

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"fbus/bus/args"
)

// binfmt is where the kernel shows the formats that were registered with it.
var binfmt = "/proc/sys/fs/binfmt_misc"

// foreign lists the beginnings of files that are executed only where their format is registered:
// of Windows and .NET, Java classes, Java archives, WebAssembly. Where the
// registered formats cannot be seen, the kernel has to decide about these.
var foreign = []string{"MZ", "\xca\xfe\xba\xbe", "PK\x03\x04", "\x00asm"}

// checkFormat refuses a file that the kernel can never execute. A shell runs a script without
// a "#!" line by itself, and so hides that it has none. script is the file that was named; file
// is that, or its interpreter.
func checkFormat(file, script string) error {
	f, err := os.Open(file)
	if err != nil {
		return nil // it cannot be read, but perhaps it can be executed
	}
	defer f.Close()
	head := make([]byte, 256) // the kernel's BINPRM_BUF_SIZE
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil
	}
	head = head[:n]
	why, hint := "", ""
	switch {
	case isELF(head) || registered(file, head):
		return nil
	case n == 0:
		why = "it is empty"
	case bytes.HasPrefix(head, []byte("#!")):
		why = "its first line names no interpreter"
	case bytes.HasPrefix(args.WithoutBOM(head), []byte("#!")):
		why, hint = "a byte order mark before #! hides the interpreter from the kernel", `sed -i '1s/^\xef\xbb\xbf//' `+args.Quote(file)+" removes it"
	case looksLikeText(head):
		why, hint = "it has no #! line", "a script begins with a line such as #!/bin/sh"
	default:
		why = "it is neither a script nor a program for this system"
	}
	if file != script {
		return cannotRun("%s: bad interpreter %q: %s", script, file, why)
	}
	e := cannotRun("%s cannot be executed: %s", file, why)
	e.Hint = hint
	return e
}

// isELF reports whether a file begins as an ELF program, of any machine.
func isELF(head []byte) bool {
	if !bytes.HasPrefix(head, []byte("\x7fELF")) || len(head) < 52 {
		return false
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order = binary.BigEndian
	}
	kind := order.Uint16(head[16:])
	return kind == 2 || kind == 3 // ET_EXEC, ET_DYN: not an object file
}

// looksLikeText reports whether a file begins with text.
func looksLikeText(head []byte) bool {
	for cut := 0; cut < utf8.UTFMax && cut < len(head); cut++ { // a character may be cut
		if utf8.Valid(head[:len(head)-cut]) {
			return bytes.IndexByte(head, 0) < 0
		}
	}
	return false
}

// registered reports whether the kernel has a handler for a file: see the kernel's
// admin-guide/binfmt-misc.rst.
func registered(file string, head []byte) bool {
	entries, err := os.ReadDir(binfmt)
	status, serr := os.ReadFile(filepath.Join(binfmt, "status"))
	if err != nil || serr != nil {
		for _, magic := range foreign {
			if bytes.HasPrefix(head, []byte(magic)) {
				return true
			}
		}
		return false
	}
	if strings.TrimSpace(string(status)) != "enabled" {
		return false
	}
	for _, e := range entries {
		if text, err := os.ReadFile(filepath.Join(binfmt, e.Name())); err == nil && handles(string(text), file, head) {
			return true
		}
	}
	return false
}

// handles reports whether one entry of binfmt_misc is for a file.
func handles(entry, file string, head []byte) bool {
	on, offset := false, 0
	var magic, mask []byte
	for line := range strings.Lines(entry) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "enabled":
			on = true
		case "extension":
			return on && strings.HasSuffix(file, value) && strings.HasPrefix(value, ".")
		case "offset":
			offset, _ = strconv.Atoi(value)
		case "magic":
			magic, _ = hex.DecodeString(value)
		case "mask":
			mask, _ = hex.DecodeString(value)
		}
	}
	if !on || len(magic) == 0 || offset < 0 || len(head) < offset+len(magic) {
		return false
	}
	for i, m := range magic {
		differs := head[offset+i] ^ m
		if i < len(mask) {
			differs &= mask[i]
		}
		if differs != 0 {
			return false
		}
	}
	return true
}
