package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
)

// sizes are the ends of our buffers and windows, with one byte less and one more.
var sizes = []int64{0, 1, 32767, 32768, 32769, 65535, 65536, 65537, 1 << 20}

// pattern is a body whose bytes say where they are.
type pattern struct{ at, size int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.size-p.at))
	for i := range b[:n] {
		b[i] = byte((p.at+int64(i))%251 ^ (p.at+int64(i))>>16)
	}
	p.at += int64(n)
	return n, nil
}

// sumOf reads r to its end, and returns the SHA-256 and the number of its bytes.
func sumOf(r io.Reader) (string, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%d %s", n, hex.EncodeToString(h.Sum(nil))), err
}

// offerBytes offers two functions: sum takes bytes, give sends as many as its input says.
func (x *site) offerBytes() {
	x.offer(bus.Offer{Name: "sum", Slots: 4}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		sum, err := sumOf(inv.Input)
		if err != nil {
			return bus.Fail(err)
		}
		return bus.Result{Output: []byte(sum)}
	})
	x.offer(bus.Offer{Name: "give", Slots: 4}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		text, _ := io.ReadAll(inv.Input)
		n, err := strconv.ParseInt(string(text), 10, 64)
		if err == nil {
			_, err = io.CopyBuffer(struct{ io.Writer }{inv.Stdout}, &pattern{size: n}, make([]byte, 64<<10))
		}
		if err != nil {
			return bus.Fail(err)
		}
		return bus.Exit(0)
	})
}

// exchange sends each number of bytes to the function sum, and gets as many from give.
type exchange struct {
	*testing.T
	url, auth string // of the gateway
	page      string // URL of the page for browsers
	html      string // what it runs
	reports   chan string
}

// TestClients: Go, curl, Node and a page in Chromium send and get exactly the bytes that they should. With
// FBUS_SOAK=1 that includes a GiB each way, and the gateway's memory stays flat.
func TestClients(t *testing.T) {
	sizes, soak := sizes, os.Getenv("FBUS_SOAK") == "1"
	if soak {
		sizes = append(sizes[:len(sizes):len(sizes)], 1<<30)
	}
	for _, c := range []struct {
		name, program string
		run           func(e *exchange, sizes []int64) string
	}{{"go", "", (*exchange).goClient}, {"curl", "curl", (*exchange).curl}, {"node", "node", (*exchange).node}, {"chromium", "chromium", (*exchange).chromium}} {
		t.Run(c.name, func(t *testing.T) {
			if c.program != "" {
				if _, err := exec.LookPath(c.program); err != nil {
					t.Skip(err)
				}
			}
			if c.name == "chromium" && os.Getenv("FBUS_SOAK") == "" {
				t.Skip("a browser takes long to start: FBUS_SOAK=brief and FBUS_SOAK=1 run it")
			}
			e := &exchange{T: t, reports: make(chan string, 1)}
			x := newSite(t)
			x.offerBytes()
			e.auth = "Bearer " + x.token("ci", "sum", "give")
			page := httptest.NewUnstartedServer(e)
			e.page = "http://" + page.Listener.Addr().String()
			config := filepath.Join(t.TempDir(), "gateway.toml")
			if err := os.WriteFile(config, fmt.Appendf(nil, "origins = [%q]\n", e.page), 0o600); err != nil {
				t.Fatal(err)
			}
			p := x.process(nil, "-c", config)
			e.url = "http://" + p.addr
			page.Start()
			defer page.Close()
			var want strings.Builder
			for _, n := range sizes {
				sum, _ := sumOf(&pattern{size: n})
				fmt.Fprintln(&want, n, sum, n, true)
			}
			if got := c.run(e, sizes); got != want.String() {
				t.Errorf("got\n%swant\n%s", got, want.String())
			}
			if most := p.memory(t, "VmHWM"); soak {
				if t.Logf("the gateway has used at most %d MiB", most>>20); most > 80<<20 && !raceEnabled {
					t.Error("its memory has grown")
				}
			}
		})
	}
}

func (e *exchange) goClient(sizes []int64) string {
	post := func(path string, body io.Reader, n int64) io.ReadCloser {
		r, err := http.NewRequestWithContext(e.Context(), "POST", e.url+path, body)
		if err != nil {
			e.Fatal(err)
		}
		r.Header.Set("Authorization", e.auth)
		r.ContentLength = n
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			e.Fatal(err)
		}
		return resp.Body
	}
	report := ""
	for _, n := range sizes {
		var answers []string
		for _, length := range []int64{n, -1} { // with a length, and in chunks
			body := post("/call/sum", &pattern{size: n}, length)
			answer, err := io.ReadAll(body)
			if body.Close(); err != nil {
				e.Fatal(err)
			}
			answers = append(answers, string(answer))
		}
		if answers[0] != answers[1] {
			e.Errorf("%d bytes with a length: %s, in chunks: %s", n, answers[0], answers[1])
		}
		report += fmt.Sprint(n, " ", answers[0])
		size := strconv.FormatInt(n, 10)
		body := post("/call/give", strings.NewReader(size), int64(len(size)))
		report += e.compare(body, n)
		body.Close()
	}
	return report
}

// compare returns how many bytes there are, and whether they are what they should be.
func (e *exchange) compare(body io.Reader, n int64) string {
	got, err := sumOf(body)
	want, _ := sumOf(&pattern{size: n})
	count, _, _ := strings.Cut(got, " ")
	return fmt.Sprintln("", count, got == want && err == nil)
}

func (e *exchange) curl(sizes []int64) string {
	in, out := filepath.Join(e.TempDir(), "in"), filepath.Join(e.TempDir(), "out")
	run := func(path string, words ...string) *os.File {
		os.Remove(out)
		words = append(words, "-sSf", "-H", "Authorization: "+e.auth, "-o", out, e.url+path)
		if text, err := exec.CommandContext(e.Context(), "curl", words...).CombinedOutput(); err != nil {
			e.Fatalf("%v: %s", err, text)
		}
		f, err := os.Open(out)
		if err != nil {
			e.Fatal(err)
		}
		e.Cleanup(func() { f.Close() })
		return f
	}
	report := ""
	for _, n := range sizes {
		f, err := os.Create(in)
		if err == nil {
			_, err = io.Copy(f, &pattern{size: n})
		}
		if err != nil {
			e.Fatal(err)
		}
		f.Close()
		answer, _ := io.ReadAll(run("/call/sum", "-X", "POST", "-T", in))
		report += fmt.Sprint(n, " ", string(answer))
		report += e.compare(run("/call/give", "-d", strconv.FormatInt(n, 10)), n)
	}
	return report
}

// script is the exchange for Node and for browsers.
const script = `
async function exchange(url, auth, sizes) {
	let report = ''
	const byteAt = i => i % 251 ^ (i >> 16) & 255
	// Chromium holds a GiB that is not in a file only at times: ERR_BLOB_OUT_OF_MEMORY, before it sends anything.
	const bodyOf = async size => {
		const onDisk = size > 1 << 20 && globalThis.navigator?.storage
		const file = onDisk && await (await onDisk.getDirectory()).getFileHandle('body', {create: true})
		const out = file && await file.createWritable()
		const parts = []
		for (let at = 0; at < size; ) {
			const part = new Uint8Array(Math.min(1 << 20, size - at))
			for (let i = 0; i < part.length; i++) part[i] = byteAt(at++)
			if (out) await out.write(part)
			else parts.push(part)
		}
		if (!out) return new Blob(parts)
		await out.close()
		return file.getFile()
	}
	const post = (path, body) => fetch(url + path, {method: 'POST', headers: {Authorization: auth}, body})
	for (const size of sizes) {
		const body = await bodyOf(size)
		const answer = await (await post('/call/sum', body)).text()
		let n = 0, same = true
		const from = (await post('/call/give', String(size))).body.getReader()
		for (;;) {
			const {done, value} = await from.read()
			if (done) break
			for (let i = 0; i < value.length; i++) same = value[i] === byteAt(n++) && same
		}
		report += [size, answer, n, same].join(' ') + '\n'
	}
	return report
}
`

// program returns the script that does an exchange and passes on its report.
func (e *exchange) program(sizes []int64, report string) string {
	list, _ := json.Marshal(sizes)
	return fmt.Sprintf("%sexchange(%q, %q, %s).catch(e => String(e.stack)).then(%s)", script, e.url, e.auth, list, report)
}

func (e *exchange) node(sizes []int64) string {
	out, err := exec.CommandContext(e.Context(), "node", "-e", e.program(sizes, "text => process.stdout.write(text)")).Output()
	if err != nil {
		e.Fatal(err)
	}
	return string(out)
}

// ServeHTTP serves the page that does an exchange, and takes its report.
func (e *exchange) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == "POST":
		text, _ := io.ReadAll(r.Body)
		e.reports <- string(text)
	case r.URL.Path == "/":
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<script>"+e.html+"</script>")
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (e *exchange) chromium(sizes []int64) string {
	e.html = e.program(sizes, "text => fetch('/', {method: 'POST', body: text})")
	// It must not look for anything outside, and stays until it is killed.
	cmd := exec.Command("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0", "--user-data-dir="+e.TempDir(), e.page)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		e.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the browser
	e.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	select {
	case report := <-e.reports:
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		return report
	case err := <-ended:
		e.Skipf("chromium does not run here: %v", err)
	case <-time.After(10 * time.Minute):
		e.Error("the page does not report")
	}
	return ""
}
