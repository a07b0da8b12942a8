package paths

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOpenFile: where everybody may create files nobody else decides what is written to;
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
				f, err := OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
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

// TestWalkLinks: every link on the way is judged, not only the last one.
func TestWalkLinks(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to play another user")
	}
	base := t.TempDir()
	at := func(name string) string { return filepath.Join(base, name) }
	dir := func(name string, uid int, mode os.FileMode) {
		must(t, os.Mkdir(at(name), 0o700))
		must(t, os.Chmod(at(name), mode))
		must(t, os.Chown(at(name), uid, uid))
	}
	link := func(name string, uid int, target string) {
		must(t, os.Symlink(target, at(name)))
		must(t, os.Lchown(at(name), uid, uid))
	}
	const sticky = 0o777 | os.ModeSticky
	dir("mine", 0, 0o700)
	dir("pub", 0, sticky)
	link("pub/dir", nobody, at("mine"))
	link("pub/own", 0, at("mine"))
	link("pub/chain", 0, "dir")
	dir("pub/theirs", nobody, 0o755)
	link("pub/theirs/in", nobody, "../../mine")
	dir("team", 0, 0o775)
	link("team/l", nobody, "../mine")
	link("mine/moved", nobody, ".")
	must(t, os.WriteFile(at("mine/f"), nil, 0o600))
	t.Chdir(at("pub/theirs"))
	for path, want := range map[string]string{
		at("pub/dir/f"):                  "pub/dir: is a link owned by uid 65534",
		at("pub/own/f"):                  "",
		at("pub/chain/f"):                "pub/dir: is a link owned by uid 65534",
		at("pub/theirs/f"):               "", // its owner may read it; we have asked for that
		at("pub/theirs/in/f"):            "theirs/in: is a link owned by uid 65534",
		"in/f":                           "in: is a link owned by uid 65534",
		"../own/../mine/f":               "",
		at("team/l/f"):                   "team/l: is a link owned by uid 65534",
		at("mine/moved/f"):               "",
		at("mine/no/f"):                  "no such file",
		at("mine/f/f"):                   "not a directory",
		at("mine/"):                      "is a directory",
		at("new") + "/":                  "no such file",
		"":                               "no such file",
		"/proc/self/root" + at("mine/f"): "",
	} {
		f, err := OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
		if err == nil {
			f.Close()
		}
	}
}

// TestWalkUnread: a directory that may be searched but not read is passed, also if it is
// above the working directory.
func TestWalkUnread(t *testing.T) {
	base := t.TempDir()
	must(t, os.MkdirAll(base+"/a/b", 0o700))
	must(t, os.Chmod(base+"/a", 0o100))
	t.Chdir(base + "/a/b")
	for _, path := range []string{base + "/a/b/f", "f", "../b/f"} {
		f, err := OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		must(t, err)
		f.Close()
	}
	must(t, os.Chmod(base+"/a", 0o700))
}

const nobody = 65534

func theirs(err error, path string) error {
	if err == nil {
		err = os.Lchown(path, nobody, nobody)
	}
	return err
}

// ownLink makes a link to a second link, which belongs to another user.
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
