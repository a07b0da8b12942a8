//go:build !race

package main

// raceEnabled tells that memory and time are not what they are without -race.
const raceEnabled = false
