//go:build race

package directory

const raceEnabled = true // the simulator has one goroutine: there is nothing to find
