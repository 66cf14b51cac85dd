package members

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/pushjson"
	"github.com/hashicorp/memberlist"
	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// What nodes tell about themselves: memberlist's metadata, at most 512 bytes,
// and the goodbye, both msgpack arrays. A later version may append to them.
const (
	metaProto = 1 // [proto, id, epoch, link address or "", features, state, extra: bin or nil]
	byeKind   = 1 // [kind, id, epoch]

	stateUp       = 0
	stateDraining = 1

	maxEpoch = 253_402_300_799_999 // the end of the year 9999: JSON has no later time
)

func pack(fields ...any) []byte {
	b, err := msgpack.Marshal(fields)
	if err != nil {
		panic("push: msgpack of numbers and strings: " + err.Error())
	}
	return b
}

// packMeta packs all but the address. With an id and an Extra as long as they
// may be it has 392 bytes.
func packMeta(m Member) []byte {
	state := stateUp
	if m.Draining {
		state = stateDraining
	}
	return pack(metaProto, m.ID, m.Epoch, "", 0, state, m.Extra)
}

func packBye(o directory.Origin) []byte { return pack(byeKind, o.ID, o.Epoch) }

var errGarbled = errors.New("it cannot be read")

// unpack begins to read an array of n elements, with the first, which says
// what the others are.
func unpack(b []byte) (d *msgpack.Decoder, n int, first uint64, err error) {
	if len(b) > memberlist.MetaMaxSize {
		return nil, 0, 0, errGarbled
	}
	if _, err := pushjson.Scan(b, 2); err != nil {
		return nil, 0, 0, errGarbled
	}
	d = msgpack.NewDecoder(bytes.NewReader(b))
	if n, err = d.DecodeArrayLen(); err == nil {
		first, err = d.DecodeUint64()
	}
	if err != nil {
		err = errGarbled
	}
	return d, n, first, err
}

// unpackMeta reads metadata. What it returns shares nothing with b. An extra
// that is no bytes is another version's, and none here.
func unpackMeta(b []byte) (m Member, err error) {
	d, n, proto, err := unpack(b)
	switch {
	case err != nil:
		return m, err
	case proto != metaProto:
		return m, fmt.Errorf("it speaks version %d, this node %d", proto, metaProto)
	case n < 6:
		return m, errGarbled
	}
	var (
		link            string
		features, state uint64
	)
	if err := d.DecodeMulti(&m.ID, &m.Epoch, &link, &features, &state); err != nil {
		return m, err
	}
	m.Draining = state == stateDraining
	if n == 6 {
		return m, nil
	}
	if code, err := d.PeekCode(); err != nil || !msgpcode.IsBin(code) {
		return m, err
	}
	extra, err := d.DecodeBytes()
	if err != nil {
		return m, err
	}
	if len(extra) > MaxExtra {
		return m, fmt.Errorf("it tells %d bytes of itself, %d are allowed", len(extra), MaxExtra)
	}
	if len(extra) > 0 {
		m.Extra = extra
	}
	return m, nil
}

func unpackBye(b []byte) (o directory.Origin, err error) {
	d, n, kind, err := unpack(b)
	if err != nil || n < 3 || kind != byeKind {
		return o, errGarbled
	}
	err = d.DecodeMulti(&o.ID, &o.Epoch)
	return o, err
}
