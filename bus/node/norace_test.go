//go:build !race

package node_test

// raceEnabled tells that memory and time are not what they are without -race.
const raceEnabled = false
