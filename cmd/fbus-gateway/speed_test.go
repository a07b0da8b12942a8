package main

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"fbus/bus"
)

// BenchmarkCall calls over a kept connection, beside the same call by the Go client, which is the limit.
func BenchmarkCall(b *testing.B) {
	x := newSite(b)
	x.offer(bus.Offer{Name: "shout", Slots: 64}, upper)
	client := func() error {
		_, err := x.own.Call(b.Context(), &bus.Request{Function: "shout", Input: strings.NewReader("hello"), Stdout: io.Discard})
		return err
	}
	x.http.MaxIdleConnsPerHost = 64
	gateway := func() error {
		r, err := http.NewRequest("POST", x.local+"/call/shout", strings.NewReader("hello"))
		if err != nil {
			return err
		}
		resp, err := x.http.RoundTrip(r)
		if err != nil {
			return err
		}
		io.Copy(io.Discard, resp.Body)
		return resp.Body.Close()
	}
	for _, c := range []struct {
		name string
		call func() error
	}{{"client", client}, {"gateway", gateway}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if err := c.call(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"-64", func(b *testing.B) {
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := c.call(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
