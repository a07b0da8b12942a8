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
