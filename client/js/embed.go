// Package js holds the client for pages: one ES module without dependencies,
// which an engine serves at any path that ends in /push.js.
package js

import _ "embed"

// Push is push.js, the file beside this one: readable source, UTF-8, ready to
// be served as text/javascript. It must not be modified.
//
//go:embed push.js
var Push []byte
