package commands

import (
	"fmt"
	"io"

	"fbus/exec"
)

// upCheck prints the functions, or everything that is wrong.
func upCheck(o *upOptions, stdout, stderr io.Writer) error {
	config, wrong := o.read()
	if o.verbose && len(wrong) == 0 {
		for _, note := range config.notes {
			say(stderr, note)
		}
	}
	arguments := map[*function]string{}
	for _, f := range config.functions {
		phrase, err := f.try()
		if err != nil {
			wrong = append(wrong, f.at(err))
		}
		arguments[f] = phrase
	}
	if len(wrong) > 0 {
		wrong.order(o.config)
		return wrong.err()
	}
	if len(config.functions) == 0 {
		return nil
	}
	table(stdout, "NAME\tSLOTS\tMODE\tARGUMENTS\tCOMMAND", func(w io.Writer) {
		for _, f := range config.functions {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", f.name, f.calls, orDash(f.mode()), arguments[f], oneLine(join(f.argv)))
		}
	})
	return nil
}

// try checks whether the program can be offered, without starting it, and returns how
// its arguments arrive.
func (f *function) try() (arguments string, err error) {
	spec, err := f.spec(nil)
	if err != nil {
		return "", err
	}
	return exec.Check(spec)
}
