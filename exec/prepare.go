package exec

import (
	"strings"

	"fbus/bus/args"
)

// maxWord is the kernel's limit for one word of a command line, less its NUL.
const maxWord = 128<<10 - 1

// prepare turns what a caller sent into what the program gets. Whatever the
// program cannot take is found here, before anything starts.
func (f *Function) prepare(c *Call) (input, error) {
	if c.Kind == args.KindRaw && f.spec.Args == ArgsStdin {
		return input{data: c.Input, rest: c.Rest}, nil
	}
	v, err := args.Decode(c.Kind, c.Args)
	if err != nil {
		return input{}, err
	}
	if f.spec.Args == ArgsArgv {
		return f.prepareArgv(c, v)
	}
	if c.HasInput {
		return input{}, args.BadInput("takes its arguments on stdin; it can take no input beside them")
	}
	data, err := v.Encode(f.spec.Encoding)
	return input{data: data}, err
}

func (f *Function) prepareArgv(c *Call, v *args.Values) (input, error) {
	flat, err := v.Flat()
	if err != nil {
		return input{}, err
	}
	argv, err := f.words.expand(flat, f.spec.AllowOptions)
	if err != nil {
		return input{}, err
	}
	for i, w := range argv[1:] {
		switch {
		case len(w) > maxWord:
			return input{}, args.BadInput("word %d of the command line is %d bytes long, the system takes %d", i+1, len(w), maxWord)
		case strings.IndexByte(w, 0) >= 0:
			return input{}, args.BadInput("an argument holds a NUL byte, which a command line cannot")
		}
	}
	in := input{argv: argv}
	if c.Kind == args.KindRaw || c.HasInput {
		in.data, in.rest = c.Input, c.Rest
	} else {
		in.null = true
	}
	return in, nil
}
