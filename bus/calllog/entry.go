package calllog

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
)

// maxText bounds a text in an entry, in bytes. Peers choose most of them.
const maxText = 256

// maxLine limits a line: all texts at their maximum and fully escaped.
const maxLine = 32 << 10

// bound hides secrets in the message, and cuts texts that are too long. It copies the rest, so that a queued entry does
// not keep the whole text in memory.
func bound(e *bus.LogEntry) {
	e.Message = args.HideSecrets(e.Message)
	for _, s := range [...]*string{&e.Event, &e.Call, &e.Relayed, &e.Caller, &e.From, &e.Function, &e.Worker, &e.Source, &e.Code, &e.Message, &e.Name, &e.Serial} {
		if t := cut(*s); len(t) < len(*s) {
			*s = strings.Clone(t)
		}
	}
}

// cut shortens a text to maxText bytes, not within a character.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// AppendLine appends an entry as a line of JSON.
func AppendLine(dst []byte, e *bus.LogEntry) []byte {
	return append(appendEntry(dst, e, false), '\n')
}

// appendEntry appends an entry as a JSON object. It does not use encoding/json, which
// takes several times as long: the log is busiest when the node is. A copy for --log has
// the field names promised there: id for call, and caller and worker even if they are
// empty.
func appendEntry(dst []byte, e *bus.LogEntry, copied bool) []byte {
	dst = strconv.AppendUint(append(dst, `{"seq":`...), e.Seq, 10)
	dst = e.Time.UTC().AppendFormat(append(dst, `,"time":"`...), "2006-01-02T15:04:05.000000Z\"")
	dst = appendField(dst, `,"event":`, e.Event, true)
	if copied {
		dst = appendField(dst, `,"id":`, e.Call, true)
	} else {
		dst = appendField(dst, `,"call":`, e.Call, false)
	}
	dst = appendField(dst, `,"relayed":`, e.Relayed, false)
	dst = appendField(dst, `,"caller":`, e.Caller, copied)
	dst = appendField(dst, `,"from":`, e.From, false)
	dst = appendField(dst, `,"function":`, e.Function, false)
	dst = appendField(dst, `,"worker":`, e.Worker, copied)
	if e.Event == EventCall {
		dst = appendSeconds(append(dst, `,"waited":`...), e.Waited)
		dst = appendSeconds(append(dst, `,"ran":`...), e.Ran)
		dst = strconv.AppendInt(append(dst, `,"in":`...), e.In, 10)
		dst = strconv.AppendInt(append(dst, `,"out":`...), e.Out, 10)
	}
	dst = appendField(dst, `,"source":`, e.Source, false)
	if e.Event == EventCall || e.Status != 0 {
		dst = strconv.AppendInt(append(dst, `,"status":`...), int64(e.Status), 10)
	}
	dst = appendField(dst, `,"code":`, e.Code, false)
	dst = appendField(dst, `,"message":`, e.Message, false)
	dst = appendField(dst, `,"trace":`, e.Trace, false)
	dst = appendField(dst, `,"name":`, e.Name, false)
	dst = appendField(dst, `,"serial":`, e.Serial, false)
	if e.More > 0 {
		dst = strconv.AppendUint(append(dst, `,"more":`...), e.More, 10)
	}
	if e.Dropped > 0 {
		dst = strconv.AppendUint(append(dst, `,"dropped":`...), e.Dropped, 10)
	}
	return append(dst, '}')
}

func appendField(dst []byte, name, value string, always bool) []byte {
	if value == "" && !always {
		return dst
	}
	return appendText(append(dst, name...), value)
}

// appendSeconds appends a number of seconds, to the microsecond.
func appendSeconds(dst []byte, s float64) []byte {
	if !(s > 0 && s < 1e12) { // a clock that was set back, or NaN, must not break the line
		return append(dst, '0')
	}
	return strconv.AppendFloat(dst, math.Round(s*1e6)/1e6, 'f', -1, 64)
}

// appendText appends a JSON string of valid UTF-8, with every control character
// escaped, so that the file itself can be shown on a terminal.
func appendText(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return append(dst[:len(dst)-1], args.SafeJSON(args.AppendString(nil, []byte(s)))...)
		}
	}
	return append(append(dst, s...), '"')
}
