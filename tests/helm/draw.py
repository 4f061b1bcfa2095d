"""Draws a dashboard as SVG from what a Prometheus holds: every panel's own query, at the panel's own place.

    draw.py DASHBOARD PROMETHEUS FROM TO PICTURE      times in seconds since the epoch

It is no Grafana, and the picture says so: lines, states, cells and numbers, with the panel's title, unit and legend.
"""

import json
import math
import sys
import urllib.parse
import urllib.request
from xml.sax.saxutils import escape

COLUMN, ROW, HEAD = 50, 30, 50
COLOURS = ["#3274d9", "#e0752d", "#299c46", "#a352cc", "#c4162a", "#8a8a00", "#1f9e9e", "#7a5c3a"]
NAMED = {"green": "#299c46", "orange": "#e0752d", "red": "#c4162a", "blue": "#3274d9"}


def ask(prometheus, path, **parameters):
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)["data"]["result"]


def legend(target, labels):
    text = target["legendFormat"]
    for name, value in labels.items():
        text = text.replace("{{%s}}" % name, value)
    return text.strip()


def series(prometheus, panel, begin, end):
    """(legend, [(time, value)]) of every query of a panel."""
    found = []
    for target in panel["targets"]:
        query = target["expr"]
        for variable, value in (("$instance", ".*"), ("$stream", ".*"), ("$__rate_interval", "10s")):
            query = query.replace(variable, value)
        step = max(1, (end - begin) // 400)
        for one in ask(prometheus, "query_range", query=query, start=begin, end=end, step=step):
            points = [(time, float(value)) for time, value in one["values"]]
            found.append((legend(target, one["metric"]), [(t, v) for t, v in points if math.isfinite(v)]))
    return found


def scaled(value, by, suffixes):
    sign, value, i = ("-" if value < 0 else ""), abs(value), 0
    while value >= by and i < len(suffixes) - 1:
        value, i = value / by, i + 1
    number = f"{value:.0f}" if value == int(value) else f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return f"{sign}{number}{suffixes[i]}"


def shown(value, unit):
    if unit == "s":
        if abs(value) < 1:
            return scaled(value * 1000, 1000, [" ms", " s"])
        for size, name in ((86400, " d"), (3600, " h"), (60, " min")):
            if abs(value) >= 2 * size:
                return f"{value / size:.1f}{name}"
        return f"{value:.1f} s"
    if unit == "percentunit":
        return f"{100 * value:.0f} %"
    if unit in ("bytes", "Bps"):
        return scaled(value, 1024, [" B", " KiB", " MiB", " GiB", " TiB"]) + ("/s" if unit == "Bps" else "")
    return scaled(value, 1000, ["", " K", " M", " G"]) + ("/s" if unit == "ops" else "")


def text(x, y, what, size=11, fill="#333", anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(what)}</text>')


def threshold_colour(panel, value):
    colour = "#333"
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            colour = NAMED.get(step["color"], colour)
    return colour


def stat(panel, found, box):
    """The worst that the panel showed in this time, because one moment's number would show little."""
    x, y, w, h = box
    unit = panel["fieldConfig"]["defaults"]["unit"]
    values = [(v, name) for name, points in found for _, v in points]
    if not values:
        return text(x + w / 2, y + h / 2 + 12, "none", 20, "#888", "middle")
    least = panel["title"] == "Ready"
    value, name = min(values) if least else max(values)
    what = name if panel["options"]["textMode"] == "name" else shown(value, unit)
    for mapping in panel["fieldConfig"]["defaults"].get("mappings", []):
        what = mapping["options"].get(f"{value:.0f}", {}).get("text", what)
    return (text(x + w / 2, y + h / 2 + 14, what, 22, threshold_colour(panel, value), "middle", "bold")
            + text(x + w / 2, y + h - 8, "lowest" if least else "highest in this time", 9, "#888", "middle"))


def lines(panel, found, box, begin, end):
    x, y, w, h = box
    unit = panel["fieldConfig"]["defaults"]["unit"]
    left, top, width, height = x + 62, y + 30, w - 74, h - 66
    top_value = max((v for _, points in found for _, v in points), default=0) or 1
    out = []
    for i in range(3):
        level = top + height * i / 2
        out.append(f'<line x1="{left}" x2="{left + width}" y1="{level:.1f}" y2="{level:.1f}" stroke="#e4e4e4"/>')
        out.append(text(left - 6, level + 4, shown(top_value * (2 - i) / 2, unit), 10, "#666", "end"))
    at = x + 12
    for i, (name, points) in enumerate(found):
        colour = COLOURS[i % len(COLOURS)]
        part, last = [], None
        for time, value in points:
            px = left + width * (time - begin) / (end - begin)
            py = top + height * (1 - max(0, value) / top_value)
            gap = last is None or time - last > 5 * max(1, (end - begin) // 400)
            part.append(f'{"M" if gap else "L"}{px:.1f} {py:.1f}')
            last = time
        out.append(f'<path d="{"".join(part)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if name and at < x + w - 60:
            out.append(f'<rect x="{at}" y="{y + h - 17}" width="10" height="4" fill="{colour}"/>')
            out.append(text(at + 14, y + h - 11, name, 10))
            at += 26 + 6 * len(name)
    if not found:
        out.append(text(x + w / 2, y + h / 2 + 8, "no data", 13, "#888", "middle"))
    return "".join(out)


def states(panel, found, box, begin, end):
    x, y, w, h = box
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    left, width, height = x + 80, w - 96, (h - 70) / max(1, len(found))
    out = []
    for i, (name, points) in enumerate(found):
        row = y + 34 + i * height
        out.append(text(left - 8, row + height / 2 + 3, name, 11, "#333", "end"))
        for (time, value), following in zip(points, points[1:] + [(points[-1][0] + 1, 0)]):
            state = mapping["options"].get(f"{value:.0f}")
            if state:
                px = left + width * (time - begin) / (end - begin)
                pw = width * (min(following[0], time + 5) - time) / (end - begin)
                out.append(f'<rect x="{px:.1f}" y="{row:.1f}" width="{pw + 0.3:.1f}" height="{height - 6:.1f}" '
                           f'fill="{NAMED[state["color"]]}"/>')
    at = x + 12
    for state in mapping["options"].values():
        out.append(f'<rect x="{at}" y="{y + h - 19}" width="10" height="8" fill="{NAMED[state["color"]]}"/>')
        out.append(text(at + 14, y + h - 11, state["text"], 10))
        at += 26 + 6 * len(state["text"])
    return "".join(out)


def cells(found, box, begin, end):
    """Buckets are cumulative: a cell is what its bucket has above the one below it."""
    x, y, w, h = box
    found = sorted(((math.inf if le == "+Inf" else float(le), dict(points)) for le, points in found))
    left, top, width, height = x + 62, y + 30, w - 74, (h - 50) / max(1, len(found))
    counts, below = [], {}
    for le, points in found:
        counts.append((le, {time: max(0, value - below.get(time, 0)) for time, value in points.items()}))
        below = points
    most = max((count for _, points in counts for count in points.values()), default=0) or 1
    out = []
    for i, (le, points) in enumerate(counts):
        row = top + (len(counts) - 1 - i) * height
        if i % 3 == 0:
            out.append(text(left - 6, row + height / 2 + 3, shown(le, "s"), 9, "#666", "end"))
        for time, count in points.items():
            if count > 0:
                px = left + width * (time - begin) / (end - begin)
                out.append(f'<rect x="{px:.1f}" y="{row:.1f}" width="3" height="{height:.1f}" fill="#c4162a" '
                           f'opacity="{0.15 + 0.85 * count / most:.2f}"/>')
    return "".join(out)


def main(dashboard, prometheus, begin, end, picture):
    begin, end = int(begin), int(end)
    with open(dashboard) as file:
        dashboard = json.load(file)
    panels = dashboard["panels"]
    height = HEAD + ROW * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 6
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN} {height}" '
           f'font-family="Helvetica, Arial, sans-serif">',
           f'<rect width="{24 * COLUMN}" height="{height}" fill="#f4f5f5"/>',
           text(10, 24, dashboard["title"], 18, "#111", weight="bold"),
           text(10, 42, f"{end - begin} seconds of a real daemon under the faults of the test: the panels' own queries, "
                f"drawn by tests/helm/draw.py from Prometheus' answers. Grafana draws them in its own way.", 11, "#666")]
    for panel in panels:
        place = panel["gridPos"]
        box = (place["x"] * COLUMN + 4, HEAD + place["y"] * ROW + 4, place["w"] * COLUMN - 8, place["h"] * ROW - 8)
        x, y, w, h = box
        out.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="3" fill="#fff" stroke="#dcdcdc"/>')
        out.append(text(x + 10, y + 18, panel["title"], 12, "#222", weight="bold"))
        found = series(prometheus, panel, begin, end)
        kind = panel["type"]
        if kind == "stat":
            out.append(stat(panel, found, box))
        elif kind == "state-timeline":
            out.append(states(panel, found, box, begin, end))
        elif kind == "heatmap":
            out.append(cells(found, box, begin, end))
        else:
            out.append(lines(panel, found, box, begin, end))
    out.append("</svg>\n")
    with open(picture, "w") as file:
        file.write("\n".join(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
