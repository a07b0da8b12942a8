package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/cmd/schema"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	// mostText is how much text an answer has: more would fill the agent's context.
	mostText = 100_000
	// mostMedia is how large an image or a sound in an answer may be.
	mostMedia = 1 << 20
	// tailLines and tailBytes bound what is shown of stderr.
	tailLines, tailBytes = 20, 4000
)

// output is what a job writes, as far as an answer needs it.
type output struct {
	stdout head
	stderr tail
}

// head keeps the beginning of what is written to it, and counts the rest.
type head struct {
	b     bytes.Buffer
	total int64
}

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.total += int64(len(p))
	h.b.Write(p[:min(len(p), max(0, mostMedia-h.b.Len()))])
	return len(p), nil
}

// complete reports whether all that was written was kept.
func (h *head) complete() bool { return h.total == int64(h.b.Len()) }

// tail keeps the last bytes of what is written to it, and passes on its lines.
type tail struct {
	b    []byte
	cut  bool
	each func(line []byte) // nil: nobody wants them
	rest []byte            // of a line
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	if t.b = append(t.b, p...); len(t.b) > 2*tailBytes {
		t.b, t.cut = append(t.b[:0], t.b[len(t.b)-tailBytes:]...), true
	}
	if t.each != nil {
		t.rest = append(t.rest, p...)
		if i := bytes.LastIndexByte(t.rest, '\n'); i >= 0 { // one a second is shown: the last
			line := t.rest[bytes.LastIndexByte(t.rest[:i], '\n')+1 : i]
			t.each(line)
			t.rest = append(t.rest[:0], t.rest[i+1:]...)
		}
		t.rest = t.rest[max(0, len(t.rest)-tailBytes):]
	}
	return len(p), nil
}

// text returns the last lines.
func (t *tail) text() string {
	text := strings.TrimRight(plain(string(t.b)), " \n")
	lines := strings.Split(text, "\n")
	cut := t.cut || len(lines) > tailLines
	if cut {
		text = strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
	}
	if len(text) > tailBytes {
		text, cut = strings.ToValidUTF8(text[len(text)-tailBytes:], ""), true
	}
	if cut {
		return "… " + text
	}
	return text
}

// plain makes text that a program has written safe to show: without what only terminals understand, and
// without characters that reorder or hide text.
func plain(text string) string {
	text = args.WithoutSequences(strings.ToValidUTF8(text, "\ufffd"))
	text = strings.ReplaceAll(text, "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		if hidden(r) || r != '\n' && r != '\t' && r != '\u2028' && r != '\u2029' && args.Unsafe(r) {
			return -1
		}
		return r
	}, text)
}

func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// link returns where the whole output of the job is.
func (j *job) link() string {
	if j.server.cfg.Link != nil {
		return j.server.cfg.Link(j.id)
	}
	return jobURI(j.id)
}

// linkTo is a link to the output in an answer.
func (j *job) linkTo(out *head, media string) *sdk.ResourceLink {
	size := out.total
	return &sdk.ResourceLink{URI: j.link(), Name: "output of " + j.functionName(), MIMEType: media, Size: &size, Meta: j.meta()}
}

func (j *job) meta() sdk.Meta { return sdk.Meta{metaFunction: j.functionName(), metaJob: j.id} }

// result makes the answer about a job that has ended, or that could not be followed to its end.
func (j *job) result(f *followed) *sdk.CallToolResult {
	res := &sdk.CallToolResult{Meta: j.meta()}
	say := func(format string, a ...any) {
		res.Content = append(res.Content, &sdk.TextContent{Text: fmt.Sprintf(format, a...)})
	}
	var exit *bus.ExitError
	var e *bus.Error
	switch {
	case f.err == nil:
		j.addOutput(res, &f.out.stdout)
		return res
	case !f.ended || errors.Is(f.err, bus.ErrNodeLost):
		say("It is not known how job %s of %s ended: %s. Call %s with {\"id\":\"%s\"} when the bus is back. The function may have run.", j.id, j.functionName(), shownError(f.err), jobWait, j.id)
	case errors.As(f.err, &exit) && exit.Source == args.FromSignal:
		say("%s was ended by signal %s.", j.functionName(), exit.Code)
	case errors.As(f.err, &exit):
		say("%s failed with exit status %d.", j.functionName(), exit.Status)
	case errors.As(f.err, &e):
		say("%s failed: %s", j.functionName(), shownError(e))
	default:
		say("%s failed: %s", j.functionName(), args.OneLine(f.err.Error()))
	}
	res.IsError = true
	if text := f.out.stderr.text(); text != "" {
		say("The end of what it wrote to stderr:\n%s", text)
		res.Content[len(res.Content)-1].(*sdk.TextContent).Meta = j.meta()
	}
	if f.out.stdout.total > 0 {
		j.addContent(res, &f.out.stdout, f.ended && exit != nil)
	}
	return res
}

// ownResult is the attribute of a function that writes the result of tools/call itself: a JSON object
// with content, and what else the protocol has there.
const ownResult = "mcp.result"

// addOutput adds the output of a success.
func (j *job) addOutput(res *sdk.CallToolResult, out *head) {
	if j.function != nil {
		if _, ok := j.function.first.Attributes[ownResult]; ok {
			var own sdk.CallToolResult
			if err := json.Unmarshal(out.b.Bytes(), &own); err == nil && out.complete() && own.InputRequests == nil {
				j.takeOwn(res, &own)
				return
			}
			j.addContent(res, out, true)
			j.refuse(res, "is not a result of tools/call, as its attribute %s says", ownResult)
			return
		}
	}
	j.addContent(res, out, true)
	wanted := j.function != nil && j.function.out != nil
	doc := bytes.TrimSpace(out.b.Bytes())
	if !wanted && (len(doc) == 0 || doc[0] != '{' && doc[0] != '[') { // a word or a number may be meant as text
		return
	}
	var err error
	switch {
	case !out.complete():
		err = fmt.Errorf("it is larger than %d bytes", mostMedia)
	case wanted:
		err = j.function.out.Validate(doc)
	default:
		err = schema.Check(doc)
	}
	switch {
	case err == nil:
		res.StructuredContent = json.RawMessage(wellFormed(doc))
	case wanted:
		j.refuse(res, "does not match its output schema: %s", args.OneLine(err.Error()))
	}
}

// takeOwn makes an answer of the result that the function has written itself. Its texts are cleaned as other
// output is, and what this server says of a result the function cannot say: where its contents come from,
// and that it is not the last answer.
func (j *job) takeOwn(res, own *sdk.CallToolResult) {
	res.Content, res.StructuredContent, res.IsError = own.Content, own.StructuredContent, own.IsError
	for _, c := range own.Content {
		switch c := c.(type) {
		case *sdk.TextContent:
			c.Text, c.Meta = plain(c.Text), j.marked(c.Meta)
		case *sdk.ImageContent:
			c.Meta = j.marked(c.Meta)
		case *sdk.AudioContent:
			c.Meta = j.marked(c.Meta)
		case *sdk.ResourceLink:
			c.Name, c.Title, c.Description, c.Meta = plain(c.Name), plain(c.Title), plain(c.Description), j.marked(c.Meta)
		case *sdk.EmbeddedResource:
			c.Meta = j.marked(c.Meta)
			if c.Resource != nil {
				c.Resource.Text, c.Resource.Meta = plain(c.Resource.Text), j.marked(c.Resource.Meta)
			}
		}
	}
}

// marked returns the _meta of a content with the function that it comes from.
func (j *job) marked(meta sdk.Meta) sdk.Meta {
	if meta == nil {
		meta = sdk.Meta{}
	}
	maps.Copy(meta, j.meta())
	return meta
}

// refuse makes an error of an output that is not what its function has announced.
func (j *job) refuse(res *sdk.CallToolResult, format string, a ...any) {
	text := fmt.Sprintf("The output of %s ", j.functionName()) + fmt.Sprintf(format, a...)
	res.IsError = true
	res.Content = append([]sdk.Content{&sdk.TextContent{Text: text}}, res.Content...)
}

// addContent adds the output as what it is: text, an image, a sound, or a link to anything else. Without
// kept it may not be the output of the job in full: the node drops what it has no room for.
func (j *job) addContent(res *sdk.CallToolResult, out *head, kept bool) {
	data, media := out.b.Bytes(), mediaType(out.b.Bytes())
	note := func(format string, a ...any) {
		res.Content = append(res.Content, &sdk.TextContent{Text: fmt.Sprintf(format, a...)})
	}
	switch kind, _, _ := strings.Cut(media, "/"); {
	case kind == "image" && out.complete():
		res.Content = append(res.Content, &sdk.ImageContent{Data: data, MIMEType: media, Meta: j.meta()})
	case kind == "audio" && out.complete():
		res.Content = append(res.Content, &sdk.AudioContent{Data: data, MIMEType: media, Meta: j.meta()})
	case media != "":
		if j.function != nil {
			if announced := j.function.first.Attributes["output-type"]; announced != "" && media == binaryType {
				media = announced
			}
		}
		if kept {
			note("%s wrote %d bytes that are not text. They are kept as the output of job %s.", j.functionName(), out.total, j.id)
		} else {
			note("%s wrote bytes that are not text. The output of job %s is what was kept of them.", j.functionName(), j.id)
		}
		res.Content = append(res.Content, j.linkTo(out, media))
	default:
		text := plain(string(data))
		cut := !out.complete() || len(text) > mostText
		if cut {
			text = strings.ToValidUTF8(text[:min(len(text), mostText)], "")
		}
		res.Content = append(res.Content, &sdk.TextContent{Text: text, Meta: j.meta()})
		if cut {
			if kept {
				note("The output has %d bytes; this is its beginning. All of it is kept as the output of job %s.", out.total, j.id)
			} else {
				note("This is the beginning of the output. The output of job %s is what was kept of it.", j.id)
			}
			res.Content = append(res.Content, j.linkTo(out, "text/plain"))
		}
	}
}
