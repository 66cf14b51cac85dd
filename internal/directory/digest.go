package directory

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// A digest says how much of each origin's history a node has, for gossip.
//
//	n                 uvarint, at most MaxOrigins + 1
//	n times
//	  len(id), id     1 byte, 1 to MaxID
//	  epoch           8 bytes
//	  seq             uvarint
//	  hash            8 bytes
const digestEntry = 1 + 1 + 8 + 1 + 8 // at least

// AppendDigest appends a digest of this node's history and of every origin
// that is up, and of none that is not (R8): that would be asked for for ever.
func (d *Directory) AppendDigest(dst []byte) []byte {
	seq, hash, _ := d.Position()
	d.mu.RLock()
	defer d.mu.RUnlock()
	dst = binary.AppendUvarint(dst, uint64(1+len(d.live)))
	dst = appendEntry(dst, d.self, seq, hash)
	for _, s := range d.live {
		dst = appendEntry(dst, s.Origin, s.seq, s.hash)
	}
	return dst
}

func appendEntry(dst []byte, o Origin, seq, hash uint64) []byte {
	dst = append(dst, byte(len(o.ID)))
	dst = append(dst, o.ID...)
	dst = binary.BigEndian.AppendUint64(dst, o.Epoch)
	dst = binary.AppendUvarint(dst, seq)
	return binary.BigEndian.AppendUint64(dst, hash)
}

// Stale is an origin of which another node has more, or something else.
type Stale struct {
	Origin   Origin
	Behind   uint64 // how many ops are missing here: see that the link from it works
	Diverged bool   // the same seq and another hash, a bug here or there: send it a NEED 0
}

// MergeDigest compares another node's digest with what is here, and appends
// what is stale here, most behind first. About this node, and about origins
// that are not up here, a digest says nothing.
func (d *Directory) MergeDigest(dst []Stale, frame []byte) ([]Stale, error) {
	begin := len(dst)
	r := reader{b: frame}
	d.mu.RLock()
	defer d.mu.RUnlock()
	for n := r.uvarint(min(MaxOrigins+1, uint64(len(frame)/digestEntry))); n > 0 && !r.bad; n-- {
		id := r.take(int(r.byte()))
		epoch := r.uint64()
		seq := r.uvarint(maxSeq)
		hash := r.uint64()
		if r.bad || !validID(string(id)) {
			return dst[:begin], ErrMalformed
		}
		s := d.origins[Origin{string(id), epoch}]
		switch {
		case s == nil || !s.up:
		case seq > s.seq:
			dst = append(dst, Stale{Origin: s.Origin, Behind: seq - s.seq})
		case seq == s.seq && hash != s.hash:
			dst = append(dst, Stale{Origin: s.Origin, Diverged: true})
		}
	}
	if r.bad || len(r.b) > 0 {
		return dst[:begin], ErrMalformed
	}
	slices.SortStableFunc(dst[begin:], func(a, b Stale) int { return cmp.Compare(b.Behind, a.Behind) })
	return dst, nil
}
