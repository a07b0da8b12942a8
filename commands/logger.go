package commands

import (
	"fmt"
	"io"
	"sync"
	"time"

	"fbus/bus/args"
)

// logf prints a message for a person.
type logf = func(format string, args ...any)

// messageBurst is how many messages of one kind are printed in a messageTime.
const messageBurst = 50

var messageTime = time.Minute

// logger returns two functions that print messages. Peers can cause any number of messages,
// so limited prints only the first ones of a kind in a minute, and counts the others. Messages
// with one format are of one kind. all prints every message.
func logger(stderr io.Writer) (limited, all logf) {
	type kind struct {
		n    int
		last string
	}
	var mu sync.Mutex // protects kinds, and keeps lines apart
	kinds := map[string]*kind{}
	all = func(format string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		say(stderr, args.Sprintf(format, a...))
	}
	return func(format string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		k := kinds[format]
		if k == nil {
			k = &kind{}
			kinds[format] = k
			time.AfterFunc(messageTime, func() {
				mu.Lock()
				defer mu.Unlock()
				delete(kinds, format)
				if k.n > messageBurst {
					say(stderr, fmt.Sprintf("%s (the last of %d messages like this that were not printed)", k.last, k.n-messageBurst))
				}
			})
		}
		k.last = args.Sprintf(format, a...)
		if k.n++; k.n <= messageBurst {
			say(stderr, k.last)
		}
	}, all
}
