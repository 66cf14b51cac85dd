//go:build pushlinknext

package link

// MaxProto in a program that stands for the next version, to try out upgrades
// of one node after the other.
const MaxProto = 2
