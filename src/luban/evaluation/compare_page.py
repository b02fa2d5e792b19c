"""The page of a comparison: one self-contained HTML file in both languages, like the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from luban.catalogue import Both, both
from luban.evaluation import formats, page
from luban.evaluation.charts import Floats, Line, Scale, interval_bar, json_table, line_chart, scale, smooth
from luban.evaluation.comparing import Comparison, Row, Side
from luban.evaluation.curves import axis_name, place, time_scale
from luban.evaluation.metric_names import lower_is_better, metric_name
from luban.evaluation.pairing import Pairing, small_p
from luban.evaluation.records import JsonObject, mapping, real, words
from luban.evaluation.standing import Standing

COLOURS = 8
_READ = 200
_AXES = ("step", "tokens", "seconds")
_WRITTEN: dict[str, Callable[[float | None], Both]] = {
    "steps": formats.whole,
    "tokens": formats.count,
    "seconds": formats.duration,
    "tokens_per_second": formats.count,
    "peak_share": formats.percent,
    "peak_rss_bytes": formats.size,
    "parameters": formats.count,
}


def render_comparison(found: Comparison) -> str:
    """Return the page."""
    unit = found.unit
    primary = mapping(found.sides[0].records.evaluation.get("primary"))
    drawn = [chart for name in ("loss", "validation") if (chart := _chart(found.sides, name))]
    labels = [side.label for side in found.sides]
    return page.render(
        "compare.html",
        ("page.css", "report.css"),
        ("page.js", "report.js"),
        heading=both("compare.title", runs=page.plain(", ".join(labels))),
        runs=[_run(side, number) for number, side in enumerate(found.sides)],
        equal=bool(found.equal),
        figures=[_figure(name, values, labels) for name, values in found.figures.items()],
        pairs=[_pair(labels[0], label, pairing, primary) for label, pairing in found.pairings.items()],
        charts=drawn,
        continue_text=all(side.records.said.continues_text for side in found.sides),
        axes={axis: axis_name(axis, unit) for axis in _AXES if any(axis in chart["over"] for chart in drawn)},
        read_out=_read_out(drawn, labels, unit),
        settings=_rows(found.settings, labels),
        machine=_rows(found.machine, labels),
        data=[{"label": label, "lines": list(lines)} for label, lines in found.data.items()],
        first=labels[0],
        speeds=[_work(row.name, row.values, labels, unit) for row in found.speeds],
    )


def _work(name: str, values: Mapping[str, Any], labels: Sequence[str], unit: str) -> dict[str, Any]:
    written = [_WRITTEN[name](real(values.get(label))) for label in labels]
    shown = name.replace("tokens", unit)
    return {"name": both(f"compare.work.{shown}"), "values": written}


def _run(side: Side, number: int) -> dict[str, Any]:
    standing: Standing = side.standing
    return {
        "label": page.visible(side.label),
        "colour": f"c-run-{number % COLOURS}",
        "state": standing.state,
        "step": formats.whole(side.came.step),
        "begun": formats.moment(standing.begun),
        "why": words(standing.why, 300) if standing.state != "died" else "",
    }


def _figure(name: str, values: Mapping[str, Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
    cells = []
    for label in labels:
        entry = values.get(label, {})
        low, high = real(entry.get("low")), real(entry.get("high"))
        note = None
        if "step" in entry:
            note = both("report.figure.latest", step=formats.whole(real(entry["step"])))
        elif low is not None and high is not None and high > low:
            note = formats.same(f"{formats.number(low)['en']} – {formats.number(high)['en']}")
        cells.append({"value": formats.number(real(entry.get("value"))), "note": note})
    return {"name": metric_name(name), "cells": cells}


def _pair(first: str, label: str, pairing: Pairing, primary: JsonObject) -> dict[str, Any]:
    told: dict[str, Any] = {
        "label": page.visible(label),
        "first": page.visible(first),
        "why": pairing.why,
        "rows": [],
    }
    if pairing.why:
        return told
    unit = pairing.unit
    told["over"] = both(f"compare.pair.{unit}", count=formats.whole(pairing.count))
    for name, (middle, low, high) in pairing.differences.items():
        room = 1.15 * max(abs(low), abs(high), abs(middle)) or 1.0
        within = Scale(-room, room, (0.0,))
        values = {"value": _signed(middle), "low": _signed(low), "high": _signed(high)}
        verdict = _verdict(low, high, lower_is_better(name, primary))
        told["rows"].append(
            {
                "name": metric_name(name),
                **values,
                "verdict": both(f"compare.pair.{verdict}"),
                "chance": f"p {small_p(pairing.chances[name])}" if name in pairing.chances else "",
                "clear": verdict not in ("open", "same"),
                "bar": interval_bar(
                    middle,
                    low,
                    high,
                    within,
                    both("report.evaluation.interval_chart", name=metric_name(name), **values),
                ),
            }
        )
    return told


def _verdict(low: float, high: float, lower: bool) -> str:
    """Say what an interval of a difference shows; `lower` says whether less is better."""
    if low == high == 0:
        return "same"
    if low <= 0 <= high:
        return "open"
    if high < 0:
        return "lower" if lower else "lower_worse"
    return "higher" if lower else "higher_better"


def _signed(value: float) -> Both:
    text = formats.number(value)["en"]
    return formats.same(f"+{text}" if value > 0 else text)


def _rows(rows: Sequence[Row], labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": page.visible(row.name),
            "values": [_written(row.values[label]) if label in row.values else None for label in labels],
        }
        for row in rows
    ]


def _written(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return page.visible(words(text, 300))


def _chart(sides: Sequence[Side], name: str) -> dict[str, Any] | None:
    """The loss of all runs in one chart, over each axis; None where no run has any."""
    curves = [_curve(side, name) for side in sides]
    heights = [values for _, values in curves]
    if not any(np.isfinite(values).any() for values in heights):
        return None
    up = scale([_without_spikes(values) for values in heights], pad=0.04)
    over: dict[str, Markup] = {}
    tables: dict[str, dict[str, Floats]] = {}
    for axis in _AXES:
        places = [_places(side, axis, steps) for side, (steps, _) in zip(sides, curves, strict=True)]
        if not any(np.isfinite(at).sum() > 1 for at in places):
            continue
        lines = [
            Line(side.label, at, values, f"c-run-{number % COLOURS}", "line" if name == "loss" else "dots")
            for number, (side, at, values) in enumerate(zip(sides, places, heights, strict=True))
        ]
        across, tick = (
            time_scale(places) if axis == "seconds" else (scale(places, from_zero=True), formats.tick)
        )
        table = f"{name}-{axis}"
        over[axis] = line_chart(
            lines, title=both(f"compare.chart.{name}"), x=across, y=up, x_axis=axis, table=table, x_tick=tick
        )
        tables[table] = _read(axis, across, places, heights)
    return {"heading": f"compare.curve.{name}", "over": over, "tables": tables}


def _curve(side: Side, name: str) -> tuple[Floats, Floats]:
    if name == "loss":
        return side.records.train["step"], smooth(side.records.train["loss"])
    return side.records.evaluations["step"], side.records.evaluations[side.records.validation]


def _places(side: Side, axis: str, steps: Floats) -> Floats:
    """Where the steps lie on an axis: themselves, their tokens, or when they ended."""
    if axis == "step":
        return steps
    table = side.records.train if axis == "tokens" else side.records.timings
    known = np.isfinite(table[axis])
    if known.sum() < 2:
        return np.full(len(steps), np.nan)
    return place(steps, table["step"][known], table[axis][known])


def _without_spikes(values: Floats) -> Floats:
    finite = values[np.isfinite(values)]
    return finite[finite <= 3 * float(np.quantile(finite, 0.9))] if finite.size > 10 else finite


def _read(axis: str, across: Scale, places: Sequence[Floats], heights: Sequence[Floats]) -> dict[str, Floats]:
    """Every run's value at the same places, for the read-out under the pointer."""
    grid = np.linspace(across.low, across.high, _READ)
    columns = {axis: grid}
    for number, (at, values) in enumerate(zip(places, heights, strict=True)):
        known = np.isfinite(at) & np.isfinite(values)
        column = np.full(_READ, np.nan)
        if known.any():
            within = (grid >= at[known][0]) & (grid <= at[known][-1])
            column[within] = np.interp(grid[within], at[known], values[known])
        columns[f"run-{number}"] = column
    return columns


def _read_out(charts: Sequence[Mapping[str, Any]], labels: Sequence[str], unit: str) -> dict[str, Any]:
    read = {axis: axis.replace("tokens", unit) for axis in _AXES}
    names = {axis: both(f"report.read.{name}") for axis, name in read.items()}
    names |= {f"run-{number}": formats.same(page.plain(label)) for number, label in enumerate(labels)}
    tables = {name: json_table(table) for chart in charts for name, table in chart["tables"].items()}
    return {"names": names, "tables": tables}
