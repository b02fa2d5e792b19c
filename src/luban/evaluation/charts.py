"""Charts as inline SVG: pure functions from numbers to markup.

A chart stretches with its box while its letters, strokes and dots keep their size: curves lie in an inner
`<svg>` that is stretched, all else is placed in percent. Colours are CSS classes (page.css), so that dark
mode and print work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from luban.catalogue import Both
from luban.evaluation import formats

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_POINTS = 600
_GRID = 1000


@dataclass(frozen=True)
class Line:
    """One curve: equally long `x` and `y` (NaN breaks it), a CSS class for its colour, and how it is drawn.

    `look` is "line", "faint" (raw values behind a smoothed line), "dots" (few points, each marked), "points" (marks
    without a line) or "guide" (what the others are held against).
    """

    name: str
    x: Floats
    y: Floats
    colour: str
    look: str = "line"


@dataclass(frozen=True)
class Bars:
    """Bars from zero, each between its `left` and `right`, all (bars,); a NaN height draws none.

    `says` is read when a bar is pointed at; a CSS class gives the colour.
    """

    left: Floats
    right: Floats
    heights: Floats
    colour: str
    says: Sequence[str]


@dataclass(frozen=True)
class Scale:
    """Maps low..high to 0..1 and knows its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def __call__(self, values: Floats) -> Floats:
        """Return where the values lie, 0 at `low` and 1 at `high`; what is beyond is held within -1 to 2."""
        span = self.high - self.low
        return (np.clip(values, self.low - span, self.high + span) - self.low) / span


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Return about `target` round numbers within low..high: steps of 1, 2, 2.5 or 5 times a power of ten.

    Example:
        >>> nice_ticks(0, 10)
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        >>> nice_ticks(1.31, 1.38, 4)
        [1.32, 1.34, 1.36, 1.38]
    """
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return []
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    if power == 0 or not math.isfinite(power):
        return []
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def scale(values: Sequence[Floats], ticks: int = 5, *, from_zero: bool = False, pad: float = 0.0) -> Scale:
    """Return a scale that holds every finite value; a single value gets room around it.

    Arguments:
        values: what must fit.
        ticks: about how many ticks.
        from_zero: begin at 0 unless something is below.
        pad: free room at either end, as a share of the span.
    """
    finite = [v[np.isfinite(v)] for v in values]
    finite = [v for v in finite if v.size]
    low = min((float(v.min()) for v in finite), default=0.0)
    high = max((float(v.max()) for v in finite), default=1.0)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    span = high - low
    if span <= abs(high) * 1e-9:
        room = abs(high) * 0.1 or 1.0
        low, high = (0.0, high + room) if from_zero and low >= 0 else (low - room, high + room)
    else:
        low, high = (low if from_zero and low == 0 else low - span * pad), high + span * pad
    return Scale(low, high, tuple(nice_ticks(low, high, ticks)))


def extremes(values: Floats, limit: int = MAX_POINTS) -> Integers:
    """Return at most `limit` sorted positions that keep the shape: the lowest and highest of every stretch.

    The first and the last position are among them, and a NaN of every stretch that has one, so gaps show.

    Example:
        >>> spiky = np.zeros(10_000)
        >>> spiky[4321] = 7.0
        >>> kept = extremes(spiky, 100)
        >>> bool(4321 in kept), len(kept) <= 100
        (True, True)
    """
    size = len(values)
    if size <= limit:
        return np.arange(size, dtype=np.int64)
    edges = np.linspace(0, size, max(1, (limit - 2) // 3) + 1).astype(np.int64)
    low = np.where(np.isfinite(values), values, np.inf)
    high = np.where(np.isfinite(values), values, -np.inf)
    kept = {0, size - 1}
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        kept.add(start + int(low[start:end].argmin()))
        kept.add(start + int(high[start:end].argmax()))
        missing = np.isnan(values[start:end])
        if missing.any():
            kept.add(start + int(missing.argmax()))
    return np.array(sorted(kept), dtype=np.int64)


def smooth(values: Floats, half: int | None = None) -> Floats:
    """Return the mean of each value's neighbourhood, `half` to either side, NaN left out.

    Near the start the neighbourhood shrinks on both sides, so that a steep beginning is not flattened.

    Example:
        >>> smooth(np.array([5.0, 1.0, 3.0, np.nan, 3.0]), half=1).tolist()
        [5.0, 3.0, 2.0, 3.0, 3.0]
    """
    size = len(values)
    half = max(1, size // 50) if half is None else half
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    position = np.arange(size)
    start = position - np.minimum(half, position)
    end = np.minimum(size, position + np.minimum(half, position) + 1)
    count = counts[end] - counts[start]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, (sums[end] - sums[start]) / count, np.nan)


def line_chart(
    lines: Sequence[Line],
    *,
    title: Both,
    y: Scale,
    x: Scale,
    x_axis: str,
    table: str,
    x_tick: Callable[[float], Both] = formats.tick,
    y_tick: Callable[[float], Both] = formats.tick,
    small: bool = False,
) -> Markup:
    """Draw curves over a common x axis.

    Arguments:
        lines: the curves, the hindmost first; each is thinned to `MAX_POINTS`.
        title: what the chart shows, for screen readers.
        x, y: the scales; what lies beyond is cut off.
        x_axis, table: the column and the table that the page's script reads values from under the pointer.
        x_tick, y_tick: how a number at an axis is written.
        small: a lower chart.
    """
    read_out = Markup(
        ' tabindex="0" data-axis="{}" data-table="{}" '
        'data-x0="{:.9g}" data-x1="{:.9g}" data-y0="{:.9g}" data-y1="{:.9g}"'
    ).format(x_axis, table, x.low, x.high, y.low, y.high)
    content = _grid(x, y, x_tick, y_tick) + _curves(lines, x, y)
    return _plot(content, "small" if small else "", title, read_out)


def still_chart(
    lines: Sequence[Line],
    *,
    title: Both,
    x: Scale,
    y: Scale,
    bars: Sequence[Bars] = (),
    look: str = "",
    x_tick: Callable[[float], Both] = formats.tick,
    y_tick: Callable[[float], Both] = formats.tick,
) -> Markup:
    """Draw bars and curves that have no read-out.

    Arguments:
        lines, title, x, y, x_tick, y_tick: as for `line_chart`.
        bars: drawn behind the curves.
        look: "square" for a chart as high as it is wide, "small" for a low one.
    """
    drawn = Markup("").join(_bars(group, x, y) for group in bars)
    return _plot(_grid(x, y, x_tick, y_tick) + drawn + _curves(lines, x, y), look, title, Markup(""))


def _plot(content: Markup, look: str, title: Both, attributes: Markup) -> Markup:
    named = f"plot {look}".strip()
    return Markup('<svg class="{}" role="img" {}{}>{}</svg>').format(named, label(title), attributes, content)


def _curves(lines: Sequence[Line], x: Scale, y: Scale) -> Markup:
    curves, dots = [], []
    for line in lines:
        kept = extremes(line.y)
        across, up = x(line.x[kept]) * _GRID, (1 - y(line.y[kept])) * _GRID
        if line.look in ("dots", "points"):
            dots.append(_dots(across, up, line))
        if line.look != "points":
            curves.append(
                Markup('<path class="curve {} {}" d="{}"/>').format(line.look, line.colour, _path(across, up))
            )
    inner = Markup(
        '<svg width="100%" height="100%" viewBox="0 0 {0} {0}" preserveAspectRatio="none">{1}</svg>'
    )
    return inner.format(_GRID, Markup("").join(curves)) + Markup("").join(dots)


def _bars(bars: Bars, x: Scale, y: Scale) -> Markup:
    rectangle = Markup(
        '<rect class="bin {}" x="{:.2f}%" y="{:.2f}%" width="{:.2f}%" height="{:.2f}%"><title>{}</title></rect>'
    )
    zero, drawn = 100 * float(y(np.zeros(1))[0]), []
    lefts, rights, tops = ((100 * at).tolist() for at in (x(bars.left), x(bars.right), y(bars.heights)))
    for left, right, top, said in zip(lefts, rights, tops, bars.says, strict=True):
        if math.isfinite(top) and right > left:
            upper, height = 100 - max(top, zero), abs(top - zero)
            drawn.append(rectangle.format(bars.colour, left, upper, right - left, height, said))
    return Markup("").join(drawn)


def _grid(x: Scale, y: Scale, x_tick: Callable[[float], Both], y_tick: Callable[[float], Both]) -> Markup:
    parts = []
    for value in y.ticks:
        at = f"{100 * (1 - (value - y.low) / (y.high - y.low)):.2f}%"
        parts.append(Markup('<line class="grid" x2="100%" y1="{0}" y2="{0}"/>').format(at))
        parts.append(
            Markup('<text class="y" x="0" y="{}" dx="-8" dy=".35em">{}</text>').format(
                at, tspans(y_tick(value))
            )
        )
    parts.append(Markup('<line class="base" x2="100%" y1="100%" y2="100%"/>'))
    for value in x.ticks:
        place = (value - x.low) / (x.high - x.low)
        anchor = "x last" if place > 0.96 else "x"
        at = f"{100 * place:.2f}%"
        parts.append(Markup('<line class="base" x1="{0}" x2="{0}" y1="100%" y2="100%" />').format(at))
        parts.append(
            Markup('<text class="{}" x="{}" y="100%" dy="20">{}</text>').format(
                anchor, at, tspans(x_tick(value))
            )
        )
    return Markup("").join(parts)


def _path(across: Floats, up: Floats) -> str:
    """Write an SVG path; NaN lifts the pen."""
    pieces, pen = [], "M"
    for px, py in zip(across.tolist(), up.tolist(), strict=True):
        if not (math.isfinite(px) and math.isfinite(py)):
            pen = "M"
            continue
        pieces.append(f"{pen}{px:.1f} {py:.1f}".replace(".0 ", " ").removesuffix(".0"))
        pen = "L"
    return "".join(pieces)


def _dots(across: Floats, up: Floats, line: Line) -> Markup:
    return Markup("").join(
        Markup('<circle class="{}{}" cx="{:.2f}%" cy="{:.2f}%" r="3"/>').format(
            "point " if line.look == "points" else "", line.colour, px / 10, py / 10
        )
        for px, py in zip(across.tolist(), up.tolist(), strict=True)
        if math.isfinite(px) and math.isfinite(py) and 0 <= py <= _GRID
    )


def share_bar(parts: Sequence[tuple[float, str]], title: Both) -> Markup:
    """Draw shares side by side in one bar.

    Arguments:
        parts: (share, CSS class of the colour); shares are 0 to 1.
        title: what the bar shows.
    """
    total = sum(max(0.0, share) for share, _ in parts) or 1.0
    at, drawn = 0.0, []
    for share, colour in parts:
        width = 100 * max(0.0, share) / total
        if width > 0:
            drawn.append(
                Markup('<rect class="{}" x="{:.3f}%" width="{:.3f}%" height="100%"/>').format(
                    colour, at, width
                )
            )
        at += width
    return Markup('<svg class="shares" role="img" {}>{}</svg>').format(label(title), Markup("").join(drawn))


def amount_bar(share: float, colour: str) -> Markup:
    """Draw a share of one, 0 to 1, as a filled part of a bar; the number stands beside it, so it has no name."""
    filled = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="amount" aria-hidden="true"><rect class="track" width="100%" height="100%"/>'
        '<rect class="{}" width="{:.1f}%" height="100%"/></svg>'
    ).format(colour, filled)


def interval_bar(value: float, low: float, high: float, within: Scale, title: Both) -> Markup:
    """Draw a value with its interval: a dot on a whisker; the ticks of the scale are upright lines."""
    x0, x1, at = (100 * float(within(np.array([v]))[0]) for v in (low, high, value))
    upright = Markup("").join(
        Markup('<line class="base" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="100%"/>').format(100 * float(place))
        for place in within(np.array(within.ticks))
    )
    return Markup(
        '<svg class="interval" role="img" {}><line class="grid" x2="100%" y1="50%" y2="50%"/>{}'
        '<line class="whisker" x1="{:.2f}%" x2="{:.2f}%" y1="50%" y2="50%"/>'
        '<circle class="c-loss" cx="{:.2f}%" cy="50%" r="4"/></svg>'
    ).format(label(title), upright, x0, x1, at)


def tspans(text: Both) -> Markup:
    """Return a text for use within SVG, in both languages."""
    if len(set(text.values())) == 1:
        return escape(text["en"])
    return Markup("").join(
        Markup('<tspan class="{0}">{1}</tspan>').format(language, half) for language, half in text.items()
    )


def label(text: Both) -> Markup:
    """Return attributes that name an element for screen readers; the page's script follows the language."""
    return Markup('aria-label="{}"{}').format(
        text["en"], Markup("").join(Markup(' data-label-{}="{}"').format(k, v) for k, v in text.items())
    )


def json_table(columns: Mapping[str, Floats], digits: int = 6) -> dict[str, list[float | None]]:
    """Return columns for the page's script, rounded; NaN and the infinities become null.

    Example:
        >>> json_table({"loss": np.array([1.23456789, np.nan])}, digits=4)
        {'loss': [1.235, None]}
    """
    return {
        name: [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values.tolist()]
        for name, values in columns.items()
    }
