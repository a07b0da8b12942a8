package mcp

import (
	"bytes"
	"encoding/binary"
	"image"
	_ "image/gif"  // headers of GIF
	_ "image/jpeg" // of JPEG
	_ "image/png"  // of PNG
	"net/http"
	"strings"
	"unicode/utf8"
)

const binaryType = "application/octet-stream"

// mediaType returns the type of an output; empty: text. Clients refuse a result with an image that is
// none, so that some first bytes do not make one.
func mediaType(data []byte) string {
	if utf8.Valid(data) && !bytes.ContainsFunc(data, func(r rune) bool { return r < ' ' && !strings.ContainsRune("\t\n\f\r\x1b\b", r) }) {
		return ""
	}
	if config, format, err := image.DecodeConfig(bytes.NewReader(data)); err == nil && config.Width > 0 && config.Height > 0 {
		return "image/" + format
	}
	found, _, _ := strings.Cut(http.DetectContentType(data), ";")
	switch {
	case found == "image/webp" && isRIFF(data, "VP8"):
		return found
	case found == "audio/wave" && isRIFF(data, "fmt "):
		return "audio/wav"
	case isMP3(data):
		return "audio/mpeg"
	case utf8.Valid(data) && bytes.IndexByte(data, 0) < 0:
		return ""
	case strings.HasPrefix(found, "text/") && mostlyText(data):
		return "" // of another encoding, or with some wrong bytes
	}
	return binaryType
}

// cut reports whether data may be the beginning of something longer.
func cut(data []byte) bool { return len(data) >= mostMedia }

// isRIFF reports whether a RIFF file is as long as it says, and begins with a chunk of this name. A program
// that writes to a pipe does not know the length, and writes the greatest.
func isRIFF(data []byte, chunk string) bool {
	const header = 20 // of the file and its first chunk
	if len(data) < header || !bytes.HasPrefix(data[12:], []byte(chunk)) {
		return false
	}
	fits := func(at int) bool {
		size := binary.LittleEndian.Uint32(data[at:])
		return size == 1<<32-1 || cut(data) || uint64(at)+4+uint64(size) <= uint64(len(data))
	}
	return fits(4) && fits(16)
}

// isMP3 reports whether data has two MPEG layer 3 frames one after the other, or an ID3v2 tag and a frame.
func isMP3(data []byte) bool {
	if len(data) >= 10 && string(data[:3]) == "ID3" {
		size := 10
		for i, b := range data[6:10] { // seven bits in each byte
			if b > 0x7f {
				return false
			}
			size += int(b) << (7 * (3 - i))
		}
		if size >= len(data) {
			return cut(data)
		}
		return frameLength(data[size:]) > 0
	}
	length := frameLength(data)
	return length > 0 && length < len(data) && frameLength(data[length:]) > 0
}

// frameLength returns the length of the MPEG layer 3 frame that data begins with, 0 if it does not
// (ISO/IEC 11172-3, 2.4.1.3, and 13818-3).
func frameLength(data []byte) int {
	if len(data) < 4 || data[0] != 0xff || data[1]&0xe6 != 0xe2 || data[1]&0x18 == 0x08 {
		return 0
	}
	rates := [...]int{0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0}
	samples, perFrame := [...]int{44100, 48000, 32000, 0}[data[2]>>2&3], 144_000
	if data[1]&0x08 == 0 { // version 2, or 2.5
		rates = [...]int{0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0}
		perFrame = 72_000
		if samples /= 2; data[1]&0x10 == 0 {
			samples /= 2
		}
	}
	rate := rates[data[2]>>4]
	if rate == 0 || samples == 0 {
		return 0
	}
	return perFrame*rate/samples + int(data[2]>>1&1)
}

// mostlyText reports whether at most a tenth of the bytes are not UTF-8, and none is zero.
func mostlyText(data []byte) bool {
	wrong := 0
	for rest := data; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		if r == 0 {
			return false
		}
		if r == utf8.RuneError && n == 1 {
			wrong++
		}
		rest = rest[n:]
	}
	return wrong*10 <= len(data)
}
