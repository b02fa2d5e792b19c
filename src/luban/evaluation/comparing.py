"""What differs between runs: settings, data, figures; and whether a difference of figures is more than chance.

Runs are compared with the first one. Figures of two runs that were measured on the same held-out text get a paired
bootstrap interval of their difference; where the texts differ it is said why there is none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban.durable import sha256
from luban.errors import CheckpointError, InputError
from luban.evaluation.figures import median
from luban.evaluation.pairing import Measured, Pairing, pair
from luban.evaluation.records import (
    EVALUATION,
    JsonObject,
    RunRecords,
    mapping,
    parameter_count,
    read_object,
    read_run,
    real,
)
from luban.evaluation.standing import Reached, Standing, is_run, reached, standing_of
from luban.metrics.document_losses import DocumentLosses
from luban.metrics.row_scores import RowScores
from luban.run import Run

RESAMPLES = 2000
_UNTOLD = {"about"}
_MACHINE = ("device", "name", "cores", "threads", "dtype", "luban", "torch", "python", "platform")
_PLAN = ("kernels", "compile", "ranks")
_MAX_LINES = 12


@dataclass(frozen=True)
class Side:
    """One of the runs compared."""

    label: str
    standing: Standing
    records: RunRecords
    came: Reached
    documents: DocumentLosses | None
    rows: RowScores | None
    fingerprint: JsonObject

    def measured(self) -> Measured:
        """Return what is paired."""
        told = mapping(self.records.evaluation.get("metrics"))
        values = {name: real(mapping(metric).get("value")) for name, metric in told.items()}
        figures = {name: value for name, value in values.items() if value is not None}
        return Measured(self.label, self.standing.state, self.documents, self.rows, figures)


@dataclass(frozen=True)
class Row:
    """A setting, or a figure of speed, that the runs have: a value for each run; an absent one has no entry."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; by the labels of the runs."""

    sides: Sequence[Side]
    equal: str
    """Why the runs are equal in all that counts; empty where they are not."""
    settings: Sequence[Row]
    machine: Sequence[Row]
    data: Mapping[str, Sequence[str]]
    """For each run but the first: what differs in its data; empty where nothing does."""
    figures: Mapping[str, Mapping[str, JsonObject]]
    """Figure -> run -> value, low, high; and `step` where it was measured while training."""
    speeds: Sequence[Row]
    pairings: Mapping[str, Pairing]

    @property
    def unit(self) -> str:
        """What `tokens` of the speeds counts: rows where all runs count them, else tokens."""
        return "rows" if all(side.records.unit == "rows" for side in self.sides) else "tokens"

    def as_json(self) -> dict[str, Any]:
        """Return the form of `luban compare --json`."""
        return {
            "runs": {
                side.label: {"run": str(side.standing.folder), "state": side.standing.state}
                for side in self.sides
            },
            "equal": self.equal or None,
            "settings": {row.name: dict(row.values) for row in self.settings},
            "machine": {row.name: dict(row.values) for row in self.machine},
            "data": {label: list(lines) for label, lines in self.data.items()},
            "metrics": {name: dict(values) for name, values in self.figures.items()},
            "speeds": {row.name: dict(row.values) for row in self.speeds},
            "pairs": {label: pairing.as_json() for label, pairing in self.pairings.items()},
        }


def compare(folders: Sequence[str | Path], *, resamples: int = RESAMPLES) -> Comparison:
    """Compare runs with the first of them.

    Arguments:
        folders: two runs or more; they may be live, stopped, failed, copied or read-only.
        resamples: of the bootstrap.

    Raises:
        InputError: for fewer than two, or what is no run.
    """
    if len(folders) < 2:
        raise InputError("give two runs or more to compare", received=[str(folder) for folder in folders])
    for folder in folders:
        if not is_run(Path(folder)):
            raise InputError(
                "there is no run", received=str(folder), fix="luban runs lists the runs below runs/"
            )
    labels = _labels([str(folder) for folder in folders])
    sides = [_side(label, Path(folder)) for label, folder in zip(labels, folders, strict=True)]
    settings = _differing({s.label: _flat(s.standing.recipe) for s in sides})
    machine = [
        row for row in _differing({s.label: _surroundings(s) for s in sides}) if len(row.values) == len(sides)
    ]
    data = {side.label: _data_differences(sides[0], side) for side in sides[1:]}
    return Comparison(
        sides,
        equal="" if settings or any(data.values()) else _equal(sides),
        settings=settings,
        machine=machine,
        data=data,
        figures=_figures(sides),
        speeds=_speeds(sides),
        pairings={
            side.label: pair(sides[0].measured(), side.measured(), resamples=resamples) for side in sides[1:]
        },
    )


def _labels(folders: Sequence[str]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart; one run given twice is numbered."""
    parts = [Path(folder).absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{folder} ({number})" for number, folder in enumerate(folders, 1)]


def _side(label: str, folder: Path) -> Side:
    standing, records = standing_of(folder), read_run(folder)
    documents = rows = None
    if standing.state == "finished":
        with contextlib.suppress(CheckpointError):
            documents = DocumentLosses.read(Run(folder).documents)
        with contextlib.suppress(CheckpointError):
            rows = RowScores.read(Run(folder).rows)
    elsewhere = records.plan.get("data")
    place = elsewhere if isinstance(elsewhere, str) and "\0" not in elsewhere else "data"
    fingerprint = read_object(folder, f"{place}/fingerprint.json", {})
    return Side(label, standing, records, reached(standing), documents, rows, fingerprint)


def _flat(value: JsonObject, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if name in _UNTOLD:
            continue
        flat |= _flat(inner, f"{name}.") if isinstance(inner, dict) and inner else {name: inner}
    return flat


def _surroundings(side: Side) -> dict[str, Any]:
    found = {name: side.records.machine[name] for name in _MACHINE if name in side.records.machine}
    return found | {name: side.records.plan[name] for name in _PLAN if name in side.records.plan}


def _differing(sides: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return the names whose values are not the same everywhere; a name that one side lacks differs."""
    rows = []
    for name in dict.fromkeys(name for values in sides.values() for name in values):
        values = {label: side[name] for label, side in sides.items() if name in side}
        if len(values) < len(sides) or len({_text(value) for value in values.values()}) > 1:
            rows.append(Row(name, values))
    return rows


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _data_differences(first: Side, second: Side) -> list[str]:
    """Say what differs in the data, by the fingerprints: files with their digests, settings, version of the steps."""
    was, now = (
        side.fingerprint or {"sha256": side.records.plan.get("fingerprint")} for side in (first, second)
    )
    if was.get("sha256") is None or now.get("sha256") is None:
        missing = [
            side.label for side, print_ in ((first, was), (second, now)) if print_.get("sha256") is None
        ]
        return [f"no fingerprint of the data of {', '.join(missing)}: whether it is the same cannot be told"]
    if was["sha256"] == now["sha256"]:
        return []
    lines = _files_differing(was, now)
    settings = _differing(
        {"was": _flat(mapping(was.get("settings"))), "now": _flat(mapping(now.get("settings")))}
    )
    lines += [
        f"data.{row.name}: {first.label} has {_text(row.values.get('was'))}, "
        f"{second.label} has {_text(row.values.get('now'))}"
        for row in settings
    ]
    if was.get("steps") != now.get("steps"):
        lines.append(f"version of the preparation: {was.get('steps')} and {now.get('steps')}")
    more = [f"and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
    return lines[:_MAX_LINES] + more or [
        f"fingerprints {str(was['sha256'])[:12]} and {str(now['sha256'])[:12]}"
    ]


def _files_differing(was: JsonObject, now: JsonObject) -> list[str]:
    def files(side: JsonObject) -> dict[tuple[str, str], JsonObject]:
        entries = side.get("files")
        listed = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        return {(str(entry.get("name")), str(entry.get("role"))): entry for entry in listed}

    before, after, lines = files(was), files(now), []
    for name, role in sorted(before.keys() | after.keys()):
        old, new = before.get((name, role)), after.get((name, role))
        if old != new:
            lines.append(f"{name} ({role}): {_file(old)}; {_file(new)}")
    return lines


def _file(entry: JsonObject | None) -> str:
    if entry is None:
        return "not there"
    return f"{real(entry.get('bytes')) or 0:,.0f} bytes, sha256 {str(entry.get('sha256'))[:12]}"


def _equal(sides: Sequence[Side]) -> str:
    """Return why runs of the same settings and data are equal in what they left, too; empty where they are not."""
    if any(side.standing.state != "finished" for side in sides):
        return ""
    same = []
    for name, words in (
        ("metrics.jsonl", "the same log of every step"),
        ("model/model.safetensors", "the same weights"),
    ):
        try:
            digests = {sha256(side.standing.folder / name) for side in sides}
        except OSError:
            continue
        if len(digests) == 1:
            same.append(words)
    return f"same settings, same data, {' and '.join(same)}, byte for byte" if len(same) == 2 else ""


def _figures(sides: Sequence[Side]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return final figures with their intervals; of a run without an end those of its last evaluation."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for side in sides:
        metrics = mapping(side.records.evaluation.get("metrics")) if side.standing.state == "finished" else {}
        for name, raw in metrics.items():
            metric = mapping(raw)
            entry = {key: real(metric.get(key)) for key in ("value", "low", "high")}
            found.setdefault(name, {})[side.label] = entry
        table = side.records.evaluations
        if not metrics and len(table):
            for name in table.names[len(EVALUATION) :]:
                entry = {"value": real(float(table[name][-1])), "step": float(table["step"][-1])}
                found.setdefault(name, {})[side.label] = entry
    primary = next(
        (str(side.came.primary.get("name")) for side in sides if side.came.primary.get("name")), ""
    )
    return dict(sorted(found.items(), key=lambda item: item[0] != primary))


def _speeds(sides: Sequence[Side]) -> list[Row]:
    def of(side: Side) -> dict[str, float | None]:
        timings, result = side.records.timings, side.records.result
        return {
            "steps": side.came.step,
            "tokens": side.came.tokens,
            "seconds": side.came.seconds,
            "tokens_per_second": median(timings["tokens_per_second"]),
            "peak_share": median(timings["peak_share"]),
            "peak_rss_bytes": real(result.get("peak_rss_bytes")),
            "parameters": parameter_count(side.records.plan),
        }

    told = {side.label: of(side) for side in sides}
    names = list(next(iter(told.values())))
    rows = [Row(name, {label: v[name] for label, v in told.items() if v[name] is not None}) for name in names]
    return [row for row in rows if row.values]
