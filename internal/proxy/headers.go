package proxy

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxHeaders     = 8 << 10
	maxHeaderLines = 64
)

// parseHeaders takes a client's lines of name:value and leaves out what is
// not for a client to say. The time is how long its request may take.
func parseHeaders(text string) (http.Header, time.Duration, bool) {
	timeout := maxTime
	if len(text) > maxHeaders || hasControl(strings.ReplaceAll(text, "\n", "")) {
		return nil, 0, false
	}
	header := make(http.Header)
	var connection []string
	lines := 0
	for line := range strings.SplitSeq(text, "\n") {
		name, value, found := strings.Cut(line, ":")
		if line != "" {
			lines++
		}
		switch {
		case lines > maxHeaderLines:
			return nil, 0, false
		case name == "":
			continue
		case !found || !isToken(name):
			return nil, 0, false
		}
		value = strings.Trim(value, " ")
		switch lower := strings.ToLower(name); {
		case lower == "readtimeout":
			timeout = parseTimeout(value)
		case lower == "connection":
			connection = append(connection, value)
		case !isOurs(lower):
			header.Add(name, value)
		}
	}
	deleteNamed(header, connection)
	return header, timeout, true
}

// parseTimeout takes milliseconds, within bounds; what is no number is the
// upper one.
func parseTimeout(text string) time.Duration {
	ms, err := strconv.ParseInt(text, 10, 32)
	if err != nil && ms >= 0 {
		return maxTime
	}
	return min(max(time.Duration(ms)*time.Millisecond, minTime), maxTime)
}

// isOurs says of a header's name in lower case that a client does not decide
// on it. Some services take X_Forwarded_For for the same as X-Forwarded-For.
func isOurs(name string) bool {
	name = strings.ReplaceAll(name, "_", "-")
	switch name {
	case "host", "expect", "forwarded", "x-real-ip":
		return true
	}
	return isHopByHop(name) || strings.HasPrefix(name, "x-forwarded-")
}

// isHopByHop says of a header's name in lower case that it is about one
// connection, or about the length of a body on it.
func isHopByHop(name string) bool {
	switch name {
	case "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length":
		return true
	}
	return strings.HasPrefix(name, "proxy-")
}

// deleteNamed deletes what Connection says is about the connection too (RFC
// 9110 section 7.6.1).
func deleteNamed(header http.Header, connection []string) {
	for _, value := range connection {
		for name := range strings.SplitSeq(value, ",") {
			header.Del(strings.Trim(name, " \t"))
		}
	}
}

// formatHeaders makes the lines of a response with a body of that length.
func formatHeaders(header http.Header, length int) string {
	header = header.Clone()
	deleteNamed(header, header["Connection"])
	lines := make(map[string][]string, len(header)+1)
	for name, values := range header {
		if lower := strings.ToLower(name); isToken(name) && !isHopByHop(lower) {
			lines[lower] = values
		}
	}
	lines["content-length"] = []string{strconv.Itoa(length)}

	names := make([]string, 0, len(lines))
	for name := range lines {
		names = append(names, name)
	}
	slices.Sort(names)
	var text strings.Builder
	for _, name := range names {
		for _, value := range lines[name] {
			if !hasControl(value) {
				text.WriteString(name + ":" + strings.ToValidUTF8(value, "\uFFFD") + "\n")
			}
		}
	}
	return text.String()
}

// isToken knows the grammar of names (RFC 9110 section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
