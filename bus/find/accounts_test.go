package find

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestGroups: the groups of an account are the first one, and those that name it.
func TestGroups(t *testing.T) {
	was := etc
	defer func() { etc = was }()
	etc = t.TempDir() + "/"
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\nann:x:4711:100:Ann:/home/ann:/bin/sh\nbob:x:4712:101::/:/bin/sh\n",
		"group":  "users:x:100:\nstaff:x:101:bob,ann\nannex:x:102:annex\nlab:x:103:ann\nbroken\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for uid, want := range map[int]string{4711: "[100 101 103]", 4712: "[101 101]"} {
		if gids, err := Groups(uid); err != nil || fmt.Sprint(gids) != want {
			t.Errorf("uid %d: %v, %v", uid, gids, err)
		}
	}
	t.Setenv("PATH", "/nowhere")
	if gids, err := Groups(999999); len(gids) != 0 || err != nil {
		t.Errorf("without an account and getent: %v, %v", gids, err)
	}
	if err := os.WriteFile(filepath.Join(etc, "group"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	recent.began = time.Time{}
	if gids, err := Groups(4711); err != nil || fmt.Sprint(gids) != "[100]" {
		t.Errorf("a second later: %v, %v", gids, err)
	}
}

// TestPrivateGroup: a group is private if it has its user's name, and nobody else is in
// it, by either database.
func TestPrivateGroup(t *testing.T) {
	was := etc
	defer func() { etc = was }()
	etc = t.TempDir() + "/"
	for name, text := range map[string]string{
		"passwd": "ann:x:1:1::/:\nbob:x:2:2::/:\ncid:x:3:3::/:\neve:x:4:3::/:\n",
		"group":  "ann:x:1:\nbob:x:2:bob,ann\ncid:x:3:\nstaff:x:5:\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for user, gid := range map[string]int{"ann": 1, "bob": 2, "cid": 3, "eve": 5, "dan": 6} {
		if got := PrivateGroup(user, gid); got != (user == "ann") {
			t.Errorf("%s, group %d: %v", user, gid, got)
		}
	}
}
