//go:build !unix

package client

import "errors"

func mkfifo(string) error { return errors.ErrUnsupported }
