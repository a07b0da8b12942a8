package store

import (
	"fmt"
	"strings"
	"testing"
)

// TestLinesOfAPoster: each function, and each on, of unfinished jobs takes memory, so
// there is a bound to them, with those of postbacks. It ends with the jobs.
func TestLinesOfAPoster(t *testing.T) {
	s := &Shares{MaxJobs: 1 << 20, MaxBytes: 1 << 20}
	job := func(who string, i int) *Job {
		j := &Job{Function: fmt.Sprint("f", i), State: Queued, Poster: Poster{Caller: who}}
		if i%2 == 0 {
			j.Function, j.On, j.Finally = "f", fmt.Sprint("w", i), fmt.Sprint("g", i)
		}
		return j
	}
	for _, who := range []string{"ticket:ann", "uid:4242"} {
		n := 0
		var err error
		for ; err == nil; n++ {
			err = s.Take(nil, job(who, n))
		}
		if n--; n < 6_600 || n > 6_667 || !strings.Contains(err.Error(), "too many different functions and workers in jobs of "+who+" (limit 10000)") {
			t.Errorf("%s: %d jobs, then %v", who, n, err)
		}
		if err := s.Take(nil, job(who, 1)); err != nil {
			t.Errorf("a function that is there: %v", err)
		}
	}
	for i := range 20_000 {
		if err := s.Take(nil, job("uid:0", i)); err != nil {
			t.Fatal(err)
		}
	}
	done := *job("ticket:ann", 2)
	done.State = Done
	s.Change(job("ticket:ann", 2), &done)
	if err := s.Take(nil, job("ticket:ann", 100_001)); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}

// TestBatchesAreBounded: a poster has so many batches, and its jobs in one of them are no
// further one.
func TestBatchesAreBounded(t *testing.T) {
	s := &Shares{MaxJobs: 1 << 40, MaxBytes: 1 << 40}
	job := func(batch int) *Job {
		return &Job{Function: "f", State: Done, Poster: Poster{Caller: "ticket:a"}, Options: Options{Batch: fmt.Sprint(batch)}}
	}
	for i := range maxBatches {
		if err := s.Take(nil, job(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Take(nil, job(0)); err != nil {
		t.Error(err)
	}
	if err := s.Take(nil, job(maxBatches)); err == nil {
		t.Error("one more is accepted")
	}
	s.Change(job(1), nil)
	if err := s.Take(nil, job(maxBatches)); err != nil {
		t.Error(err)
	}
	if n := s.Tally(BatchKey("ticket:a", "0")); n != (Tally{Jobs: 2, Done: 2}) {
		t.Errorf("%+v", n)
	}
}

// TestSharesOfARelay: callers of a relay have a share each, and half of the room that others leave
// together, however many names the relay invents. So do the lines of their jobs.
func TestSharesOfARelay(t *testing.T) {
	s := &Shares{MaxJobs: 1000, MaxBytes: 1000}
	names := []string{"*", "a", "a/", "/", "a/b", "b@0123456789abcdef0123456789abcdef"}
	post := func(who string) error {
		return s.Take(nil, &Job{Function: "f", State: Queued, Poster: Poster{Caller: who}})
	}
	fill := func(who string) (n int, why string) {
		for ; n <= 1000; n++ {
			if err := post(who); err != nil {
				return n, err.Error()
			}
		}
		return n, ""
	}
	if err := post("uid:0/a"); err != nil {
		t.Fatal(err)
	}
	total := 0
	for i, name := range names {
		n, why := fill("ticket:gw@0123456789abcdef0123456789abcdef/" + name)
		if total += n; i < 1 && n != 250 || why == "" {
			t.Errorf("%s: %d jobs, then %q", name, n, why)
		}
		if i == len(names)-1 && !strings.Contains(why, "too many jobs of all callers of ticket:gw, with") {
			t.Errorf("%s: %q", name, why)
		}
	}
	if total != 499 {
		t.Errorf("%d jobs of one relay", total)
	}
	if n, why := fill("ticket:ann"); n < 200 {
		t.Errorf("another has room for %d, then %q", n, why)
	}
	for i := range 20 {
		s.TakeBytes(fmt.Sprint("uid:0/", i), 100, 0)
	}
	if all := s.Of("uid:0/").Bytes; all != 500 || s.Total().Bytes != 500 {
		t.Errorf("%d bytes of %d", all, s.Total().Bytes)
	}
	for i := range 20 {
		s.AddBytes(fmt.Sprint("uid:0/", i), -s.Of(fmt.Sprint("uid:0/", i)).Bytes)
	}
	s.Change(&Job{Function: "f", State: Queued, Poster: Poster{Caller: "uid:0/a"}}, nil)
	if len(s.of["uid:0/"].lines) > 0 || s.Of("uid:0/") != (Held{}) {
		t.Errorf("%+v is left", s.of["uid:0/"])
	}
	s = &Shares{MaxJobs: 1 << 20, MaxBytes: 1 << 20}
	globs := 0
	for i := range 1000 {
		j := &Job{Function: "f", State: Queued, Poster: Poster{Caller: fmt.Sprint("ticket:gw/", i)}}
		if j.On = fmt.Sprint("w", i, "*"); s.Take(nil, j) == nil {
			globs++
		}
	}
	if globs != maxGlobs {
		t.Errorf("%d globs", globs)
	}
}
