//go:build !pushlinknext

package link

// MaxProto is the newest protocol this version speaks. Two nodes speak the
// newest that both do.
const MaxProto = 1
