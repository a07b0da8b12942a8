package find

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"fbus/bus/args"
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
	named := func(fields []string) bool { _, ok := idOf(fields, name); return ok }
	fields := first(database, named)
	if fields == nil {
		line, _ := getent(database, name)
		fields = strings.Split(line, ":")
	}
	id, ok := idOf(fields, name)
	if !ok {
		return 0, fmt.Errorf("unknown %s %s", kind, name)
	}
	return id, nil
}

// accountName returns the name of a user or group for a message, and its number.
func accountName(database string, id int) string {
	number := strconv.Itoa(id)
	fields := first(database, func(fields []string) bool { return len(fields) > 2 && fields[2] == number })
	if fields == nil {
		line, _ := getent(database, number)
		fields = strings.Split(line, ":")
	}
	if fields[0] == "" {
		return number
	}
	return fmt.Sprintf("%s (%d)", args.Shown(fields[0]), id)
}

// recent has the groups that were looked up in the last second.
var recent struct {
	mu     sync.Mutex // protects the fields below
	began  time.Time
	groups map[int][]int
}

// Groups returns the groups of a user in the accounts of this machine, at most a second old.
// A user without an account has none.
func Groups(uid int) (gids []int, err error) {
	recent.mu.Lock()
	defer recent.mu.Unlock()
	if recent.groups == nil || time.Since(recent.began) > time.Second {
		recent.groups, recent.began = map[int][]int{}, time.Now()
	}
	gids, ok := recent.groups[uid]
	if !ok {
		if gids, err = lookUpGroups(uid); err == nil {
			recent.groups[uid] = gids
		}
	}
	return slices.Clip(gids), err
}

func lookUpGroups(uid int) (gids []int, err error) {
	account := first("passwd", func(fields []string) bool { return len(fields) > 3 && fields[2] == strconv.Itoa(uid) })
	directory := account == nil
	if directory {
		line, err := getent("passwd", strconv.Itoa(uid))
		if account = strings.Split(line, ":"); err != nil || len(account) < 4 {
			return nil, err
		}
	}
	numbers := []string{account[3]}
	first("group", func(fields []string) bool {
		if len(fields) > 3 && slices.Contains(strings.Split(fields[3], ","), account[0]) {
			numbers = append(numbers, fields[2])
		}
		return false
	})
	if directory {
		line, err := getent("initgroups", account[0])
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, strings.Fields(strings.TrimPrefix(line, account[0]))...)
	}
	for _, number := range numbers {
		if gid, err := strconv.Atoi(number); err == nil {
			gids = append(gids, gid)
		}
	}
	return gids, nil
}

// PrivateGroup reports whether a group is that of one user alone: it has the user's name
// and no other member. On many systems the files of each user belong to such a group.
func PrivateGroup(user string, gid int) bool {
	id := strconv.Itoa(gid)
	group := func(fields []string) bool { return len(fields) > 3 && fields[2] == id }
	shared := func(fields []string) bool {
		return group(fields) && (fields[0] != user || fields[3] != "" && fields[3] != user)
	}
	another := func(fields []string) bool { return len(fields) > 3 && fields[3] == id && fields[0] != user }
	return first("group", group) != nil && first("group", shared) == nil && first("passwd", another) == nil
}

var etc = "/etc/" // a test has its own

// first returns the first line of a database in /etc that matches, or nil.
func first(database string, match func(fields []string) bool) []string {
	f, err := os.Open(etc + database)
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Split(lines.Text(), ":"); match(fields) {
			return fields
		}
	}
	return nil
}

// getentTime bounds the wait for a directory service.
const getentTime = 10 * time.Second

// getent asks directory services too. It returns an empty line for an unknown key, or if it
// is not installed.
func getent(database, key string) (line string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), getentTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "getent", database, key)
	cmd.Env = []string{} // a ticket may be in ours
	out, err := cmd.Output()
	if e := (*exec.ExitError)(nil); errors.As(err, &e) && e.ExitCode() == 2 || errors.Is(err, exec.ErrNotFound) {
		return "", nil
	}
	return strings.TrimSpace(string(out)), err
}

// idOf returns the number in the fields of passwd(5) or group(5), if they are about that
// name.
func idOf(fields []string, name string) (int, bool) {
	if len(fields) < 3 || fields[0] != name {
		return 0, false
	}
	id, err := strconv.ParseUint(fields[2], 10, 32)
	return int(id), err == nil
}
