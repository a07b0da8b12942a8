package commands

import (
	"errors"
	"fmt"

	"fbus/bus/args"
	"fbus/bus/jobs"

	"github.com/urfave/cli/v2"
)

// jobOptions are the options for posted calls.
type jobOptions struct {
	max   int
	spool sizeValue
}

func newJobOptions() jobOptions {
	return jobOptions{max: jobs.DefaultMaxJobs, spool: sizeValue{jobs.DefaultMaxSpool}}
}

func (o *jobOptions) flags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "max-jobs", Usage: "keep at most `N` posted calls, their results included", DefaultText: fmt.Sprint(jobs.DefaultMaxJobs), Destination: &o.max},
		&cli.GenericFlag{Name: "max-spool", Usage: "and at most `SIZE` of their arguments, input and output", DefaultText: "16G", Value: &o.spool},
	}
}

func (o *jobOptions) check() error {
	if o.max < 1 {
		return usage("--max-jobs must be at least 1, not %d", o.max)
	}
	return nil
}

// open opens the store of jobs. If that fails, the node works without it and retries
// while it runs. An untrusted directory, or one used by another node, is an error.
func (o *jobOptions) open(network string, warn func(string, ...any)) (*jobs.Manager, error) {
	place := func() (string, error) { return networkState(network, "jobs") }
	var disk *args.Error
	if _, err := place(); err != nil && !(errors.As(err, &disk) && disk.Code == args.CodeStorage) {
		warn("nothing can be posted: %v", err)
		return nil, err
	}
	m, err := jobs.Open(jobs.Config{Place: place, Patient: true, MaxJobs: int64(o.max), MaxSpool: o.spool.n, Warn: warn})
	var locked *jobs.LockedError
	if errors.As(err, &locked) {
		return nil, &args.Error{Code: args.CodeInternal, Err: locked, Hint: "a second node of this user needs another network: fbus serve --network ID"}
	}
	return m, err
}
