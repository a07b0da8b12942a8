package exec

import (
	"strings"
)

// maxWord is the kernel's limit for one word of a command line, less its NUL.
const maxWord = 128<<10 - 1

// prepare turns what a caller sent into what the program gets. Whatever the
// program cannot take is found here, before anything starts.
func (f *Function) prepare(c *Call) (input, error) {
	if c.Kind == KindRaw && f.spec.Args == ArgsStdin {
		return input{data: c.Input, rest: c.Rest}, nil
	}
	args, err := decodeArguments(c.Kind, c.Args)
	if err != nil {
		return input{}, err
	}
	if f.spec.Args == ArgsArgv {
		return f.prepareArgv(c, &args)
	}
	if c.HasInput {
		return input{}, badInput("takes its arguments on stdin; it can take no input beside them")
	}
	data, err := encodeStdin(f.spec.Encoding, &args)
	return input{data: data}, err
}

func encodeStdin(e Encoding, a *arguments) ([]byte, error) {
	switch e {
	case Msgpack:
		return encodeMsgpack(a)
	case Lines:
		return encodeText(a, '\n')
	case NUL:
		return encodeText(a, 0)
	}
	return encodeJSON(a)
}

func (f *Function) prepareArgv(c *Call, a *arguments) (input, error) {
	flat, err := a.flat()
	if err != nil {
		return input{}, err
	}
	argv, err := f.words.expand(&flat, f.spec.AllowOptions)
	if err != nil {
		return input{}, err
	}
	for i, w := range argv[1:] {
		switch {
		case len(w) > maxWord:
			return input{}, badInput("word %d of the command line is %d bytes long, the system takes %d", i+1, len(w), maxWord)
		case strings.IndexByte(w, 0) >= 0:
			return input{}, badInput("an argument holds a NUL byte, which a command line cannot")
		}
	}
	in := input{argv: argv}
	if c.Kind == KindRaw || c.HasInput {
		in.data, in.rest = c.Input, c.Rest
	} else {
		in.null = true
	}
	return in, nil
}
