package journal

import (
	"hash/crc32"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fbus/bus"
)

// Events that entries are of. A reader takes others as they come.
const (
	EventCall    = "call"    // a call has ended
	EventRefused = "refused" // somebody was not let in
	EventDropped = "dropped" // entries are missing here
)

// Entry is one line.
type Entry = bus.LogEntry

// maxText bounds a text in an entry, in bytes. Peers have a say in most of them.
const maxText = 256

// maxLine bounds a line: all texts as long as they may be, all escaped.
const maxLine = 32 << 10

// bound cuts what is too long. A copy is made of what is left, so that an entry
// that waits does not hold the whole.
func bound(e *Entry) {
	for _, s := range [...]*string{&e.Event, &e.Call, &e.Caller, &e.From, &e.Function, &e.Worker, &e.Source, &e.Code, &e.Message, &e.Name, &e.Serial} {
		if len(*s) > maxText {
			*s = strings.Clone(cut(*s))
		}
	}
}

// cut shortens a text to maxText bytes, not within a character.
func cut(s string) string {
	n := maxText
	for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// AppendLine appends an entry as a line of JSON.
func AppendLine(dst []byte, e *Entry) []byte {
	var enc encoder
	return append(enc.entry(dst, e), '\n')
}

// encoder writes entries. By hand, because the node's busiest moment is the
// journal's too: encoding/json takes several times as long.
type encoder struct {
	second int64  // that prefix is of
	prefix []byte // a time up to its seconds: most entries share it with the one before
}

// sumPrefix and sumSize are of the end of a line on the disk, a checksum of what
// stands before it: "crc":"01234567"}
const (
	sumPrefix = `,"crc":"`
	sumSize   = len(sumPrefix) + 8 + len(`"}`)
)

// line appends an entry as it stands on the disk: with a checksum.
func (enc *encoder) line(dst []byte, e *Entry) []byte {
	start := len(dst)
	dst = enc.entry(dst, e)
	dst = dst[:len(dst)-1] // the brace comes back behind the sum
	sum := checksum(dst[start:])
	return append(appendSum(dst, sum), '\n')
}

func appendSum(dst []byte, sum uint32) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, sumPrefix...)
	for shift := 28; shift >= 0; shift -= 4 {
		dst = append(dst, hex[sum>>shift&15])
	}
	return append(dst, `"}`...)
}

// checksum is CRC-32C. Its table is made when a journal is first used: a process
// that only calls functions must not pay for it.
func checksum(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

// intact reports whether a line without its newline is as it was written.
func intact(line []byte) bool {
	if len(line) <= sumSize || line[0] != '{' {
		return false
	}
	body := line[:len(line)-sumSize]
	var want [sumSize]byte
	return string(appendSum(want[:0], checksum(body))) == string(line[len(body):])
}

func (enc *encoder) entry(dst []byte, e *Entry) []byte {
	dst = strconv.AppendUint(append(dst, `{"seq":`...), e.Seq, 10)
	dst = enc.time(append(dst, `,"time":`...), e.Time)
	dst = appendText(append(dst, `,"event":`...), e.Event)
	dst = appendField(dst, `,"call":`, e.Call)
	dst = appendField(dst, `,"caller":`, e.Caller)
	dst = appendField(dst, `,"from":`, e.From)
	dst = appendField(dst, `,"function":`, e.Function)
	dst = appendField(dst, `,"worker":`, e.Worker)
	if e.Event == EventCall {
		dst = appendSeconds(append(dst, `,"waited":`...), e.Waited)
		dst = appendSeconds(append(dst, `,"ran":`...), e.Ran)
		dst = strconv.AppendInt(append(dst, `,"in":`...), e.In, 10)
		dst = strconv.AppendInt(append(dst, `,"out":`...), e.Out, 10)
	}
	dst = appendField(dst, `,"source":`, e.Source)
	if e.Event == EventCall || e.Status != 0 {
		dst = strconv.AppendInt(append(dst, `,"status":`...), int64(e.Status), 10)
	}
	dst = appendField(dst, `,"code":`, e.Code)
	dst = appendField(dst, `,"message":`, e.Message)
	dst = appendField(dst, `,"name":`, e.Name)
	dst = appendField(dst, `,"serial":`, e.Serial)
	if e.Dropped > 0 {
		dst = strconv.AppendUint(append(dst, `,"dropped":`...), e.Dropped, 10)
	}
	return append(dst, '}')
}

// time appends a time in UTC with microseconds (RFC 3339).
func (enc *encoder) time(dst []byte, t time.Time) []byte {
	if second := t.Unix(); second != enc.second || enc.prefix == nil {
		enc.second = second
		enc.prefix = t.UTC().AppendFormat(enc.prefix[:0], `"2006-01-02T15:04:05.`)
	}
	dst = append(dst, enc.prefix...)
	dst = appendMicros(dst, uint64(t.Nanosecond()/1000))
	return append(dst, `Z"`...)
}

// appendMicros appends six digits.
func appendMicros(dst []byte, n uint64) []byte {
	for div := uint64(100000); div > 0; div /= 10 {
		dst = append(dst, byte('0'+n/div%10))
	}
	return dst
}

// appendSeconds appends a number of seconds, to the microsecond.
func appendSeconds(dst []byte, s float64) []byte {
	if !(s > 0) { // NaN too: a clock that was set back is no reason for a broken line
		return append(dst, '0')
	}
	micros := uint64(math.Round(min(s, 1e12) * 1e6))
	dst = strconv.AppendUint(dst, micros/1e6, 10)
	if micros%1e6 == 0 {
		return dst
	}
	dst = appendMicros(append(dst, '.'), micros%1e6)
	for dst[len(dst)-1] == '0' {
		dst = dst[:len(dst)-1]
	}
	return dst
}

func appendField(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	return appendText(append(dst, name...), value)
}

// appendText appends a JSON string of valid UTF-8, with every control character
// escaped, so that the file itself can be shown on a terminal.
func appendText(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return append(appendEscaped(append(dst, s[:i]...), s[i:]), '"')
		}
	}
	return append(append(dst, s...), '"')
}

func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	for _, r := range s { // bytes that are not UTF-8 become U+FFFD
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029':
			dst = append(dst, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		default:
			dst = utf8.AppendRune(dst, r)
		}
	}
	return dst
}
