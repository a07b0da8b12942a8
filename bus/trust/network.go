package trust

import (
	"cmp"
	"crypto/rand"
	"errors"
	"io/fs"
	"strings"

	"fbus/bus/args"

	"golang.org/x/sys/unix"
)

const (
	networkName = "network"
	maxNetwork  = 256 // bytes of that file
)

// KeepNetwork stores the id of a user's network in a directory, creating it if needed.
// If an id is already stored, it returns that one.
func KeepNetwork(dir, id string) (string, error) {
	d, err := openUnless(dir, 0) // other users' access does no harm to the file
	if err != nil {
		return id, err
	}
	defer d.close()
	kept, err := d.network()
	if !errors.Is(err, fs.ErrNotExist) {
		return cmp.Or(kept, id), err
	}
	// A link, unlike a rename, fails if another node was first.
	temp := tempPrefix + rand.Text()
	if err := d.create(temp, networkName, []byte(id+"\n")); err != nil {
		return id, err
	}
	defer unix.Unlinkat(d.fd(), temp, 0)
	err = unix.Linkat(d.fd(), temp, d.fd(), networkName, 0)
	if errors.Is(err, unix.EEXIST) {
		kept, err = d.network()
		return cmp.Or(kept, id), err
	}
	if err != nil {
		return id, errorf(args.CodeStorage, "%s: %v", d.join(networkName), err)
	}
	return id, nil
}

// KeptNetwork returns the id that [KeepNetwork] has stored in a directory that exists; "": none.
func KeptNetwork(dir string) string {
	d, err := openUnless(dir, 0)
	if err != nil {
		return ""
	}
	defer d.close()
	kept, _ := d.network()
	return kept
}

// network reads the stored id.
func (d *privateDir) network() (string, error) {
	data, _, err := d.readUnless(networkName, maxNetwork, 0o022)
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(data))
	if args.CheckNetwork(id) != nil {
		return "", errorf(args.CodeDamaged, "%s: it does not hold a valid network id", d.join(networkName)).WithHint("a-z, 0-9 and -, at most 63; or remove it")
	}
	return id, nil
}

// OwnDir creates a directory if it is missing, and returns its path without links. It
// fails if another user decides where the path leads, or may write to the directory.
// hint names the setting that selects another directory.
func OwnDir(path, hint string) (string, error) {
	d, err := openUnless(path, 0o022)
	if e, ok := errors.AsType[*args.Error](err); ok {
		other := *e
		other.Hint = strings.ReplaceAll(e.Hint, "FBUS_HOME", hint)
		return "", &other
	}
	if err != nil {
		return "", err
	}
	defer d.close()
	return d.f.Name(), nil
}
