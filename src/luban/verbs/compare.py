"""`luban compare`: what differs between runs, as a page or as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luban.console import duration, short
from luban.durable import DISK, FileSystem, write_text
from luban.errors import InputError
from luban.evaluation.compare_page import render_comparison
from luban.evaluation.comparing import RESAMPLES, Comparison
from luban.evaluation.comparing import compare as find
from luban.evaluation.metric_names import lower_is_better
from luban.evaluation.pairing import Pairing, small_p
from luban.verbs.runs import size, table

WIDEST = 34
_STATES = {
    "live": "it is going on",
    "stopped": "it was stopped",
    "failed": "it failed",
    "died": "it ended without a word",
    "broken": "its files are damaged",
}


def compare(
    folders: Sequence[str | Path],
    *,
    html: str | Path | None = None,
    resamples: int = RESAMPLES,
    fs: FileSystem = DISK,
) -> Comparison:
    """Compare runs with the first of them, and write a page about it where one is asked for.

    Arguments:
        folders: two runs or more.
        html: the page to write.
        resamples: of the paired bootstrap.

    Raises:
        InputError: for fewer than two runs, or what is none.
        StorageError: when the page cannot be written.
    """
    target = None if html is None else Path(html)
    if target is not None and not target.parent.is_dir():
        raise InputError("the folder for the page is not there", received=str(target))
    found = find(folders, resamples=resamples)
    if target is not None:
        write_text(target, render_comparison(found), fs)
    return found


def told(found: Comparison) -> list[str]:
    """Return the comparison as lines of text."""
    labels = [side.label for side in found.sides]
    states = {side.label: side.standing.state for side in found.sides}
    lines: list[str] = []
    if found.equal:
        lines += [f"The runs are equal: {found.equal}.", ""]
    if any(state != "finished" for state in states.values()):
        lines += [
            f"{label} did not finish: {_STATES[state]}" for label, state in states.items() if state in _STATES
        ]
        lines += [""]
    lines += _section("settings that differ", labels, found.settings, none="no setting differs")
    if found.machine:
        lines += _section("surroundings that differ", labels, found.machine, none="")
    lines.append("data")
    for label, differences in found.data.items():
        lines += [f"  {label}: the same as {labels[0]}" if not differences else f"  {label}:"]
        lines += [f"    {line}" for line in differences]
    lines += ["", *_figures(found, labels), ""]
    rows = [
        [
            _named(row.name).replace("tokens", found.unit),
            *(_speed(row.name, row.values.get(label)) for label in labels),
        ]
        for row in found.speeds
    ]
    return lines + table([["work", *labels], *rows], None, right=set(range(1, len(labels) + 1)))


def _section(title: str, labels: Sequence[str], rows: Sequence[Any], *, none: str) -> list[str]:
    if not rows:
        return [none, ""]
    body = [[row.name, *(_value(row.values, label) for label in labels)] for row in rows]
    return [*table([[title, *labels], *body], None, right=set()), ""]


def _value(values: Mapping[str, Any], label: str) -> str:
    if label not in values:
        return "-"
    value = values[label]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDEST else "…" + text[1 - WIDEST :]


def _figures(found: Comparison, labels: Sequence[str]) -> list[str]:
    rows = []
    for name, values in found.figures.items():
        rows.append([_named(name), *(_figure(values.get(label)) for label in labels)])
    lines = table([["figures", *labels], *rows], None, right=set()) if rows else ["no figures yet"]
    if any("step" in value for values in found.figures.values() for value in values.values()):
        lines += ["* while training, on part of the held-out text"]
    for label, pairing in found.pairings.items():
        lines += ["", *_pair(label, labels[0], pairing, next(iter(found.figures), ""))]
    return lines


def _pair(label: str, first: str, pairing: Pairing, primary: str) -> list[str]:
    if pairing.why:
        return [f"{label} and {first} cannot be paired: {pairing.why}."]
    lines = [f"{label} less {first}, paired over {pairing.count:,} {pairing.unit} that are the same:"]
    order = sorted(pairing.differences, key=lambda name: name != primary)
    rows = [[f"  {_named(name)}", *_difference(name, pairing)] for name in order]
    return lines + table(rows, None, right={1})


def _difference(name: str, pairing: Pairing) -> list[str]:
    middle, low, high = pairing.differences[name]
    told = "lower" if high < 0 else "higher" if low > 0 else ""
    better = (told == "lower") == lower_is_better(name)
    verdict = f"{told}: {'better' if better else 'worse'}" if told else "no difference shown"
    if middle == low == high == 0:
        verdict = "the same"
    chance = f"p {small_p(pairing.chances[name])}" if name in pairing.chances else ""
    return [f"{middle:+.4f}", f"[{low:+.4f}, {high:+.4f}]", verdict, *([chance] if pairing.chances else [])]


def _figure(value: Mapping[str, Any] | None) -> str:
    if value is None or value.get("value") is None:
        return "-"
    if value.get("low") is None or value.get("high") is None:
        return f"{value['value']:.4f}" + ("*" if "step" in value else "")
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _named(name: str) -> str:
    return {"peak_rss_bytes": "peak memory", "peak_share": "share of peak", "seconds": "training time"}.get(
        name, name.replace("_", " ")
    )


def _speed(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "seconds":
        return duration(value)
    if name == "peak_share":
        return f"{value:.1%}"
    if name == "peak_rss_bytes":
        return size(value)
    return f"{value:,.0f}" if name in ("steps", "tokens_per_second") else short(value)
