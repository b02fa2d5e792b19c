"""What was predicted before a run and what was measured after it; and what was chosen for the user, with the reason."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from luban.catalogue import Both, both
from luban.evaluation import formats, page
from luban.evaluation.metric_names import metric_name
from luban.evaluation.records import JsonObject, RunRecords, mapping, real, words

_WRITTEN: dict[str, Callable[[float | None], Both]] = {
    "steps": formats.whole,
    "tokens": formats.count,
    "flops": formats.flops,
    "training_seconds": formats.duration,
    "seconds": formats.duration,
    "peak_bytes": formats.size,
    "disk_bytes": formats.size,
}
_MAX_CHOSEN = 30
_MAX_FIGURES = 10


def forecast_rows(records: RunRecords) -> list[dict[str, Any]]:
    """Return rows of name, predicted, measured and how far off; empty where nothing was predicted."""
    predicted, measured = mapping(records.plan.get("predicted")), mapping(records.result.get("measured"))
    rows = []
    for name, write in _WRITTEN.items():
        if (said := real(predicted.get(name))) is not None:
            shown = name.replace("tokens", records.unit)
            rows.append(_row(both(f"report.forecast.{shown}"), said, real(measured.get(name)), write))
    came = mapping(measured.get("figures"))
    for name, value in itertools.islice(mapping(predicted.get("figures")).items(), _MAX_FIGURES):
        if (said := real(value)) is not None:
            rows.append(_row(metric_name(name), said, real(came.get(name)), formats.number))
    return rows


def _row(
    name: Both, said: float, found: float | None, write: Callable[[float | None], Both]
) -> dict[str, Any]:
    return {"name": name, "predicted": write(said), "measured": write(found), "off": _off(said, found)}


def _off(said: float, found: float | None) -> Both:
    """Return by how much the measured value lies above what was said, in percent of what was said."""
    if found is None or not said or not math.isfinite(found / said):
        return formats.same(formats.DASH)
    share = found / said - 1
    if abs(share) < 0.0005:
        return formats.same("0%")
    return formats.same(f"{share:+.1%}".replace("-", "−"))


def chosen_rows(records: RunRecords) -> list[dict[str, Any]]:
    """Return what the plan chose: rows of key, value and reason."""
    chosen: JsonObject = mapping(records.plan.get("chosen"))
    rows = []
    for key, raw in itertools.islice(chosen.items(), _MAX_CHOSEN):
        choice = mapping(raw)
        value = choice.get("value")
        number = real(value)
        shown = words(value, 80) if number is None else f"{number:,.6g}"
        rows.append(
            {
                "key": page.visible(words(key, 80)),
                "value": page.visible(shown),
                "why": words(choice.get("why"), 400),
            }
        )
    return rows
