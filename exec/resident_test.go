package exec

import (
	"strings"
	"testing"
)

const upper = `while read -r line; do echo "got $line"; done`

func lineMode(s *Spec) { s.Resident = LineByLine; s.Slots = 2 }
func rpcMode(s *Spec)  { s.Resident = JSONRPC; s.Slots = 2 }

func said(out string) Result {
	return Result{Source: SourceProgram, Code: "exit", Output: []byte(out)}
}

func TestLineByLine(t *testing.T) {
	f := sh(t, upper, lineMode)
	for _, in := range []string{"a\n", "b", ""} {
		check(t, runCall(t.Context(), f, &Call{Input: []byte(in)}), programExit(0), "got "+strings.TrimSpace(in)+"\n")
	}
	check(t, runCall(t.Context(), f, list(t, "x y")), programExit(0), "got x y\n")
}

func TestRPC(t *testing.T) {
	f := offer(t, Spec{Resident: JSONRPC, Slots: 1, Argv: []string{"python3", "-c", `
import sys, json
for line in sys.stdin:
    m = json.loads(line)
    print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": m["params"]}))
`}})
	for range 3 {
		check(t, runCall(t.Context(), f, list(t, "x y", doc("17"))), programExit(0), "[\"x y\",17]\n")
	}
}
