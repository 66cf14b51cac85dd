//go:build unix && !linux

package netio

import "syscall"

func sysRead(fd uintptr, b []byte) (int, syscall.Errno) {
	return sys(syscall.Read, fd, b)
}

func sysWrite(fd uintptr, b []byte) (int, syscall.Errno) {
	return sys(syscall.Write, fd, b)
}

func sys(call func(int, []byte) (int, error), fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, err := call(int(fd), b)
		if err == nil {
			return n, 0
		}
		errno, ok := err.(syscall.Errno)
		if !ok {
			return 0, syscall.EIO
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}
