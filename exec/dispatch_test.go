package exec

import (
	osexec "os/exec"
	"testing"
)

// A link to the binary may have any name; only a real keeper acts as one.
func TestDispatchByMoreThanName(t *testing.T) {
	for _, name := range []string{keeperName, limitName, "fbus"} {
		cmd := osexec.Command("/proc/self/exe", "child", "hello")
		cmd.Args[0] = name
		var out []byte
		forget, err := Adopt(func() (pid int, err error) {
			// Output waits too; nothing is swept meanwhile.
			out, err = cmd.Output()
			return 0, err
		})
		forget()
		if err != nil || string(out) != "hello\n" {
			t.Errorf("%s: %v, %q", name, err, out)
		}
	}
}

func TestParse(t *testing.T) {
	for _, e := range []Encoding{JSON, Msgpack, Lines, NUL} {
		if got, err := ParseEncoding(e.String()); got != e || err != nil {
			t.Errorf("%v: %v, %v", e, got, err)
		}
	}
	for _, m := range []ArgMode{ArgsStdin, ArgsArgv} {
		if got, err := ParseArgMode(m.String()); got != m || err != nil {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	if _, err := ParseEncoding("xml"); err == nil {
		t.Error("xml is an encoding")
	}
	if _, err := ParseArgMode("env"); err == nil {
		t.Error("env is an argument mode")
	}
}
