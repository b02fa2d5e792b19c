"""Reads what a run folder holds: nothing is trusted, any file may be absent, torn or huge.

A file that is there and cannot be read leaves a notice instead of ending the report. Logs are streamed; a
line takes 8 bytes per column in memory. A last line without its end was torn by a crash and is left out.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
JsonObject = Mapping[str, Any]

MAX_JSON_BYTES = 32 << 20
MAX_LINE_BYTES = 1 << 20
MAX_SAMPLE_STEPS = 64
MAX_PROMPTS = 8
MAX_EVENTS = 400
MAX_NUMBER = 1e100
MAX_NAME = 60
TAILS = (64 << 10, 1 << 20, 16 << 20)
"""How many bytes at the end of a log are looked at, the next where the one before did not suffice."""

UNITS = ("tokens", "rows")
TRAIN = ("step", "tokens", "loss", "learning_rate", "gradient_norm")
EVALUATION = ("step", "tokens")
MAX_FIGURES = 24
"""How many figures of the evaluations while training are read, beside `EVALUATION`; a task names its own."""
TIMING = ("step", "seconds", "tokens_per_second", "flops_per_second", "peak_share")


def real(value: object) -> float | None:
    """Return a number as float; anything else, and what is too large to be drawn, is None.

    Example:
        >>> real(3), real("3"), real(float("nan")), real(True), real(1e300)
        (3.0, None, None, None, None)
    """
    if type(value) is float:  # nearly every value of a log
        return value if abs(value) <= MAX_NUMBER else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if abs(as_float) <= MAX_NUMBER else None


def words(value: object, limit: int = 300) -> str:
    """Return a text of at most `limit` characters; anything but a text or a number is empty."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    try:
        whole = str(value)
    except ValueError:  # an integer of more digits than Python writes
        return ""
    return whole if len(whole) <= limit else whole[:limit] + "…"


def mapping(value: object) -> JsonObject:
    """Return an object as it is; anything else is an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[JsonObject]:
    """Return the objects of a list; anything else in it, or in its place, is left out."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def numbers(value: object, limit: int) -> list[float]:
    """Return the first `limit` items of a list if all of them are numbers; else nothing.

    Example:
        >>> numbers([1, 2.5], 9), numbers([1, "2"], 9), numbers([1, 2, 3], 2)
        ([1.0, 2.5], [], [1.0, 2.0])
    """
    found = [real(item) for item in value[:limit]] if isinstance(value, list) else []
    kept = [item for item in found if item is not None]
    return kept if len(kept) == len(found) else []


def points(value: object, limit: int = 2000) -> NDArray[np.float64]:
    """Return the pairs of numbers of a list as (points, 2); what is none is left out.

    Example:
        >>> points([[0, 0], [0.5], None, [1, 1]]).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    pairs = [numbers(item, 3) for item in value[:limit]] if isinstance(value, list) else []
    return np.array([pair for pair in pairs if len(pair) == 2], dtype=np.float64).reshape(-1, 2)


def parameter_count(plan: JsonObject) -> float | None:
    """Return how many parameters a plan.json says; None where it does not."""
    told = plan.get("parameters")
    return real(told.get("total")) if isinstance(told, dict) else real(told)


class Said(NamedTuple):
    """What a task said of a run: what the run's `tokens` count, and whether its model continues text."""

    unit: str
    continues_text: bool


def said_by_task(*files: JsonObject) -> Said:
    """Return what the task said of a run when it began, as plan.json has it, and result.json.

    This reads older runs too: before these files had the keys, the language model alone counted tokens and continued
    text, also where no file named the task.

    Example:
        >>> said_by_task({"unit": "tokens", "continues_text": False}, {"task": "speech"})
        Said(unit='tokens', continues_text=False)
        >>> said_by_task({"task": "tabular"}), said_by_task({})
        (Said(unit='rows', continues_text=False), Said(unit='tokens', continues_text=True))
    """
    for file in files:
        unit, continues_text = file.get("unit"), file.get("continues_text")
        if unit in UNITS and isinstance(continues_text, bool):
            return Said(str(unit), continues_text)
    name = next((name for file in files if (name := words(file.get("task"), 60))), "language-model")
    older = name == "language-model"
    return Said("tokens" if older else "rows", older)


class Table:
    """Columns of numbers that grow row by row; a repeated step takes the place of what was logged before it.

    Arguments:
        names: the columns; `step` is among them.
        room: how many columns may come besides, as rows name them.

    Example:
        >>> table = Table(("step", "loss"))
        >>> for step, loss in [(1, 3.0), (2, 2.5), (2, 2.4)]:
        ...     table.add({"step": step, "loss": loss})
        >>> table["loss"].tolist()
        [3.0, 2.4]
    """

    def __init__(self, names: tuple[str, ...], room: int = 0) -> None:
        self._columns = {name: array("d") for name in names}
        self._most = len(names) + room

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in the order in which they came."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return len(self._columns["step"])

    def __getitem__(self, name: str) -> Floats:
        """Return a column; NaN for one that no row named."""
        if name not in self._columns:
            return np.full(len(self), np.nan)
        return np.array(self._columns[name], dtype=np.float64)

    def add(self, row: JsonObject) -> None:
        """Append a row; what is not a number becomes NaN. A row without a step is left out."""
        step = real(row.get("step"))
        if step is None:
            return
        steps = self._columns["step"]
        while steps and steps[-1] >= step:  # a resumed run logs again what it had not saved
            for column in self._columns.values():
                column.pop()
        if len(self._columns) < self._most:
            self._take_in(row)
        for name, column in self._columns.items():
            value = real(row.get(name))
            column.append(math.nan if value is None else value)

    def _take_in(self, row: JsonObject) -> None:
        """Make columns of the figures that came for the first time; earlier rows had none."""
        for name, value in row.items():
            new = name not in self._columns and len(name) <= MAX_NAME and real(value) is not None
            if new and len(self._columns) < self._most:
                self._columns[name] = array("d", [math.nan] * len(self))


@dataclass
class Pauses:
    """How often training paused for something, and for how long in all."""

    times: int = 0
    seconds: float = 0.0


@dataclass
class RunRecords:
    """All that the report says, as the run folder has it."""

    recipe: JsonObject = field(default_factory=dict)
    machine: JsonObject = field(default_factory=dict)
    plan: JsonObject = field(default_factory=dict)
    evaluation: JsonObject = field(default_factory=dict)
    result: JsonObject = field(default_factory=dict)
    data: JsonObject = field(default_factory=dict)
    train: Table = field(default_factory=lambda: Table(TRAIN))
    evaluations: Table = field(default_factory=lambda: Table(EVALUATION, MAX_FIGURES))
    timings: Table = field(default_factory=lambda: Table(TIMING))
    pauses: dict[str, Pauses] = field(default_factory=dict)
    samples: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    sample_steps: int = 0
    events: list[JsonObject] = field(default_factory=list)
    event_count: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    """File name -> how many of its lines could not be read; 0 when the whole file could not."""

    @property
    def task(self) -> str:
        """The name of the task; empty where no file says it."""
        return words(self.recipe.get("task") or self.result.get("task"), 40)

    @property
    def said(self) -> Said:
        """What the task said of the run."""
        return said_by_task(self.plan, self.result, self.recipe)

    @property
    def unit(self) -> str:
        """What `tokens` of the logs counts: `tokens` or `rows`."""
        return self.said.unit

    @property
    def primary(self) -> str:
        """The name of the figure that counts; empty where no file says it."""
        told = (
            mapping(self.evaluation.get("primary")).get("name"),
            mapping(self.result.get("primary")).get("name"),
            mapping(self.recipe.get("evaluate")).get("primary"),
            *self.evaluations.names[len(EVALUATION) :][:1],  # an evaluation names the primary figure first
        )
        return next((name for one in told if (name := words(one, MAX_NAME))), "")

    @property
    def validation(self) -> str:
        """The figure of the evaluations that is a loss like the one trained on; `loss` where there is none."""
        return "loss" if "log_loss" not in self.evaluations.names else "log_loss"


def read_run(run: Path) -> RunRecords:
    """Read the run folder's files; see docs/design.md for their formats."""
    records = RunRecords()
    for name in ("recipe", "machine", "plan", "evaluation", "result"):
        setattr(records, name, read_object(run, f"{name}.json", records.unreadable))
    records.data = read_object(run, "data/report.json", records.unreadable)
    elsewhere = records.plan.get("data")
    if not records.data and isinstance(elsewhere, str) and "\0" not in elsewhere:
        records.data = read_object(run, f"{elsewhere}/report.json", records.unreadable)
    _read_metrics(run, records)
    _read_timings(run, records)
    _read_samples(run, records)
    _read_events(run, records)
    return records


def read_object(run: Path, name: str, unreadable: dict[str, int]) -> JsonObject:
    """Return the object of a JSON file; an empty one when it is absent, or broken, which `unreadable` then says."""
    path = run / name
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size <= MAX_JSON_BYTES:
            value = json.loads(path.read_bytes())
            if isinstance(value, dict):
                return value
    except (OSError, ValueError, RecursionError):
        pass
    unreadable[name] = 0
    return {}


def read_lines(run: Path, name: str, unreadable: dict[str, int]) -> Iterator[JsonObject]:
    """Yield the objects of a JSON Lines file; unreadable lines are counted, a torn last one is not."""
    path = run / name
    bad = 0
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                torn = not line.endswith(b"\n")
                if torn and len(line) == MAX_LINE_BYTES:
                    torn = not _skip_line(file)
                    line = b""
                try:
                    value = json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError):
                    value = None
                if isinstance(value, dict):
                    yield value
                elif not torn:
                    bad += 1
    except OSError:
        unreadable[name] = 0
    if bad:
        unreadable[name] = bad


def last_of_each(run: Path, name: str, kinds: frozenset[str]) -> dict[str, JsonObject]:
    """Return the last record of each kind in a JSON Lines file, read from its end: the file may be long.

    A last line without its end is being written, or was torn; it is left out. So is what does not stand within
    the last 16 MiB.
    """
    found: dict[str, JsonObject] = {}
    for reach in TAILS:
        try:
            with (run / name).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - reach))
                lines = file.read(reach).split(b"\n")[:-1]
        except (OSError, ValueError):
            return found
        found = _last_of_each(lines if reach >= size else lines[1:], kinds)
        if reach >= size or not kinds - found.keys():
            break
    return found


def _last_of_each(lines: list[bytes], kinds: frozenset[str]) -> dict[str, JsonObject]:
    found: dict[str, JsonObject] = {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        kind = row.get("kind") if isinstance(row, dict) else None
        if isinstance(kind, str) and kind in kinds - found.keys():
            found[kind] = row
            if not kinds - found.keys():
                break
    return found


def _skip_line(file: BinaryIO) -> bool:
    """Read to the end of a line that is too long; False when the file ends before it."""
    while piece := file.readline(MAX_LINE_BYTES):
        if piece.endswith(b"\n"):
            return True
    return False


def _read_metrics(run: Path, records: RunRecords) -> None:
    for row in read_lines(run, "metrics.jsonl", records.unreadable):
        if row.get("kind") == "train":
            records.train.add(row)
        elif row.get("kind") == "evaluation":
            records.evaluations.add(row)


def _read_timings(run: Path, records: RunRecords) -> None:
    for row in read_lines(run, "timings.jsonl", records.unreadable):
        kind = row.get("kind")
        if kind == "train":
            records.timings.add(row)
        elif kind in ("checkpoint", "evaluation"):
            pauses = records.pauses.setdefault(kind, Pauses())
            pauses.times += 1
            pauses.seconds += real(row.get("took")) or 0.0


def _read_samples(run: Path, records: RunRecords) -> None:
    """Keep the samples of at most 64 steps, spread evenly over the run, the first and the last among them."""
    kept: dict[int, tuple[int, list[tuple[str, str]]]] = {}  # step -> (its number among the steps, samples)
    stride, seen = 1, 0
    for row in read_lines(run, "samples.jsonl", records.unreadable):
        step = real(row.get("step"))
        if step is None:
            continue
        if int(step) not in kept:
            last = next(reversed(kept), None)
            if last is not None and kept[last][0] % stride:
                del kept[last]
            kept[int(step)] = (seen, [])
            seen += 1
        if len(kept) > MAX_SAMPLE_STEPS:
            stride *= 2
            kept = {s: group for s, group in kept.items() if group[0] % stride == 0 or s == int(step)}
        samples = kept[int(step)][1]
        if len(samples) < MAX_PROMPTS:
            samples.append((words(row.get("prompt")), words(row.get("text"), 4000)))
    records.samples = {step: samples for step, (_, samples) in kept.items()}
    records.sample_steps = seen


def _read_events(run: Path, records: RunRecords) -> None:
    """Keep the first and the last events; what stands between too many is counted only."""
    for row in read_lines(run, "events.jsonl", records.unreadable):
        records.event_count += 1
        records.events.append(row)
        if len(records.events) > MAX_EVENTS:
            del records.events[MAX_EVENTS // 2]
