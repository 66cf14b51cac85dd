package quietlog

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestALimitedLogWritesTenLinesASecondOfAMessageAndSaysHowManyItDidNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := Limit(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})))
		for range 25 {
			log.With("a", 1).Warn("often")
			log.Debug("asked for")
		}
		log.Warn("once")
		if got := b.String(); strings.Count(got, "often") != 10 || strings.Count(got, "asked for") != 25 || strings.Count(got, "once") != 1 {
			t.Errorf("want 10 often, 25 asked for, 1 once, got\n%s", got)
		}
		b.Reset()
		time.Sleep(time.Second)
		log.Warn("often")
		if got := b.String(); !strings.Contains(got, "dropped=15") {
			t.Errorf("want it to say that 15 were dropped, got %s", got)
		}
	})
}
