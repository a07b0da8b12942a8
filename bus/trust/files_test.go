package trust

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"fbus/bus/args"
)

const nobody = 65534

// attack prepares a directory as another user could, and returns the path for fbus to
// use.
type attack struct {
	name string
	code string
	hint string
	root bool // needs root, to play the other user
	prep func(t *testing.T, base string) string
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var attacks = []attack{
	{"open to others", args.CodeUnsafe, "chmod 700", false, func(t *testing.T, base string) string {
		must(t, os.Mkdir(base+"/d", 0o700))
		must(t, os.Chmod(base+"/d", 0o750))
		return base + "/d"
	}},
	{"a file", args.CodeStorage, "", false, func(t *testing.T, base string) string {
		must(t, os.WriteFile(base+"/d", nil, 0o600))
		return base + "/d"
	}},
	{"links in a circle", args.CodeStorage, "", false, func(t *testing.T, base string) string {
		must(t, os.Symlink("d", base+"/d"))
		return base + "/d"
	}},
	{"parent open to all", args.CodeUnsafe, "FBUS_HOME", false, func(t *testing.T, base string) string {
		must(t, os.Mkdir(base+"/p", 0o700))
		must(t, os.Chmod(base+"/p", 0o777))
		return base + "/p/d"
	}},
	{"squatted", args.CodeUnsafe, "FBUS_HOME", true, func(t *testing.T, base string) string {
		must(t, os.Mkdir(base+"/d", 0o700))
		must(t, os.Lchown(base+"/d", nobody, nobody))
		return base + "/d"
	}},
	{"squatted parent", args.CodeUnsafe, "FBUS_HOME", true, func(t *testing.T, base string) string {
		must(t, os.Mkdir(base+"/p", 0o700))
		must(t, os.Lchown(base+"/p", nobody, nobody))
		return base + "/p/d"
	}},
	{"another's link to our directory", args.CodeUnsafe, "FBUS_HOME", true, func(t *testing.T, base string) string {
		must(t, os.Mkdir(base+"/mine", 0o700))
		must(t, os.Symlink(base+"/mine", base+"/d"))
		must(t, os.Lchown(base+"/d", nobody, nobody))
		return base + "/d"
	}},
	{"another's link on the way", args.CodeUnsafe, "FBUS_HOME", true, func(t *testing.T, base string) string {
		must(t, os.MkdirAll(base+"/mine/d", 0o700))
		must(t, os.Symlink("mine", base+"/p"))
		must(t, os.Lchown(base+"/p", nobody, nobody))
		return base + "/p/d"
	}},
}

// TestDirectoryAttacks checks that nothing is created or read where another user
// controls the path.
func TestDirectoryAttacks(t *testing.T) {
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			if a.root && os.Getuid() != 0 {
				t.Skip("needs root")
			}
			base := t.TempDir()
			dir := a.prep(t, base)
			_, err := Open(Options{Dir: dir, Network: "net"})
			wantCode(t, err, a.code, a.hint)
			filepath.WalkDir(base, func(path string, _ os.DirEntry, _ error) error {
				if strings.HasSuffix(path, caName) || strings.HasSuffix(path, lockName) {
					t.Errorf("%s was made", path)
				}
				return nil
			})
		})
	}
}

// TestOwnLink checks that the user's own link is followed: ~/.config may be one.
func TestOwnLink(t *testing.T) {
	base := t.TempDir()
	must(t, os.Mkdir(base+"/real", 0o700))
	must(t, os.Symlink("real", base+"/a"))
	must(t, os.Symlink(base+"/a/../a", base+"/b"))
	openTest(t, base+"/b/networks/net", newClock())
	if _, err := os.Stat(base + "/real/networks/net/" + caName); err != nil {
		t.Error(err)
	}
}

// TestFileAttacks checks a file readable by others, a link, a FIFO and another user's
// file. Each is refused, for every file name, and never written through.
func TestFileAttacks(t *testing.T) {
	for _, name := range []string{caName, listName} {
		for what, c := range map[string]struct {
			hint string
			do   func(path string) error
		}{
			"readable":  {"chmod 600", func(p string) error { return os.Chmod(p, 0o640) }},
			"writable":  {"chmod 600", func(p string) error { return os.Chmod(p, 0o602) }},
			"link":      {"symbolic link", func(p string) error { os.Rename(p, p+".real"); return os.Symlink(p+".real", p) }},
			"dangling":  {"symbolic link", func(p string) error { os.Remove(p); return os.Symlink(p+".victim", p) }},
			"FIFO":      {"regular", func(p string) error { os.Remove(p); return syscall.Mkfifo(p, 0o600) }},
			"directory": {"regular", func(p string) error { os.Remove(p); return os.Mkdir(p, 0o700) }},
			"another's": {"uid 65534", func(p string) error { return os.Chown(p, nobody, nobody) }},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				if what == "another's" && os.Getuid() != 0 {
					t.Skip("needs root")
				}
				dir, clk := privateTemp(t), newClock()
				openTest(t, dir, clk).Close()
				path := filepath.Join(dir, name)
				must(t, c.do(path))
				_, err := Open(Options{Dir: dir, Network: "net", Now: clk.now})
				if err == nil || !strings.Contains(err.Error()+err.(*args.Error).Hint, c.hint) {
					t.Errorf("got %v, want %q", err, c.hint)
				}
				if _, err := os.Lstat(path + ".victim"); err == nil {
					t.Error("written through the link")
				}
			})
		}
	}
}

// TestLockLink checks that the lock file is not created through a link.
func TestLockLink(t *testing.T) {
	dir := privateTemp(t)
	must(t, os.MkdirAll(dir, 0o700))
	must(t, os.Symlink(dir+"/victim", dir+"/"+lockName))
	if _, err := Open(Options{Dir: dir, Network: "net"}); err == nil {
		t.Error("opened")
	}
	if _, err := os.Stat(dir + "/victim"); err == nil {
		t.Error("made through the link")
	}
}

// TestLeftovers checks that leftovers of an interrupted write are swept and never read.
func TestLeftovers(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	openTest(t, dir, c).Close()
	left := filepath.Join(dir, tempPrefix+"X")
	must(t, os.WriteFile(left, []byte("half a li"), 0o600))
	openTest(t, dir, c)
	if _, err := os.Stat(left); err == nil {
		t.Error("not swept")
	}
}

// TestLinkReplacedByWrite checks that a write replaces a link by a new file.
func TestLinkReplacedByWrite(t *testing.T) {
	base := t.TempDir()
	must(t, os.Chmod(base, 0o700))
	d, err := openPrivate(base)
	must(t, err)
	defer d.close()
	must(t, os.WriteFile(base+"/victim", []byte("kept"), 0o600))
	must(t, os.Symlink("victim", base+"/x"))
	_, err = d.write("x", []byte("new"))
	must(t, err)
	if kept, _ := os.ReadFile(base + "/victim"); string(kept) != "kept" {
		t.Errorf("the link's target holds %q", kept)
	}
	if st, err := os.Lstat(base + "/x"); err != nil || !st.Mode().IsRegular() || st.Mode().Perm() != 0o600 {
		t.Error(st.Mode(), err)
	}
}

// TestFailedWriteNames checks that an error of a replaced file names that, not the temporary file.
func TestFailedWriteNames(t *testing.T) {
	d, err := openPrivate(privateTemp(t))
	must(t, err)
	d.close()
	if _, err := d.write("list", nil); err == nil || !strings.Contains(err.Error(), d.join("list")+": ") || strings.Contains(err.Error(), tempPrefix) {
		t.Errorf("%v", err)
	}
}
