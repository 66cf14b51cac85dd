package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
)

// readVersions tells those of what takes part, as far as it is there.
func readVersions(versions map[string]string) {
	versions["Go"] = strings.TrimPrefix(runtime.Version(), "go")
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			switch module.Path {
			case "github.com/gorilla/websocket", "github.com/olahol/melody", "github.com/lxzan/gws", "github.com/coder/websocket":
				versions[strings.TrimPrefix(module.Path, "github.com/")] = strings.TrimPrefix(module.Version, "v")
			}
		}
	}
	if head, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output(); err == nil {
		commit := strings.TrimSpace(string(head))
		if changed, err := exec.Command("git", "status", "--porcelain").Output(); err != nil || len(changed) > 0 {
			commit += "+"
		}
		versions["push"] = commit
	}
	for name, args := range map[string][]string{"Node": {"node", "--version"}, "cc": {"cc", "-dumpfullversion"}} {
		if out, err := exec.Command(args[0], args[1:]...).Output(); err == nil {
			versions[name] = strings.TrimPrefix(strings.TrimSpace(string(out)), "v")
		}
	}
	for _, name := range []string{"ws", "socket.io", "bufferutil"} {
		var manifest struct{ Version string }
		b, _ := os.ReadFile(filepath.Join("node", "node_modules", name, "package.json"))
		if json.Unmarshal(b, &manifest) == nil {
			versions["npm "+name] = manifest.Version
		}
	}
}
