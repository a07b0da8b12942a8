package exec

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"fbus/bus/args"

	"golang.org/x/sys/unix"
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
	case registered(file, head):
		return nil
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		if why = checkELF(f, head); why == "" {
			return nil
		}
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

// checkELF returns why the kernel cannot execute an ELF file, "" if it may: see elf(5).
func checkELF(f *os.File, head []byte) (why string) {
	const cut = "it is an ELF file that was cut short"
	if len(head) < 52 {
		return cut
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order = binary.BigEndian
	}
	if kind := order.Uint16(head[16:]); kind != 2 && kind != 3 { // ET_EXEC, ET_DYN: not an object file
		return "it is neither a script nor a program for this system"
	}
	if machine := order.Uint16(head[18:]); !runs(machine) {
		return "it is a program for another machine than " + runtime.GOARCH + ", of ELF number " + strconv.Itoa(int(machine))
	}
	wide := head[4] == 2
	if wide && len(head) < 64 {
		return cut
	}
	at, each, count := uint64(order.Uint32(head[28:])), 32, int(order.Uint16(head[44:]))
	if wide {
		at, each, count = order.Uint64(head[32:]), 56, int(order.Uint16(head[56:]))
	}
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	size, table := uint64(info.Size()), make([]byte, each*count)
	if at > size || uint64(len(table)) > size-at {
		return cut
	}
	if _, err := f.ReadAt(table, int64(at)); err != nil {
		return ""
	}
	page := uint64(os.Getpagesize())
	end := (size + page - 1) / page * page // the last page is mapped whole
	for ; len(table) > 0; table = table[each:] {
		begin, length := uint64(order.Uint32(table[4:])), uint64(order.Uint32(table[16:]))
		if wide {
			begin, length = order.Uint64(table[8:]), order.Uint64(table[32:])
		}
		const load, loader = 1, 3 // PT_LOAD, PT_INTERP
		switch kind := order.Uint32(table); {
		case (kind == load || kind == loader) && (begin > end || length > end-begin):
			return cut
		case kind == loader && length <= unix.PathMax:
			path := make([]byte, length)
			if _, err := f.ReadAt(path, int64(begin)); err != nil {
				return ""
			}
			path, _, _ = bytes.Cut(path, []byte{0})
			if err := checkExecutable(string(path)); err != nil {
				return "its loader cannot be executed: " + args.AsError(err, args.CodeCannotRun).Message
			}
		}
	}
	return ""
}

// families are the ELF numbers of machines whose kernels may execute each other's programs: x86,
// ARM, PowerPC and SPARC, each with 32 and 64 bits.
var families = [][]uint16{{3, 6, 62}, {40, 183}, {20, 21}, {2, 18, 43}}

// runs reports whether this machine may be able to execute programs of a machine.
func runs(machine uint16) bool {
	own := map[string]uint16{"amd64": 62, "386": 3, "arm64": 183, "arm": 40, "ppc64": 21, "ppc64le": 21, "riscv64": 243, "s390x": 22, "loong64": 258}[runtime.GOARCH]
	return own == 0 || own == machine || slices.ContainsFunc(families, func(f []uint16) bool { return slices.Contains(f, own) && slices.Contains(f, machine) })
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
