package commands

import (
	"reflect"
	"strings"
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
		"A=" + strings.Repeat("secret", maxEnvFile/6+1): ": longer than 1048576 bytes",
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
