//go:build !race

package jobs_test

// raceEnabled tells that everything takes several times as long as without -race.
const raceEnabled = false
