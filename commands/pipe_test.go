package commands

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"fbus/bus/fanout"
)

func TestPipeReadLine(t *testing.T) {
	r := bufio.NewReaderSize(strings.NewReader("short\n"+strings.Repeat("x", 100)+"\n"+strings.Repeat("y", 50)+"\nlast"), 16)
	var got []string
	for {
		line, err := fanout.ReadLine(r, '\n', 50)
		if err == fanout.ErrLongLine {
			for err == fanout.ErrLongLine {
				_, err = fanout.ReadLine(r, '\n', 50)
			}
			line = []byte("LONG\n")
		}
		got = append(got, string(line))
		if err != nil {
			if err != io.EOF {
				t.Fatal(err)
			}
			break
		}
	}
	if want := []string{"short\n", "LONG\n", strings.Repeat("y", 50) + "\n", "last"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q", got)
	}
}

func TestPipeStderr(t *testing.T) {
	var through bytes.Buffer
	s := &pipeStderr{w: &through}
	var all strings.Builder
	for i := range 20000 {
		line := fmt.Sprintf("line %d\n", i)
		all.WriteString(line)
		s.Write([]byte(line))
	}
	tail := s.tail()
	if len(tail) > maxStderrTail || len(tail) < maxStderrTail-20 || !strings.HasPrefix(tail, "line ") {
		t.Errorf("%d bytes are kept: %.20q", len(tail), tail)
	}
	s.flush()
	if through.String() != all.String() {
		t.Error("what was passed on is not what was written")
	}
	s.Write([]byte(strings.Repeat("x", 2*maxStderrTail)))
	if len(s.tail()) != maxStderrTail {
		t.Errorf("%d bytes of a long line are kept", len(s.tail()))
	}
}
