package main

import (
	"strings"
	"testing"
)

func TestHowAProcessEndsIsTold(t *testing.T) {
	for script, want := range map[string]string{
		"cat":                        "",
		"cat; exit 3":                "exit status 3",
		"cat >/dev/null; kill -9 $$": "signal: killed",
	} {
		p, err := startProcess("it", []string{"sh", "-c", script})
		if err != nil {
			t.Fatal(err)
		}
		err = p.stop()
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasSuffix(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", script, err, want)
		}
	}
}
