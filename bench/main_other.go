//go:build !linux

package main

import "errors"

func runRole([]string) func() error { return nil }

func measure(options) error {
	return errors.New("the load generator and the memory figures need Linux; -table works everywhere")
}
