package exec

import (
	"syscall"
	"testing"
)

// However a program's read falls together with the taking back of what it
// reads, each byte goes one way, and nobody waits for another's.
func TestTakeBack(t *testing.T) {
	p, err := openPipes(stdinHeld, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	ours, child, hold := p.stdin, p.child[0], p.hold
	defer closeFDs(p.child[1:])
	read := make(chan int, 1)
	go func() { // ends with the end of input
		defer close(read)
		defer syscall.Close(child)
		buf := make([]byte, 100)
		for {
			n, err := syscall.Read(child, buf)
			if err == syscall.EINTR {
				continue
			}
			if n <= 0 {
				return
			}
			read <- n
		}
	}()
	const request = "a request\n"
	back := 0
	for range 5_000 {
		syscall.Write(ours, []byte(request))
		if hold.takeBack(len(request)) {
			back++
		} else if n := <-read; n != len(request) {
			t.Fatalf("the program read %d bytes", n)
		}
	}
	syscall.Close(ours)
	p.stdin = -1
	if n := <-read; n != 0 {
		t.Errorf("the program read %d bytes that were taken back", n)
	}
	t.Logf("%d were taken back", back)
}
