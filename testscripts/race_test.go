//go:build race

package testscripts

// raceEnabled tells that everything takes several times as long as without -race.
const raceEnabled = true
