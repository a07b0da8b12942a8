package exec

import (
	"errors"
	"strings"
	"testing"

	"fbus/bus/args"
)

func TestExpand(t *testing.T) {
	tests := []struct {
		name string
		argv []string
		call *Call
		want string // words joined by |, or isBad and a part of the message
	}{
		{"appended", []string{"p", "x"}, list(t, "a", "b c"), "p|x|a|b c"},
		{"fields appended", []string{"p"}, fields(t, "k", "v", "n", doc("1.10")), "p|k=v|n=1.10"},
		{"array appended", []string{"p"}, document(`["a",{"b": [1, 2]},null]`), `p|a|{"b":[1,2]}|null`},
		{"object appended", []string{"p"}, document(`{"b":1,"a":"x"}`), "p|b=1|a=x"},
		{"scalar appended", []string{"p"}, document(`"x"`), "p|x"},
		{"none", []string{"p", "x"}, &Call{}, "p|x"},
		{"all", []string{"p", "{}", "end"}, list(t, "a", "b"), "p|a|b|end"},
		{"all of none", []string{"p", "{}", "end"}, &Call{}, "p|end"},
		{"all fields", []string{"p", "{}"}, fields(t, "a", "1"), "p|a=1"},
		{"one", []string{"convert", "-", "-resize", "{1}", "png:-"}, list(t, "20%"), "convert|-|-resize|20%|png:-"},
		{"within", []string{"p", "--size={1}x{2}", "png:{1}"}, list(t, "3", "4"), "p|--size=3x4|png:3"},
		{"within spaces", []string{"p", "size {1} of {name-x}"}, list(t, "3"), isBad + `field "name-x" is missing`},
		{"field", []string{"p", "out/{name}.png"}, fields(t, "name", "x"), "p|out/x.png"},
		{"embedded all", []string{"p", "a{}b"}, list(t, "-x"), "p|a-xb"},
		{"embedded all of two", []string{"p", "a{}b"}, list(t, "x", "y"), isBad + "takes 1 argument, got 2"},
		{"missing argument", []string{"p", "{2}"}, list(t, "a"), isBad + "argument 2 is missing"},
		{"no arguments at all", []string{"p", "{1}"}, &Call{}, isBad + "argument 1 is missing"},
		{"missing field", []string{"p", "{a}"}, fields(t), isBad + `field "a" is missing`},
		{"too many", []string{"p", "{1}", "{2}"}, list(t, "a", "b", "c"), isBad + "takes 2 arguments, got 3"},
		{"unused field", []string{"p", "{a}"}, fields(t, "a", "1", "b", "2"), isBad + `field "b" has no use`},
		{"unused with all", []string{"p", "{1}", "{}"}, list(t, "a", "b"), "p|a|a|b"},
		{"option", []string{"p"}, list(t, "-rf"), isBad + "`allow-options`"},
		{"dash alone", []string{"p", "{1}"}, list(t, "-"), isBad + "begins with"},
		{"option in the middle", []string{"p", "png:{1}"}, list(t, "-x"), "p|png:-x"},
		{"option put together", []string{"p", "{1}{2}"}, list(t, "", "-x"), isBad + "begins with"},
		{"option as a field's name", []string{"p"}, fields(t, "--x", "1"), isBad + "begins with"},
		{"the offer's own dash", []string{"p", "-{1}"}, list(t, "x"), "p|-x"},
		{"NUL", []string{"p", "{1}"}, list(t, "a\x00b"), isBad + "NUL"},
		{"long word", []string{"p", "{1}"}, list(t, strings.Repeat("a", maxWord+1)), isBad + "131072 bytes long"},
		{"code is literal", []string{"p", `a{1}+`, `${name}`, `x{a,b}`, `{"a":1}`, "{0}", "{}"}, list(t, "z"), `p|a{1}+|${name}|x{a,b}|{"a":1}|{0}|z`},
		{"jq", []string{"jq", "{name}", "{1}"}, list(t, "f"), "jq|{name}|f"},
		{"awk", []string{"awk", "{print}", "{1}"}, list(t, "f"), "awk|{print}|f"},
		{"sh", []string{"sh", "-c", `echo "$1"`, "sh", "{1}"}, list(t, "a;b"), `sh|-c|echo "$1"|sh|a;b`},
		{"sh all", []string{"sh", "-c", `echo "$@"`, "sh", "{}"}, list(t, "a", "b"), `sh|-c|echo "$@"|sh|a|b`},
		{"script", []string{"python3", "x.py", "-c", "{1}", "--out={2}", "a{1}"}, list(t, "a", "b"), "python3|x.py|-c|a|--out=b|a{1}"},
		{"perl regex", []string{"perl", "-ne", "print if /^a{2} b/", "{1}"}, list(t, "f"), "perl|-ne|print if /^a{2} b/|f"},
		{"sed", []string{"sed", "-n", "-e", "s/a{2}/b/", "{1}"}, list(t, "f"), "sed|-n|-e|s/a{2}/b/|f"},
		{"jq arg", []string{"jq", "-r", "--arg", "v", "{1}", ".[$v]"}, list(t, "f"), "jq|-r|--arg|v|f|.[$v]"},
		{"perl after --", []string{"perl", "-e", "print @ARGV", "--", "{1}"}, list(t, "f"), "perl|-e|print @ARGV|--|f"},
		{"sh as a word", []string{"grep", "sh", "{1}"}, list(t, "f"), "grep|sh|f"},
		{"find", []string{"find", "{1}", "-name", "x.{2}", "-exec", "grep", "-l", "x", "{}", "+"}, list(t, "d", "c"), "find|d|-name|x.c|-exec|grep|-l|x|{}|+"},
		{"xargs", []string{"xargs", "-n", "{1}", "grep", "-l", "{2}"}, list(t, "3", "x"), "xargs|-n|3|grep|-l|x"},
		{"wrappers", []string{"env", "A={1}", "nice", "-n", "{2}", "timeout", "-k", "1", "{3}", "grep", "{4}"}, list(t, "v", "5", "9", "x"), "env|A=v|nice|-n|5|timeout|-k|1|9|grep|x"},
		{"git", []string{"git", "-C", "{1}", "switch", "-c", "{2}"}, list(t, "d", "b"), "git|-C|d|switch|-c|b"},
		{"tar", []string{"tar", "-C", "/srv/{1}", "-czf", "-", "{2}"}, list(t, "a", "b"), "tar|-C|/srv/a|-czf|-|b"},
		{"parallel", []string{"parallel", "gzip", ":::", "{}"}, list(t, "a", "b"), "parallel|gzip|:::|a|b"},
		{"flock", []string{"flock", "{1}", "grep", "{2}"}, list(t, "l", "x"), "flock|l|grep|x"},
		{"sqlite3", []string{"sqlite3", "{1}.db", "select 1"}, list(t, "a"), "sqlite3|a.db|select 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := Spec{Name: "f", Argv: tt.argv, Args: ArgsArgv}
			words, err := parseTemplate(&spec)
			if err != nil {
				t.Fatal(err)
			}
			f := &Function{spec: spec, words: words}
			in, err := f.prepare(tt.call)
			checkBad(t, tt.want, err)
			if got := strings.Join(in.argv, "|"); err == nil && got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestRefusedTemplates(t *testing.T) {
	for _, argv := range [][]string{
		{"sh", "-c", "echo {1}"},
		{"sh", "-c", `echo "{1}"`},
		{"sh", "-c", "{1}"},
		{"sh", "-c", "{}"},
		{"bash", "-lc", "{1}"},
		{"env", "A=b", "timeout", "3", "/bin/dash", "-e", "-c", "{1}"},
		{"perl", "-I", "lib", "-e", "{1}"},
		{"python3.12", "-W", "ignore", "-c", "{1}"},
		{"su", "nobody", "-c", "{1}"},
		{"awk", "-F", ":", "{1}"},
		{"sed", "-e", "{1}"},
		{"jq", "-r", "{1}"},
		{"ssh", "host", "ls", "{1}"},
		{"ssh", "host", "ls"},
		{"sh", "{1}"}, {"bash", "-x", "{1}"}, {"python3", "-m", "{1}"}, {"perl"}, {"expect", "-c", "{1}"},
		{"runuser", "nobody", "-c", "{1}"}, {"eval", "{1}"},
		{"watch", "{1}"}, {"watch", "-n1", "ls {name}"}, {"watch"}, {"make", "{1}"}, {"make", "CC={1}"}, {"parallel", "{1}", ":::", "a"},
		{"script", "-c", "{1}"}, {"script", "-qc{1}", "-c{1}"}, {"script", "--command={1}"},
		{"find", ".", "-exec", "{1}", ";"}, {"find", ".", "-execdir", "sh", "-c", "{1}", ";"}, {"find", ".", "-ok", "env", "{1}", ";"},
		{"xargs", "{1}"}, {"xargs", "-0", "-n", "1", "{}"}, {"xargs"}, {"env", "A=b", "{1}"}, {"env", "-S", "{1}"}, {"env", "-u", "A", "{name}"},
		{"nohup", "{1}"}, {"nice", "-n", "5", "{1}"}, {"timeout", "5", "{1}"}, {"timeout", "-k", "1", "5", "xargs", "{1}"}, {"timeout", "5"},
		{"sudo", "-u", "a", "{1}"}, {"/usr/bin/setsid", "nice", "{1}"}, {"systemd-run", "--unit=a", "{1}"}, {"chroot", "/a", "{1}"},
		{"flock", "l", "-c", "{1}"}, {"flock", "l", "{1}"},
		{"git", "-c", "{1}", "log"}, {"git", "-c", "alias.x={1}", "x"}, {"git", "{1}"},
		{"tar", "xf", "a", "--to-command", "{1}"}, {"tar", "xf", "a", "--to-command={1}"}, {"tar", "-I{1}", "-xf", "a"},
		{"rsync", "-e", "{1}", "a", "b:"}, {"vim", "-c", "{1}", "f"}, {"sqlite3", "a.db", "{1}"}, {"sqlite3", "-cmd", "{1}", "a.db"},
		{"psql", "-c", "{1}"}, {"gdb", "-ex", "{1}"}, {"sort", "--compress-program={1}"},
	} {
		spec := Spec{Name: "f", Argv: argv, Args: ArgsArgv}
		_, err := parseTemplate(&spec)
		var e *args.Error
		if !errors.As(err, &e) || e.Code != args.CodeUsage || e.Hint == "" {
			t.Errorf("%q: got %v, want a usage error with a hint", argv, err)
		}
		spec.Args, spec.ArgsSet = ArgsStdin, true
		if words, err := parseTemplate(&spec); err != nil || words.dynamic {
			t.Errorf("%q with --args stdin: %v %v", argv, words, err)
		}
	}
}

func TestArgumentsPhrase(t *testing.T) {
	for want, spec := range map[string]Spec{
		"JSON on stdin":                   {Argv: []string{"cat"}},
		"lines on stdin":                  {Argv: []string{"cat"}, Encoding: args.EncodeLines},
		"command line":                    {Argv: []string{"echo"}, Args: ArgsArgv},
		"command line: {1} {name}":        {Argv: []string{"echo", "{1}", "a{name}b{1}"}},
		"NUL-terminated strings on stdin": {Argv: []string{"cat"}, Encoding: args.EncodeNUL},
	} {
		if got := offer(t, spec).Arguments(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

const isBad = "\x00bad"

// checkBad holds an error against a wanted string that begins with isBad.
func checkBad(t *testing.T, want string, err error) {
	t.Helper()
	part, bad := strings.CutPrefix(want, isBad)
	switch {
	case !bad && err != nil:
		t.Fatalf("unexpected error: %v", err)
	case !bad:
	case err == nil:
		t.Fatalf("no error, want one about %q", part)
	case args.AsError(err, "").Code != args.CodeBadInput || !strings.Contains(err.Error(), part):
		t.Fatalf("got %+v, want bad input about %q", err, part)
	}
}
