package trust

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"fbus/bus/args"
)

func TestKeepNetwork(t *testing.T) {
	dir := privateTemp(t)
	if id, err := KeepNetwork(dir, "one"); id != "one" || err != nil {
		t.Fatal(id, err)
	}
	if id, err := KeepNetwork(dir, "two"); id != "one" || err != nil {
		t.Error(id, err)
	}
	if st, err := os.Stat(dir + "/network"); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
	// A file written by hand may be readable by others.
	must(t, os.WriteFile(dir+"/network", []byte(" mine\n\n"), 0o644))
	must(t, os.Chmod(dir+"/network", 0o644))
	must(t, os.Chmod(dir, 0o775))
	if id, err := KeepNetwork(dir, "two"); id != "mine" || err != nil {
		t.Error(id, err)
	}
	left, err := os.ReadDir(dir)
	if len(left) != 1 || err != nil {
		t.Error(left, err)
	}
}

// TestKeepNetworkAtOnce checks that several nodes started at once share one id.
func TestKeepNetworkAtOnce(t *testing.T) {
	dir := privateTemp(t)
	var ids sync.Map
	var wg sync.WaitGroup
	for _, id := range strings.Split("abcdefgh", "") {
		wg.Go(func() {
			kept, err := KeepNetwork(dir, id)
			if err != nil {
				t.Error(err)
			}
			ids.Store(kept, true)
		})
	}
	wg.Wait()
	n := 0
	ids.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d ids", n)
	}
}

// TestKeepNetworkAttacks checks that other users' files are neither read nor written,
// and that the contents of an unrelated file are not shown.
func TestKeepNetworkAttacks(t *testing.T) {
	for what, do := range map[string]func(t *testing.T, path string){
		"link":     func(t *testing.T, path string) { must(t, os.Symlink(path+".victim", path)) },
		"dangling": func(t *testing.T, path string) { must(t, os.Symlink(path+".none", path)) },
		"FIFO":     func(t *testing.T, path string) { must(t, syscall.Mkfifo(path, 0o600)) },
		"writable": func(t *testing.T, path string) {
			must(t, os.WriteFile(path, []byte("net"), 0o666))
			must(t, os.Chmod(path, 0o666))
		},
		"other": func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("s3cret words"), 0o600)) },
		"another's": func(t *testing.T, path string) {
			if os.Getuid() != 0 {
				t.Skip("needs root")
			}
			must(t, os.WriteFile(path, []byte("net"), 0o600))
			must(t, os.Chown(path, nobody, nobody))
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := privateTemp(t)
			must(t, os.MkdirAll(dir, 0o700))
			path := dir + "/network"
			must(t, os.WriteFile(path+".victim", []byte("s3cret"), 0o600))
			do(t, path)
			id, err := KeepNetwork(dir, "new")
			if id != "new" || err == nil || strings.Contains(err.Error(), "s3cret") {
				t.Error(id, err)
			}
			if kept, _ := os.ReadFile(path + ".victim"); string(kept) != "s3cret" {
				t.Errorf("the link's target holds %q", kept)
			}
			if _, err := os.Lstat(path + ".none"); err == nil {
				t.Error("written through the link")
			}
		})
	}
}

// TestOwnDir checks that a directory is created and used only where no other user
// controls the path.
func TestOwnDir(t *testing.T) {
	base := privateTemp(t)
	must(t, os.MkdirAll(base, 0o700))
	must(t, os.Symlink("real", base+"/link"))
	must(t, os.Mkdir(base+"/real", 0o755))
	if dir, err := OwnDir(base+"/link/net/log", "FBUS_STATE"); dir != base+"/real/net/log" || err != nil {
		t.Error(dir, err)
	}
	must(t, os.Chmod(base+"/real/net/log", 0o770))
	_, err := OwnDir(base+"/link/net/log", "FBUS_STATE")
	wantCode(t, err, args.CodeUnsafe, "chmod 700")
	for _, a := range attacks[3:] {
		if a.root && os.Getuid() != 0 {
			continue
		}
		dir := a.prep(t, t.TempDir())
		_, err := OwnDir(dir, "FBUS_STATE")
		wantCode(t, err, a.code, strings.ReplaceAll(a.hint, "FBUS_HOME", "FBUS_STATE"))
	}
}
