package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

const (
	// watchPause is how often a page is drawn again, at most.
	watchPause = 200 * time.Millisecond
	// watchEvery is how often it is drawn again though the node has reported no change: ages do
	// change, and an older node reports none.
	watchEvery = time.Second
)

func watchFlag(dest *bool) cli.Flag {
	return &cli.BoolFlag{Name: "watch", Usage: "go on, and show what changes", Destination: dest, DisableDefaultText: true}
}

// watchNode calls show, and calls it again after each change of these types, and when every has
// passed, also across a restart of the node.
func (o *lookOptions) watchNode(ctx context.Context, types []string, every time.Duration, stderr io.Writer, show func(ctx context.Context, c *bus.Client) error) error {
	node := &lasting{o: &o.nodeOptions, quiet: o.quiet, node: "it", stderr: stderr}
	defer node.close()
	doc, err := json.Marshal(map[string]any{"types": types})
	if err != nil {
		return err
	}
	return node.do(ctx, func() bool { return true }, func(c *bus.Client) error {
		changed := make(signalWriter, 1)
		watching, stop := context.WithCancel(ctx)
		defer stop()
		go c.Call(watching, &bus.Request{Function: "fbus.watch", Args: args.JSON(doc), Stdout: changed}) // ends with the connection
		for {
			if err := show(ctx, c); err != nil {
				return err
			}
			node.said = false
			pause := time.NewTimer(every)
			select {
			case <-changed:
			case <-pause.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			pause.Stop()
			time.Sleep(min(watchPause, every))
		}
	})
}

// signalWriter is a channel with room for one signal, which every write sends.
type signalWriter chan struct{}

func (w signalWriter) Write(p []byte) (int, error) {
	select {
	case w <- struct{}{}:
	default:
	}
	return len(p), nil
}

// watchLines prints the lines of fbus.watch of these types, also across a restart of the node.
func (o *lookOptions) watchLines(ctx context.Context, types []string, stdout, stderr io.Writer) error {
	node := &lasting{o: &o.nodeOptions, quiet: o.quiet, node: "it", stderr: stderr}
	defer node.close()
	doc, err := json.Marshal(map[string]any{"types": types})
	if err != nil {
		return err
	}
	for {
		err := node.do(ctx, func() bool { return true }, func(c *bus.Client) error {
			node.said = false
			_, err := c.Call(ctx, &bus.Request{Function: "fbus.watch", Args: args.JSON(doc), Stdout: stdout, Stderr: stderr})
			return err
		})
		if err != nil {
			return err
		}
	}
}

// pager shows pages, each in place of the last.
type pager struct {
	stdout io.Writer
	json   bool   // not for people
	last   string // key of the page that was printed last, if that is no terminal
}

// print shows a page.
func (p *pager) print(page []byte, key string) error {
	width, rows := p.size()
	return p.draw(page, key, width, rows)
}

// draw redraws a terminal of this size, with as many lines as fit; elsewhere, with width 0, it prints
// the page if the key has changed.
func (p *pager) draw(page []byte, key string, width, rows int) error {
	if width == 0 {
		if key == p.last {
			return nil
		}
		if p.last != "" && !p.json {
			page = append([]byte{'\n'}, page...)
		}
		p.last = key
		_, err := p.stdout.Write(page)
		return err
	}
	var out bytes.Buffer
	out.WriteString("\x1b[H")
	lines := slices.Collect(bytes.Lines(page))
	if most := max(rows-1, 2); len(lines) > most { // the cursor takes a line: one more would scroll
		lines = append(lines[:most-1:most-1], fmt.Appendf(nil, "… and %d more\n", len(lines)-most+1))
	}
	for _, line := range lines {
		text := []rune(string(bytes.TrimSuffix(line, []byte("\n"))))
		fmt.Fprintf(&out, "%s\x1b[K\n", string(text[:min(len(text), width-1)]))
	}
	out.WriteString("\x1b[J")
	_, err := p.stdout.Write(out.Bytes())
	return err
}

// size returns the size of the terminal to draw on, 0 and 0 if there is none.
func (p *pager) size() (columns, rows int) {
	if !isTerminal(p.stdout) || p.json {
		return 0, 0
	}
	if columns, rows = terminalSize(p.stdout); columns == 0 || rows == 0 {
		return 80, 24
	}
	return columns, rows
}
