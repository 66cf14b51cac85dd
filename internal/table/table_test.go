package table

import (
	"runtime"
	"testing"
)

func TestTableIsAMapThatGivesMemoryBack(t *testing.T) {
	const n = 100_000
	var tab Table[int, int]
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range n {
		tab.Set(i, 2*i)
	}
	full := heap() - before
	for i := range n - 100 {
		tab.Remove(i)
		tab.Remove(i)
	}
	if left := heap() - before; left > full/20 {
		t.Errorf("100 of %d keys take %d bytes, all took %d", n, left, full)
	}
	if tab.Len() != 100 || tab.Get(n-1) != 2*(n-1) || tab.Get(0) != 0 {
		t.Errorf("%d keys, the last has %d, one that is gone %d", tab.Len(), tab.Get(n-1), tab.Get(0))
	}
	for i := range n {
		tab.Remove(i)
	}
	if tab.Len() != 0 || tab.m != nil {
		t.Errorf("%d keys are left", tab.Len())
	}
}
