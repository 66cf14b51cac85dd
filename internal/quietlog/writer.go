package quietlog

import (
	"log/slog"
	"net"
	"strings"
)

// Writer is under the log.Logger of a library whose lines look like
// "[WARN] library: text from=addr". It posts them, the text as the attribute
// err. What such a library calls an error is a stranger's or the network's
// doing: a warning. [INFO] and [DEBUG] become slog.LevelDebug.
type Writer struct {
	Log      *Log
	Msg      string                   // of every line
	Prefix   string                   // what the texts begin with and the log need not tell; "": nothing
	Ordinary []string                 // how texts begin that are slog.LevelDebug whatever their tag; nil: none
	Hint     func(text string) string // explains a text in the attribute hint, or is ""; nil: no hints
}

// Write takes one line, as log.Logger does. It never waits nor fails.
func (w *Writer) Write(b []byte) (int, error) {
	text, level := strings.TrimSpace(string(b)), slog.LevelWarn
	if tag, rest, ok := strings.Cut(text, "] "); ok && strings.HasPrefix(tag, "[") {
		text = rest
		if tag == "[DEBUG" || tag == "[INFO" {
			level = slog.LevelDebug
		}
	}
	text = strings.TrimPrefix(text, w.Prefix)
	for _, known := range w.Ordinary {
		if strings.HasPrefix(text, known) {
			level = slog.LevelDebug
		}
	}

	var from string
	if i := strings.LastIndex(text, " from="); i >= 0 {
		text, from = text[:i], text[i+len(" from="):]
	}
	host, _, _ := net.SplitHostPort(from) // the port of a stream differs each time
	args := []any{"err", text}
	if from != "" {
		args = append(args, "from", from)
	}
	if w.Hint != nil {
		if why := w.Hint(text); why != "" {
			args = append(args, "hint", why)
		}
	}
	w.Log.Post(level, host+" "+text, w.Msg, args...)
	return len(b), nil
}
