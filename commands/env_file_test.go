package commands

import (
	"context"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func TestEnvFile(t *testing.T) {
	path := written(t, "x.env", "\ufeff# first\r\nA=1\r\n\n  ; no\n B = two words \nexport C=\"in quotes \"\nD='x'\nE=\nF=a=b#c\nG=\"half\nH=$A`id`\nA=2")
	got, err := readEnvFile(path)
	want := []string{"A=1", "B=two words", "C=in quotes ", "D=x", "E=", "F=a=b#c", "G=\"half", "H=$A`id`", "A=2"}
	if err == nil {
		t.Errorf("a name with a space: %q", got)
	}
	path = written(t, "x.env", strings.Replace("\ufeff# first\r\nA=1\r\n\n  ; no\n B = two words \nexport C=\"in quotes \"\nD='x'\nE=\nF=a=b#c\nG=\"half\nH=$A`id`\nA=2", "B = ", "B= ", 1))
	if got, err = readEnvFile(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q, error %v\nwant %q", got, err, want)
	}
	for text, want := range map[string]string{
		"A=1\nsecret\n": ":2: a line must be NAME=VALUE",
		"=secret":       ":1: invalid name before =",
		"se cret=1":     ":1: invalid name before =",
		"A=sec\x00ret":  ":1: a NUL byte",
		"\n\n1secret=2": ":3: invalid name before =",
		"A=" + strings.Repeat("secret", maxSmallFile/6+1): ": longer than 1048576 bytes",
	} {
		path := written(t, "x.env", text)
		if _, err := readEnvFile(path); err == nil || err.Error() != "--env-file "+path+want || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.20q: %v, want %s", text, err, want)
		}
	}
	if _, err := readEnvFile(path + ".none"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v", err)
	}
}

// A file that is read whole has a limit, and an error names the file once.
func TestSmallFiles(t *testing.T) {
	endless := function{schemaFile: "/dev/zero"}
	if err := endless.readSchema(); err == nil || err.Error() != "--schema /dev/zero: longer than 1048576 bytes" {
		t.Errorf("a schema: %v", err)
	}
	if _, err := readAttributes([]string{"x.y=@/dev/zero"}); err == nil || err.Error() != "--attr x.y: /dev/zero: longer than 1048576 bytes" {
		t.Errorf("an attribute: %v", err)
	}
	if _, err := readEnvFile("/dev/fd/9999"); err == nil || err.Error() != "--env-file /dev/fd/9999: the descriptor is not open" {
		t.Errorf("variables: %v", err)
	}
}

// A FIFO without a writer in the place of a file does not keep a worker from its end.
func TestReloadOfFIFO(t *testing.T) {
	path := written(t, "fbus.toml", "")
	os.Remove(path)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := &reloader{o: upOptions{config: path}}
	r.reload(ctx)
	f, err := os.OpenFile(path, os.O_RDWR, 0) // lets the reader end
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
