package commands

import (
	"os"

	"golang.org/x/sys/unix"
)

// What a program at work takes of the worker's limits, and what the worker itself does.
const (
	filesEach   = 4  // its stdin, stdout and stderr, and its keeper
	filesKept   = 1  // more, for one that is kept
	filesOther  = 24 // the connection, the runtime, and a program that is being started
	threadsEach = 8  // a keeper's, and its program
	threadsOwn  = 16
)

// warnOfLimits warns if the slots of all functions need more than the limits allow. The
// functions work all the same, with as many programs at once as there is room for.
func warnOfLimits(list []*function, log func(string, ...any)) {
	slots, files := 0, 0
	for _, f := range list {
		processes := f.calls / max(1, f.pipeline.n)
		slots += processes
		each := filesEach
		if f.resident != "" || f.warm.set {
			each += filesKept
		}
		if f.replyFD.set || f.progressFD.set {
			each++
		}
		files += processes * each
	}
	name := "all functions"
	if len(list) == 1 {
		name = list[0].name
	}
	for _, l := range []struct {
		resource int
		need     int
		what     string
		hint     string
	}{
		{unix.RLIMIT_NOFILE, files + filesOther, "open files", "ulimit -n, or LimitNOFILE= of a service, sets it"},
		{unix.RLIMIT_NPROC, slots*threadsEach + threadsOwn, "processes and threads", "ulimit -u, or LimitNPROC= of a service, sets it"},
	} {
		var limit unix.Rlimit
		if l.resource == unix.RLIMIT_NPROC && os.Geteuid() == 0 { // it does not bind root
			continue
		}
		if unix.Getrlimit(l.resource, &limit) == nil && uint64(l.need) > limit.Cur {
			log("%s: %s may need %d %s, and the limit is %d", name, plural(slots, "slot"), l.need, l.what, limit.Cur)
			log("hint: fewer --slots, or a higher limit: %s", l.hint)
		}
	}
}
