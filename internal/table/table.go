// Package table is a map that gives memory back, which a Go map does not do by
// itself.
package table

// Table is built anew when it has shrunk to a quarter of what it was. The zero
// Table is empty. It is not safe for concurrent use.
type Table[K comparable, V any] struct {
	m    map[K]V
	peak int
}

// Get returns the value of a key, or the zero V.
func (t *Table[K, V]) Get(k K) V { return t.m[k] }

// Len is the number of keys.
func (t *Table[K, V]) Len() int { return len(t.m) }

// Set sets the value of a key.
func (t *Table[K, V]) Set(k K, v V) {
	if t.m == nil {
		t.m = make(map[K]V)
	}
	t.m[k] = v
	t.peak = max(t.peak, len(t.m))
}

// Remove removes a key, if it is there.
func (t *Table[K, V]) Remove(k K) {
	delete(t.m, k)
	if len(t.m) == 0 {
		t.m, t.peak = nil, 0
	} else if t.peak > 64 && len(t.m) < t.peak/4 {
		smaller := make(map[K]V, len(t.m))
		for k, v := range t.m {
			smaller[k] = v
		}
		t.m, t.peak = smaller, len(t.m)
	}
}
