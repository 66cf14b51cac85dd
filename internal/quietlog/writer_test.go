package quietlog

import (
	"log"
	"log/slog"
	"strings"
	"testing"
)

func TestWriterTranslatesALibrarysLines(t *testing.T) {
	for line, want := range map[string]string{
		"[DEBUG] lib: Stream connection from=10.0.0.2:33000": "DEBUG test: gossip err=Stream connection from=10.0.0.2:33000",
		"[INFO] lib: fine":                  "DEBUG test: gossip err=fine",
		"[WARN] lib: odd":                   "WARN test: gossip err=odd",
		"[ERR] lib: bad from=10.0.0.2:1":    "WARN test: gossip err=bad from=10.0.0.2:1",
		"[ERROR] lib: bad key":              "WARN test: gossip err=bad key hint=see the key",
		"[WARN] lib: bad key from=somebody": "WARN test: gossip err=bad key from=somebody hint=see the key",
		"[WARN] lib: nothing new, as ever":  "DEBUG test: gossip err=nothing new, as ever",
		"[WARN] lib: in [brackets] here":    "WARN test: gossip err=in [brackets] here",
		"other: [x] here":                   "WARN test: gossip err=other: [x] here",
		"[WARN]":                            "WARN test: gossip err=[WARN]",
		"] ":                                "WARN test: gossip err=]",
		"":                                  "WARN test: gossip err=",
		" from=":                            "WARN test: gossip err=from=",
	} {
		b := &book{least: slog.LevelDebug}
		bubble(t, b, func(l *Log, _ func()) {
			logger := log.New(&Writer{
				Log: l, Msg: "gossip", Prefix: "lib: ", Ordinary: []string{"nothing new"},
				Hint: func(text string) string {
					if strings.Contains(text, "key") {
						return "see the key"
					}
					return ""
				},
			}, "", 0)
			logger.Print(line)
			b.want(t, want)
		})
	}
}

func TestWriterNeedsNoHints(t *testing.T) {
	b := &book{}
	bubble(t, b, func(l *Log, _ func()) {
		n, err := (&Writer{Log: l, Msg: "gossip"}).Write([]byte("[WARN] lib: odd\n"))
		if n != len("[WARN] lib: odd\n") || err != nil {
			t.Errorf("Write returned %d, %v", n, err)
		}
		b.want(t, "WARN test: gossip err=lib: odd")
	})
}

func TestAStrangersPortMakesNoNewComplaint(t *testing.T) {
	b := &book{}
	bubble(t, b, func(l *Log, _ func()) {
		w := &Writer{Log: l, Msg: "gossip"}
		for _, from := range []string{"10.0.0.2:1", "10.0.0.2:2", "10.0.0.3:3", "[::1]:4", "[::1]:5"} {
			w.Write([]byte("[WARN] bad from=" + from))
		}
		b.want(t,
			"WARN test: gossip err=bad from=10.0.0.2:1",
			"WARN test: gossip err=bad from=10.0.0.3:3",
			"WARN test: gossip err=bad from=[::1]:4")
	})
}
