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
	found := -1
	listed(database, func(fields []string) bool {
		if id, ok := idOf(fields, name); ok {
			found = id
		}
		return found < 0
	})
	if found < 0 {
		line, _ := getent(database, name)
		id, ok := idOf(strings.Split(line, ":"), name)
		if !ok {
			return 0, fmt.Errorf("unknown %s %s", kind, name)
		}
		found = id
	}
	return found, nil
}

// recent has the groups that were looked up in the last second.
var recent struct {
	mu     sync.Mutex // protects the fields below
	began  time.Time
	groups map[int][]int
}

// Groups returns the groups of a user as the accounts of this machine are now, or were a
// second ago. Without an account there are none.
func Groups(uid int) ([]int, error) {
	recent.mu.Lock()
	defer recent.mu.Unlock()
	if recent.groups == nil || time.Since(recent.began) > time.Second {
		recent.groups, recent.began = map[int][]int{}, time.Now()
	}
	gids, ok := recent.groups[uid]
	if ok {
		return slices.Clone(gids), nil
	}
	gids, err := lookUpGroups(uid)
	if err == nil {
		recent.groups[uid] = slices.Clone(gids)
	}
	return gids, err
}

func lookUpGroups(uid int) (gids []int, err error) {
	var account []string
	listed("passwd", func(fields []string) bool {
		if len(fields) > 3 && fields[2] == strconv.Itoa(uid) {
			account = fields
		}
		return account == nil
	})
	directory := account == nil
	if directory {
		line, err := getent("passwd", strconv.Itoa(uid))
		if account = strings.Split(line, ":"); err != nil || len(account) < 4 {
			return nil, err
		}
	}
	numbers := []string{account[3]}
	listed("group", func(fields []string) bool {
		if len(fields) > 3 && slices.Contains(strings.Split(fields[3], ","), account[0]) {
			numbers = append(numbers, fields[2])
		}
		return true
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
	id, group, private := strconv.Itoa(gid), false, true
	listed("group", func(fields []string) bool {
		if len(fields) > 3 && fields[2] == id {
			group = true
			private = private && fields[0] == user && (fields[3] == "" || fields[3] == user)
		}
		return private
	})
	listed("passwd", func(fields []string) bool {
		private = private && (len(fields) < 4 || fields[3] != id || fields[0] == user)
		return private
	})
	return group && private
}

var etc = "/etc/" // a test has its own

// listed calls each with the lines of a database in /etc until it returns false.
func listed(database string, each func(fields []string) bool) {
	f, err := os.Open(etc + database)
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan() && each(strings.Split(lines.Text(), ":")); {
	}
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
