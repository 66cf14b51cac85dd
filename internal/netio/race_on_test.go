//go:build race

package netio

const raceEnabled = true // sync.Pool forgets at random
