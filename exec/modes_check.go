package exec

import (
	"cmp"
	"fmt"

	"fbus/bus/args"
)

// checkModes finds what does not go together. By now placeholders have made
// Args what it is.
func checkModes(spec *Spec) error {
	switch {
	case spec.Warm < 0:
		return usage("", "`warm` must not be negative")
	case spec.Warm > 0 && spec.Resident != NotResident:
		return usage("leave `warm` out: a resident process is started once", "`warm` does not go with `resident`")
	case spec.Warm > 0 && spec.Args == ArgsArgv:
		return usage("read the arguments on stdin (`args stdin`), or leave `warm` out",
			"`warm` starts processes before their arguments are known, which `args argv` and placeholders put on the command line")
	case spec.Warm > 0 && spec.AllowOptions:
		return usage("leave `allow-options` out", "`allow-options` does not go with `warm`, which takes no arguments on the command line")
	case spec.Warm > 0 && spec.Slots > 0 && spec.Warm > spec.Slots:
		return usage(fmt.Sprintf("raise `slots`, or write `warm %d`", spec.Slots), "`warm %d` is more than `slots %d`", spec.Warm, spec.Slots)
	case spec.Resident < NotResident || spec.Resident > JSONRPC:
		return usage("", "`resident`: unknown protocol")
	case spec.Resident == NotResident:
		return checkNotResident(spec)
	}
	return checkResident(spec)
}

// checkNotResident finds what would have no effect.
func checkNotResident(spec *Spec) error {
	option := ""
	switch {
	case spec.Pipeline != 0:
		option = "pipeline"
	case spec.ReplyFD != 0:
		option = "reply-fd"
	case spec.MaxCalls != 0:
		option = "max-calls"
	case spec.MaxIdle != 0:
		option = "max-idle"
	default:
		return nil
	}
	return usage("add `resident lines` or `resident json`", "`%s` is about resident programs", option)
}

func checkResident(spec *Spec) error {
	switch {
	case spec.Args == ArgsArgv:
		return usage("read the arguments on stdin (`args stdin`), or leave `resident` out",
			"`resident` starts a process before its arguments are known, which `args argv` and placeholders put on the command line")
	case spec.AllowOptions:
		return usage("leave `allow-options` out", "`allow-options` does not go with `resident`, which takes no arguments on the command line")
	case spec.Encoding != args.EncodeJSON:
		return usage("leave `encoding` out", "`encoding %v` does not go with `resident %v`, which defines how arguments are written", spec.Encoding, spec.Resident)
	case spec.Pipeline < 0:
		return usage("", "`pipeline` must not be negative")
	case spec.Pipeline > 1 && spec.Resident == LineByLine:
		return usage("use `resident json`, whose answers name their calls", "`pipeline %d` does not go with `resident lines`", spec.Pipeline)
	case spec.ReplyFD != 0 && (spec.ReplyFD < 3 || spec.ReplyFD > 9):
		return usage("", "`reply-fd %d`: must be 3 to 9", spec.ReplyFD)
	case spec.MaxCalls < 0:
		return usage("", "`max-calls` must not be negative")
	case spec.MaxIdle < 0:
		return usage("", "`max-idle` must not be negative")
	}
	spec.Pipeline = cmp.Or(spec.Pipeline, 1)
	return nil
}
