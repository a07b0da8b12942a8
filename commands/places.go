package commands

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"fbus/bus/find"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// defaultSocket returns the node's default socket. If another user has taken the name,
// it chooses another one, which clients find as well.
func defaultSocket(warn func(string, ...any)) string {
	base := filepath.Join(find.SocketDir, find.SocketPrefix+strconv.Itoa(os.Getpid()))
	path := base + find.SocketSuffix
	if _, err := os.Lstat(path); err != nil || find.Owned(path, os.ModeSocket, os.Getuid()) {
		return path
	}
	warn("%s: not a socket of this user: it is neither used nor removed", path)
	return base + "." + randomSuffix() + find.SocketSuffix
}

// networkState returns a subdirectory of the node's own files for one network, that no
// other user may write to or redirect.
func networkState(network, part string) (string, error) {
	dir := os.Getenv("FBUS_STATE")
	if dir == "" {
		var err error
		if dir, err = find.UserDir("XDG_STATE_HOME", ".local/state"); err != nil {
			return "", fmt.Errorf("there is no state directory: %w: set FBUS_STATE to a writable directory", err)
		}
	}
	return trust.OwnDir(filepath.Join(dir, network, part), "FBUS_STATE")
}

// networkID returns the given id, or that of the network that was joined with a ticket for a
// node, or the stored id of this user's nodes, or a new one that it stores.
func networkID(given string, stderr io.Writer) (string, error) {
	if given != "" {
		return given, nil
	}
	several, err := nodeNetworks()
	if err != nil {
		return "", err
	}
	if len(several) > 1 {
		return "", usage("this user may run a node of several networks: %s", strings.Join(several, " ")).WithHint("choose one: --network ID")
	}
	if len(several) == 1 {
		return several[0], nil
	}
	id := "net-" + wire.NewInstance()[:12]
	dir, err := find.HomeDir()
	if err == nil {
		id, err = trust.KeepNetwork(dir, id)
	}
	if err != nil {
		say(stderr, fmt.Sprintf("the network id %s cannot be stored: %v", id, err))
		say(stderr, "hint: set FBUS_HOME to a writable directory, or use --network")
	}
	return id, nil
}

// nodeNetworks returns the networks that were joined with a ticket for a node and, if there are some, the
// network of this user's own that has a CA.
func nodeNetworks() ([]string, error) {
	list, err := find.NodeNetworks()
	home, e := find.HomeDir()
	if err != nil || e != nil || len(list) == 0 {
		return list, err
	}
	if own := trust.KeptNetwork(home); own != "" && !slices.Contains(list, own) && founded(home, own) {
		list = append(list, own)
	}
	return list, nil
}

// founded reports whether this user has the CA of a network of that name.
func founded(home, network string) bool {
	return trust.Founded(filepath.Join(home, "networks", network))
}
