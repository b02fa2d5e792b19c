"""The pictures of docs/performance.md: time and memory against one axis, with the bound drawn in, as SVG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luban.catalogue import Both
from luban.evaluation.charts import Line, Scale, still_chart
from luban.evaluation.formats import same

WIDTH, HEIGHT, LEFT, GAP, TOP, PLOT = 860, 330, 62, 92, 58, 210
STYLE = """
svg { --ink: #23201c; --quiet: #6d665d; --rule: #e4ddd1; --paper: #fbf9f5; }
svg { --blue: #1f6fa8; --orange: #c8590c; --purple: #8a5a9e; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #ece6db; --quiet: #a29a8d; --rule: #38342e; --paper: #191715; }
  svg { --blue: #6ab4ea; --orange: #f0975a; --purple: #c39ad6; }
}
.paper { fill: var(--paper); }
text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
text.head { font-size: 14px; font-weight: 600; fill: var(--ink); }
text.y, text.x.last { text-anchor: end; }
text.x, text.axis { text-anchor: middle; }
.zh { display: none; }
.grid { stroke: var(--rule); }
.base { stroke: var(--quiet); opacity: .6; }
.curve { fill: none; stroke: currentColor; stroke-width: 1.8; vector-effect: non-scaling-stroke; }
.curve.guide { stroke-dasharray: 6 4; }
circle { fill: currentColor; }
.measured { color: var(--blue); }
.bound { color: var(--orange); }
.full { color: var(--purple); }
svg.plot { overflow: visible; }
"""
UNITS = {
    "length": "tokens in a window",
    "width": "width",
    "batch": "windows in a step",
    "vocabulary": "vocabulary",
}


def draw(axis: str, points: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture of an axis: on the left seconds, on the right bytes, all scales logarithmic."""
    at = np.array([point[axis] for point in points], dtype=np.float64)

    def column(*keys: str) -> np.ndarray:
        values = [point[keys[0]] if len(keys) == 1 else point[keys[0]][keys[1]] for point in points]
        return np.log2(np.array(values, dtype=np.float64))

    def lines(name: str) -> list[Line]:
        return [
            Line("bound", np.log2(at), column("bound", name), "bound", "guide"),
            Line("measured", np.log2(at), column(name), "measured"),
            Line("measured", np.log2(at), column(name), "measured", "points"),
        ]

    memory = lines("bytes")
    if axis == "vocabulary":
        logits = [4 * point["batch"] * point["length"] * point["vocabulary"] for point in points]
        memory.insert(
            0,
            Line(
                "all logits at once",
                np.log2(at),
                np.log2(np.array(logits, dtype=np.float64)),
                "full",
                "guide",
            ),
        )
    half = (WIDTH - LEFT - GAP - 20) // 2
    panels = [
        _panel(LEFT, half, "seconds of one step", axis, lines("seconds"), at, _seconds),
        _panel(LEFT + half + GAP, half, "peak memory of the step", axis, memory, at, _bytes),
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<style>{STYLE}</style><rect class="paper" width="100%" height="100%" rx="6"/>{"".join(panels)}</svg>\n',
        encoding="utf-8",
    )


def _panel(
    left: int, width: int, title: str, axis: str, lines: Sequence[Line], at: np.ndarray, tick: Any
) -> str:
    ticks = [float(value) for value in np.log2(at)]
    x = Scale(ticks[0], ticks[-1], tuple(ticks))
    y = _powers(lines)
    chart = still_chart(
        lines, title=same(f"{title} against {UNITS[axis]}"), x=x, y=y, x_tick=_count, y_tick=tick
    )
    placed = f'<svg x="{left}" y="{TOP}" width="{width}" height="{PLOT}" class="plot'
    names, shift = [], 0
    for line in {line.name: line for line in reversed(lines)}.values():
        dashes = ' stroke-dasharray="6 4"' if line.look == "guide" else ""
        names.append(
            f'<g class="{line.colour}"><line x1="{left + shift}" x2="{left + shift + 22}" y1="40" y2="40" '
            f'stroke="currentColor" stroke-width="2"{dashes}/>'
            f'<text x="{left + shift + 28}" y="44">{line.name}</text></g>'
        )
        shift += 42 + 7 * len(line.name)
    return (
        f'<text class="head" x="{left}" y="24">{title}</text>{"".join(names)}'
        + str(chart).replace('<svg class="plot', placed, 1)
        + f'<text class="axis" x="{left + width / 2}" y="{TOP + PLOT + 44}">{UNITS[axis]}</text>'
    )


def _powers(lines: Sequence[Line]) -> Scale:
    """Return a logarithmic scale (base 2) that holds all lines, with about five powers of two as ticks."""
    low = math.floor(min(float(line.y.min()) for line in lines))
    high = math.ceil(max(float(line.y.max()) for line in lines))
    stride = max(1, round((high - low) / 5))
    return Scale(low, high, tuple(float(power) for power in range(low, high + 1, stride)))


def _count(power: float) -> Both:
    value = round(2**power)
    return same(
        f"{value // 1000}k"
        if value >= 10_000 and value % 1024
        else f"{value // 1024}k"
        if value > 9999
        else str(value)
    )


def _seconds(power: float) -> Both:
    value = 2**power
    return same(
        f"{1e3 * value:.2g} ms" if value < 0.1 else f"{1e3 * value:.0f} ms" if value < 1 else f"{value:.0f} s"
    )


def _bytes(power: float) -> Both:
    value = 2**power
    return same(f"{value / 2**30:.0f} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB")
