package commands

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOpenFile: where everybody may make files nobody else decides what is written to;
// elsewhere a file is opened as ever.
func TestOpenFile(t *testing.T) {
	for what, c := range map[string]struct {
		root bool // plays another user
		do   func(path, victim string) error
		want string // empty: it is opened
	}{
		"nothing there":          {false, func(string, string) error { return nil }, ""},
		"a file":                 {false, func(path, _ string) error { return os.WriteFile(path, []byte("old"), 0o600) }, ""},
		"a link":                 {false, func(path, victim string) error { return os.Symlink(victim, path) }, ""},
		"another's file":         {true, func(path, _ string) error { return theirs(os.WriteFile(path, nil, 0o666), path) }, "belongs to uid 65534"},
		"another's link":         {true, func(path, victim string) error { return theirs(os.Symlink(victim, path), path) }, "is a link owned by uid 65534"},
		"another's dangling":     {true, func(path, victim string) error { return theirs(os.Symlink(victim+"x", path), path) }, "is a link owned by uid 65534"},
		"another's hard link":    {false, func(path, victim string) error { return os.Link(victim, path) }, "second name"},
		"another's FIFO":         {true, func(path, _ string) error { return theirs(syscall.Mkfifo(path, 0o666), path) }, "belongs to uid 65534"},
		"a link of ours to that": {true, func(path, victim string) error { return ownLink(path, victim) }, "is a link owned by uid 65534"},
	} {
		t.Run(what, func(t *testing.T) {
			if c.root && os.Getuid() != 0 {
				t.Skip("needs root")
			}
			for _, open := range []bool{true, false} {
				dir := t.TempDir()
				pub := filepath.Join(dir, "pub")
				path, victim := filepath.Join(pub, "f"), filepath.Join(dir, "victim")
				must(t, os.Mkdir(pub, 0o700))
				must(t, os.WriteFile(victim, []byte("old"), 0o600))
				must(t, c.do(path, victim))
				if open {
					must(t, os.Chmod(pub, 0o1777))
				} else if strings.Contains(what, "FIFO") {
					continue // it would wait for a reader
				}
				f, err := openFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
				if want := c.want; (err == nil) != (want == "" || !open) || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("open to all %v: %v, want %q", open, err, want)
				}
				if err == nil {
					f.Close()
					continue
				}
				if kept, _ := os.ReadFile(victim); string(kept) != "old" {
					t.Errorf("the file that was attacked holds %q", kept)
				}
				if _, err := os.Lstat(victim + "x"); err == nil {
					t.Error("made through the link")
				}
			}
		})
	}
}

func theirs(err error, path string) error {
	if err == nil {
		err = os.Lchown(path, 65534, 65534)
	}
	return err
}

// ownLink makes a link to one of another user's beside it.
func ownLink(path, victim string) error {
	if err := theirs(os.Symlink(victim, path+".2"), path+".2"); err != nil {
		return err
	}
	return os.Symlink("f.2", path)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
