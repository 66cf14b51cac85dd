//go:build !linux

package test

// The benchmarks, and the process that they load an engine with, are for Linux.
func runLoadClient() {}
