package exec

import "testing"

// What a program is told of the job that it works on; FBUS_PARENT_* only where
// another job's end has posted it.
func TestJobEnvironment(t *testing.T) {
	t.Parallel()
	f := sh(t, "env | grep -E 'FBUS_(JOB|ATT|PAR)' | sort; cat")
	job := Call{Job: "01B", Attempt: 3, Input: []byte("in")}
	check(t, runCall(t.Context(), f, &job), programExit(0), "FBUS_ATTEMPT=3\nFBUS_JOB_ID=01B\nin")
	job.Origin = `{"id":"01A","function":"wc","status":65,"attempts":2}`
	check(t, runCall(t.Context(), f, &job), programExit(0), "FBUS_ATTEMPT=3\nFBUS_JOB_ID=01B\n"+
		"FBUS_PARENT_ATTEMPTS=2\nFBUS_PARENT_FUNCTION=wc\nFBUS_PARENT_ID=01A\nFBUS_PARENT_STATUS=65\nin")
	check(t, runCall(t.Context(), f, &Call{}), programExit(0), "")
}

// A resident program with JSON-RPC has the same, and the output, as parameters.
func TestJobParameters(t *testing.T) {
	f := offerRPC(t)
	const origin = `{"id":"01A","function":"wc","status":0,"attempts":1}`
	for output, want := range map[string]string{
		"":           `"output":""`,
		"a\n\"ü\"\n": `"output":"a\n\"ü\"\n"`,
		"\xff\x00":   `"output":"/wA=","encoding":"base64"`,
	} {
		got := runCall(t.Context(), f, &Call{Job: "01B", Attempt: 1, Origin: origin, Input: []byte(output)})
		check(t, got, programExit(0), `{"id":"01A","function":"wc","status":0,"attempts":1,`+want+"}\n")
	}
}
