package find

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// UserID returns the uid of a user, given by name or number.
func UserID(name string) (int, error) { return accountID("user", "passwd", name) }

// GroupID returns the gid of a group, given by name or number.
func GroupID(name string) (int, error) { return accountID("group", "group", name) }

// accountID finds a number in /etc, or with getent(1), which knows directory
// services too. The package os/user would do without those here, and cost every
// call its start-up.
func accountID(kind, database, name string) (int, error) {
	if id, err := strconv.ParseUint(name, 10, 32); err == nil {
		return int(id), nil
	}
	if name == "" || strings.ContainsAny(name, ":\n") || name[0] == '-' {
		return 0, fmt.Errorf("invalid %s %q", kind, name)
	}
	if f, err := os.Open("/etc/" + database); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if id, ok := idOf(lines.Text(), name); ok {
				return id, nil
			}
		}
	}
	getent := exec.Command("getent", database, name)
	getent.Env = []string{} // a ticket may be in ours
	line, _ := getent.Output()
	if id, ok := idOf(strings.TrimSpace(string(line)), name); ok {
		return id, nil
	}
	return 0, fmt.Errorf("unknown %s %s", kind, name)
}

// idOf returns the number in a line of passwd(5) or group(5), if it is about that name.
func idOf(line, name string) (int, bool) {
	fields := strings.Split(line, ":")
	if len(fields) < 3 || fields[0] != name {
		return 0, false
	}
	id, err := strconv.ParseUint(fields[2], 10, 32)
	return int(id), err == nil
}
