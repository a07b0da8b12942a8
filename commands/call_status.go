package commands

import (
	"encoding/json"
	"errors"
	"os"
)

// callEnd is how a call ended, as --status-fd writes it.
type callEnd struct {
	Source string `json:"source"` // "program", "signal" or "fbus"
	Status int    `json:"status"` // exit status
	Code   string `json:"code"`   // "exit", a signal's name, or fbus's code
	Call   string `json:"call"`   // the call's id, empty if it never had one
}

// statusOut is where --status-fd and --status-file write.
type statusOut struct {
	f    *os.File
	path string
}

func openStatus(o *callOptions) (*statusOut, error) {
	switch {
	case o.hasFD:
		f := os.NewFile(uintptr(o.statusFD), "status-fd")
		if o.statusFD < 0 || f == nil {
			return nil, usage("--status-fd %d: no such descriptor", o.statusFD)
		}
		if _, err := f.Stat(); err != nil {
			return nil, usage("--status-fd %d: the descriptor is not open", o.statusFD).withHint("fbus call --status-fd %d … %d>status.json", o.statusFD, o.statusFD)
		}
		return &statusOut{f: f}, nil
	case o.statusTo != "":
		f, err := os.OpenFile(o.statusTo, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
		if err != nil {
			return nil, usage("--status-file %v", pathReason(err))
		}
		return &statusOut{f: f, path: o.statusTo}, nil
	}
	return nil, nil
}

func (s *statusOut) write(end callEnd) error {
	if s == nil {
		return nil
	}
	line, err := json.Marshal(end)
	if err != nil {
		return err
	}
	_, err = s.f.Write(append(line, '\n'))
	if s.path != "" {
		err = errors.Join(err, s.f.Close())
	}
	return err
}
