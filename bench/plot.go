package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
)

// The plots have a background of their own, so that they can be read on a dark
// page, too.
const (
	plotWidth  = 760
	plotLeft   = 190 // where bars begin: names stand before it
	plotRight  = 150 // behind them: figures
	plotTop    = 64
	barStep    = 30
	barHeight  = 18
	inkColor   = "#1f2328"
	faintColor = "#59636e"
	ruleColor  = "#d1d9e0"
	peerColor  = "#9aa6b2"
	ownColor   = "#0969da"
	bareColor  = "#57606a"
)

// plots are SVG files by name.
func (r *results) plots() map[string][]byte {
	files := make(map[string][]byte)
	most, few := r.most(markConns), r.most(pushConns)
	bars := func(name, title, text, part string, conns int, value string) {
		if conns == 0 {
			return
		}
		title = fmt.Sprintf("%s, %s connections", title, count(conns))
		if svg := r.bars(title, text, part, conns, value); svg != nil {
			files[name] = svg
		}
	}
	bars("memory.svg", "Memory of an idle connection", "bytes in RAM after garbage collection; less is better", partLoad, most, valueRSS)
	bars("broadcast.svg", "CPU of a delivery, one broadcast at a time", "µs, user and system; less is better", partLoad, most, valueSingle)
	bars("burst.svg", "CPU of a delivery, ten broadcasts back to back", "µs, user and system; less is better", partLoad, most, valueBurst)
	bars("push.svg", "Push to one user, p50", "µs from the call until the client has it, server idle; less is better", partPush, few, valuePush50)
	bars("connect.svg", "CPU to take a connection", "µs, user and system; less is better", partLoad, most, valueConnect)
	if len(r.Conns) > 1 {
		files["growth-memory.svg"] = r.lines("Memory of an idle connection as they grow in number", "bytes", valueRSS)
		files["growth-broadcast.svg"] = r.lines("CPU of a broadcast's delivery as connections grow in number", "µs", valueSingle)
	}
	return files
}

// canvas is an SVG file that is being written.
type canvas struct {
	bytes.Buffer
	height int
}

func newCanvas(height int, title, text string) *canvas {
	c := &canvas{height: height}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-label="%s" font-family="system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif">`+"\n",
		plotWidth, height, html.EscapeString(title))
	fmt.Fprintf(c, `<rect x="0.5" y="0.5" width="%d" height="%d" rx="6" fill="#ffffff" stroke="%s"/>`+"\n", plotWidth-1, height-1, ruleColor)
	c.text(20, 28, 15, inkColor, "start", "600", title)
	c.text(20, 47, 12, faintColor, "start", "400", text)
	return c
}

func (c *canvas) text(x, y float64, size int, color, anchor, weight, s string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" font-size="%d" fill="%s" text-anchor="%s" font-weight="%s">%s</text>`+"\n",
		x, y, size, color, anchor, weight, html.EscapeString(s))
}

func (c *canvas) line(x1, y1, x2, y2, width float64, color string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"/>`+"\n", x1, y1, x2, y2, color, width)
}

func (c *canvas) end() []byte {
	fmt.Fprintln(c, "</svg>")
	return c.Bytes()
}

// bars has a bar for each peer that has the value; the thin line goes from the
// least to the most. nil: nobody has it.
func (r *results) bars(title, text, part string, conns int, value string) []byte {
	var peers []string
	longest := 0.0
	for _, peer := range peerNames {
		if all := r.values(part, peer, conns, value); len(all) > 0 {
			peers = append(peers, peer)
			longest = max(longest, slices.Max(all))
		}
	}
	if longest <= 0 {
		return nil
	}
	c := newCanvas(plotTop+len(peers)*barStep+14, title, text)
	x := func(v float64) float64 { return plotLeft + max(0, v)/longest*(plotWidth-plotLeft-plotRight) }
	for i, peer := range peers {
		all := r.values(part, peer, conns, value)
		y := float64(plotTop + i*barStep)
		middle := y + barHeight/2
		weight := "400"
		if colorOf(peer) == ownColor {
			weight = "600"
		}
		c.text(plotLeft-10, middle+4, 12, inkColor, "end", weight, peerTitles[peer])
		fmt.Fprintf(c, `<rect x="%d" y="%.1f" width="%.1f" height="%d" rx="2" fill="%s"/>`+"\n",
			plotLeft, y, max(1, x(median(all))-plotLeft), barHeight, colorOf(peer))
		if len(all) > 1 {
			c.line(x(slices.Min(all)), middle, x(slices.Max(all)), middle, 1.5, inkColor)
		}
		c.text(x(slices.Max(all))+8, middle+4, 12, inkColor, "start", weight, number(median(all)))
	}
	return c.end()
}

func colorOf(peer string) string {
	switch peer {
	case peerEngine, peerGoroutines:
		return ownColor
	case peerBare:
		return bareColor
	}
	return peerColor
}

// lines has a line for each peer over the numbers of connections. Both axes are
// logarithmic: a cost that does not grow is a level line, whatever it is.
func (r *results) lines(title, unit, value string) []byte {
	const bottom, left, height = 40, 70, 400
	c := newCanvas(height, title, unit+", median; logarithmic on both axes: what does not grow is level")
	least, most := math.Inf(1), 0.0
	for _, peer := range peerNames {
		for _, conns := range r.Conns {
			if all := r.values(partLoad, peer, conns, value); len(all) > 0 && median(all) > 0 {
				least, most = min(least, median(all)), max(most, median(all))
			}
		}
	}
	if most == 0 {
		return c.end()
	}
	ticks := ticksFor(least, most)
	low, high := math.Log10(ticks[0]), math.Log10(ticks[len(ticks)-1])
	y := func(v float64) float64 {
		return height - bottom - (math.Log10(v)-low)/(high-low)*(height-bottom-plotTop)
	}
	begin, end := math.Log10(float64(r.Conns[0])), math.Log10(float64(r.Conns[len(r.Conns)-1]))
	x := func(conns int) float64 {
		return left + (math.Log10(float64(conns))-begin)/(end-begin)*(plotWidth-left-plotRight-10)
	}
	for _, v := range ticks {
		c.line(left, y(v), plotWidth-plotRight-10, y(v), 0.5, ruleColor)
		c.text(left-8, y(v)+4, 11, faintColor, "end", "400", number(v))
	}
	for _, conns := range r.Conns {
		c.line(x(conns), plotTop, x(conns), height-bottom, 0.5, ruleColor)
		c.text(x(conns), height-bottom+18, 11, faintColor, "middle", "400", count(conns))
	}
	// The names stand behind the lines, as far apart as they have to.
	type label struct {
		peer string
		y    float64
	}
	var labels []label
	for _, peer := range peerNames {
		var points []byte
		last := 0.0
		for _, conns := range r.Conns {
			if all := r.values(partLoad, peer, conns, value); len(all) > 0 && median(all) > 0 {
				last = y(median(all))
				points = fmt.Appendf(points, "%.1f,%.1f ", x(conns), last)
			}
		}
		if len(points) == 0 {
			continue
		}
		width, dash := 1.5, ""
		if colorOf(peer) == ownColor {
			width = 2.5
		}
		if peer == peerGoroutines {
			dash = ` stroke-dasharray="6 4"`
		}
		fmt.Fprintf(c, `<polyline points="%s" fill="none" stroke="%s" stroke-width="%.1f"%s/>`+"\n", bytes.TrimSpace(points), colorOf(peer), width, dash)
		labels = append(labels, label{peer, last})
	}
	slices.SortStableFunc(labels, func(a, b label) int { return int(math.Copysign(1, a.y-b.y)) })
	for i := range labels {
		if i > 0 {
			labels[i].y = max(labels[i].y, labels[i-1].y+14)
		}
		color, weight := inkColor, "400"
		if colorOf(labels[i].peer) == ownColor {
			color, weight = ownColor, "600"
		}
		c.text(plotWidth-plotRight, labels[i].y+4, 11, color, "start", weight, peerTitles[labels[i].peer])
	}
	return c.end()
}

// ticksFor are 1, 3, 10, 30, … from below the least to above the most.
func ticksFor(least, most float64) (ticks []float64) {
	for power := math.Pow(10, math.Floor(math.Log10(least))); ; power *= 10 {
		for _, v := range []float64{power, 3 * power} {
			if v <= least {
				ticks = ticks[:0]
			}
			ticks = append(ticks, v)
			if v > most {
				return ticks
			}
		}
	}
}
