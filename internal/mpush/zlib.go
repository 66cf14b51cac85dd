package mpush

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"
	"math"
	"sync"
)

// Errors of Inflate.
var (
	ErrInflate  = errors.New("mpush: body cannot be inflated")
	ErrInflated = errors.New("mpush: inflated body is too big")
)

// inflater is a decompressor, about 40 KiB, with what it reads from.
type inflater struct {
	src bytes.Reader
	z   interface {
		io.Reader
		zlib.Resetter
	} // nil until it was used
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// Inflate decompresses a body (section 3: RFC 1950). What it returns has at
// most limit bytes, or the error is ErrInflated; it reads no further than one
// byte over the limit, and its memory follows what comes out. Everything else
// that can be wrong is ErrInflate, bytes behind the compressed ones among it.
func Inflate(body []byte, limit int) ([]byte, error) {
	f := inflaters.Get().(*inflater)
	defer inflaters.Put(f)
	defer f.src.Reset(nil)
	f.src.Reset(body)
	if err := f.reset(); err != nil {
		return nil, ErrInflate
	}

	most := min(max(limit, 0), math.MaxInt-1) + 1
	out := make([]byte, 0, min(most, max(minBuffer, 2*len(body))))
	for {
		if len(out) == cap(out) { // and less than most
			next := make([]byte, len(out), len(out)+min(most-len(out), max(len(out), minBuffer)))
			copy(next, out)
			out = next
		}
		n, err := f.z.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		switch {
		case len(out) == most:
			return nil, ErrInflated
		case err == io.EOF && f.src.Len() == 0: // the checksum has been compared
			return out, nil
		case err != nil:
			return nil, ErrInflate
		}
	}
}

// reset begins a stream; it reads the stream's header.
func (f *inflater) reset() error {
	if f.z != nil {
		return f.z.Reset(&f.src, nil)
	}
	z, err := zlib.NewReader(&f.src)
	if err != nil {
		return err
	}
	f.z = z.(interface {
		io.Reader
		zlib.Resetter
	})
	return nil
}

// deflater is a compressor, about 1 MiB, with what it writes to.
type deflater struct {
	dst []byte
	z   *zlib.Writer
}

func (d *deflater) Write(b []byte) (int, error) {
	d.dst = append(d.dst, b...)
	return len(b), nil
}

var deflaters = sync.Pool{New: func() any {
	d := new(deflater)
	d.z = zlib.NewWriter(d)
	return d
}}

// AppendDeflate appends body compressed as RFC 1950 at the default level. It
// may be longer than body.
func AppendDeflate(dst, body []byte) []byte {
	d := deflaters.Get().(*deflater)
	defer deflaters.Put(d)
	d.dst = dst
	d.z.Reset(d)
	d.z.Write(body) // errors could come from deflater.Write only
	d.z.Close()
	dst, d.dst = d.dst, nil
	return dst
}
