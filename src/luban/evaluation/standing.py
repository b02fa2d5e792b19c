"""How a run stands, as its folder says: live, finished, stopped, failed, died or broken; what is safe; what to do.

Nothing is trusted and nothing is written: the folder may be moved, copied, read-only, of another version of
luban, or be written at this moment.
"""

from __future__ import annotations

import datetime
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban.durable import folder_bytes, verify_folder
from luban.errors import CheckpointError, InputError
from luban.evaluation.records import (
    JsonObject,
    Said,
    last_of_each,
    mapping,
    parameter_count,
    read_lines,
    read_object,
    real,
    said_by_task,
    words,
)
from luban.run import Run, this_process

STATES = ("live", "finished", "stopped", "failed", "died", "broken", "empty")
"""`died`: no end on record and nobody holds it. `broken`: files it cannot go on without are damaged."""

_CHECKPOINT = re.compile(r"step-(\d{8,15})")
_ENDS = {"finished": "finished", "stopped": "stopped", "failed": "failed"}
_NOT_FINITE = re.compile(r"the \S.* of step \d+ is not finite|weights or optimizer state are not finite")
_DEPTH = 5
_SPENT = {
    "minutes": ("seconds", 60.0),
    "epochs": ("epoch", 1.0),
    "tokens": ("tokens", 1.0),
    "steps": ("step", 1.0),
}
"""Of each budget, what of it the logs say is spent, and how much of that one of the budget is."""


@dataclass(frozen=True)
class Safe:
    """The newest checkpoint: its step, when it was written (seconds since 1970), and whether it was verified now."""

    step: int
    written: float
    verified: bool


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        folder: the run's. state: one of `STATES`.
        why: what is wrong, in one line; empty where nothing is. fix: how to mend it, where the run says so.
        holder: who holds a live run. safe: the newest checkpoint, None without one.
        passed_over: steps of newer checkpoints that are not whole.
        repeats: going on would fail the same way: what led there is part of the run.
        begun, changed: seconds since 1970; None where not on record.
        recipe, plan, result, evaluation: the run's files, empty where absent or broken.
    """

    folder: Path
    state: str
    why: str = ""
    fix: str = ""
    holder: str | None = None
    safe: Safe | None = None
    passed_over: tuple[int, ...] = ()
    repeats: bool = False
    begun: float | None = None
    changed: float | None = None
    recipe: JsonObject = field(default_factory=dict)
    plan: JsonObject = field(default_factory=dict)
    result: JsonObject = field(default_factory=dict)
    evaluation: JsonObject = field(default_factory=dict)

    @property
    def said(self) -> Said:
        """What the task said of the run."""
        return said_by_task(self.plan, self.result, self.recipe)


def standing_of(folder: Path, *, verify: bool = False) -> Standing:
    """Say how the run in `folder` stands.

    Arguments:
        verify: read the newest checkpoint and compare it with its digests; takes seconds where it is large.
    """
    run, unreadable = Run(folder), dict[str, int]()
    recipe, plan, result, evaluation = (
        read_object(folder, f"{name}.json", unreadable) for name in ("recipe", "plan", "result", "evaluation")
    )
    events = list(read_lines(folder, "events.jsonl", unreadable))
    holder = run.holder()
    state, last = _state(events, recipe, result, None if holder == this_process() else holder)
    why, fix = words(last.get("message"), 1000), words(last.get("fix"), 1000)
    safe, passed_over = _newest(run.checkpoints, verify=verify and state != "live")
    if state not in ("live", "empty") and (damaged := _damage(folder, unreadable, recipe, passed_over, safe)):
        state, why, fix = "broken", *damaged
    elif state == "died":
        why = "no end is on record and nobody holds it: it was killed, or the machine went down"
    elif state not in ("stopped", "failed"):
        why = ""
    times = [when for event in events if (when := _time(event.get("time"))) is not None]
    return Standing(
        folder,
        state,
        why=why,
        fix=fix,
        holder=holder if state == "live" else None,
        safe=safe,
        passed_over=passed_over,
        repeats=state == "failed" and (last.get("error") == "NonFiniteError" or bool(_NOT_FINITE.match(why))),
        begun=times[0] if times else _changed([run.recipe]),
        changed=_last_change(run, times, ended=state in _ENDS),
        recipe=recipe,
        plan=plan,
        result=result,
        evaluation=evaluation,
    )


def _state(
    events: Sequence[JsonObject], recipe: JsonObject, result: JsonObject, holder: str | None
) -> tuple[str, JsonObject]:
    """Return the state by who holds the run and by its last event, and the event that ended it."""
    if holder is not None:
        return "live", {}
    for event in reversed(events):
        name = event.get("event")
        if isinstance(name, str) and name in _ENDS:
            return _ENDS[name], event
        if name in ("started", "resumed"):
            break
    if result:
        return "finished", {}
    return ("died" if events or recipe else "empty"), {}


def _damage(
    folder: Path,
    unreadable: dict[str, int],
    recipe: JsonObject,
    passed_over: tuple[int, ...],
    safe: Safe | None,
) -> tuple[str, str] | None:
    """Return what keeps the run from being used or gone on with, and how to mend it; None where nothing does."""
    if not recipe:
        lost = "is damaged" if "recipe.json" in unreadable else "is missing"
        return f"recipe.json {lost}", "restore it from a copy of the run; its checkpoints stay as they are"
    for name in ("plan.json", "result.json"):
        if name in unreadable:
            return f"{name} is damaged", "restore it from a copy of the run"
    if passed_over and safe is None:
        steps = ", ".join(map(str, passed_over))
        fix = f"restore one from a backup, or move {folder / 'checkpoints'} away to start from step 0"
        return f"no checkpoint is whole (steps {steps})", fix
    return None


def _newest(folder: Path, *, verify: bool) -> tuple[Safe | None, tuple[int, ...]]:
    """Return the newest checkpoint that is whole, and the steps of those newer that are not."""
    passed_over = []
    for step, path in reversed(_checkpoints(folder)):
        try:
            written = (path / "manifest.json").stat().st_mtime
            if verify:
                verify_folder(path)
        except (OSError, CheckpointError):
            passed_over.append(step)
        else:
            return Safe(step, written, verify), tuple(passed_over)
    return None, tuple(passed_over)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    try:
        paths = list(folder.iterdir())
    except OSError:
        return []
    return sorted((int(match[1]), path) for path in paths if (match := _CHECKPOINT.fullmatch(path.name)))


def _time(value: object) -> float | None:
    try:
        if isinstance(value, str):
            return datetime.datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _last_change(run: Run, times: Sequence[float], *, ended: bool) -> float | None:
    """Return when the run last did something: its last event where that is its end, else its logs' last change."""
    logs = (run.events.path, run.metrics.path, run.timings.path)
    return times[-1] if ended and times else _changed(logs) or (times[-1] if times else None)


def _changed(paths: Sequence[Path]) -> float | None:
    found = []
    for path in paths:
        try:
            found.append(path.stat().st_mtime)
        except (OSError, ValueError):
            continue
    return max(found, default=None)


@dataclass(frozen=True)
class Reached:
    """How far a run came: step, tokens, seconds of training, and the share of its budget; None where unknown."""

    step: float | None
    tokens: float | None
    seconds: float | None
    share: float | None
    primary: JsonObject
    """`{"name", "value", "step"}` of the final evaluation (`step` is None), or of the last one while training."""


def reached(standing: Standing) -> Reached:
    """Say how far the run came: by its result, else by the last lines of its logs."""
    result = standing.result if standing.state == "finished" else {}
    if result:
        final = mapping(standing.evaluation.get("primary")) or mapping(result.get("primary"))
        primary = {"name": words(final.get("name"), 60), "value": real(final.get("value")), "step": None}
        return Reached(
            real(result.get("steps")), real(result.get("tokens")), real(result.get("seconds")), 1.0, primary
        )
    logged = last_of_each(standing.folder, "metrics.jsonl", frozenset(("train", "evaluation")))
    timed = last_of_each(standing.folder, "timings.jsonl", frozenset(("train",)))
    train, evaluation = logged.get("train", {}), logged.get("evaluation", {})
    spent = {name: real(train.get(name)) for name in ("step", "tokens", "epoch")}
    spent["seconds"] = real(mapping(timed.get("train")).get("seconds"))
    # A recipe that names no primary figure takes the task's own, which every evaluation names first.
    first = next((name for name in evaluation if name not in ("kind", "step", "tokens")), "")
    name = words(mapping(standing.recipe.get("evaluate")).get("primary"), 60) or words(first, 60)
    primary = {"name": name, "value": real(evaluation.get(name)), "step": real(evaluation.get("step"))}
    return Reached(spent["step"], spent["tokens"], spent["seconds"], _share(standing, spent), primary)


def _share(standing: Standing, spent: Mapping[str, float | None]) -> float | None:
    """Return the share of the recipe's budget that is spent; None where that is not on record."""
    budget = mapping(standing.recipe.get("train"))
    for key, (name, unit) in _SPENT.items():
        done, whole = spent[name], real(budget.get(key))
        if whole is not None and whole > 0:
            return None if done is None else min(1.0, done / (whole * unit))
    return None


def next_command(standing: Standing, folder: str | None = None) -> str | None:
    """Return the command that goes on from here; None where none would: the run is live, or broken.

    Arguments:
        folder: what the command calls the run's folder; as `standing` has it when left out.

    Example:
        >>> next_command(Standing(Path("runs/a b"), "stopped"))
        "luban resume 'runs/a b'"
    """
    name = str(standing.folder) if folder is None else folder
    run = shlex.quote(name)
    if standing.state == "finished":
        asked = "'Once upon a time'" if standing.said.continues_text else "--input FILE"
        return f"luban predict {run} {asked}"
    if standing.state in ("live", "broken", "empty"):
        return None
    if not standing.repeats:
        return f"luban resume {run}"
    rate = real(mapping(standing.recipe.get("train")).get("learning_rate"))
    lower = f"train.learning_rate={rate / 2:g}" if rate else "train.learning_rate=0.001"
    recipe, out = shlex.quote(f"{name}/recipe.json"), shlex.quote(f"{name}-2")
    return f"luban train {recipe} {lower} --out {out}"


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the runs in the folders given and below them; what lies within a run is not looked at.

    Raises:
        InputError: for a folder that is not there, or cannot be read.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                "there is no such folder", received=str(folder), fix="give a run, or a folder of runs"
            )
        try:
            next(os.scandir(folder), None)
        except OSError as error:
            raise InputError(f"cannot read the folder: {error.strerror}", received=str(folder)) from None
        for run in _walk(folder, _DEPTH):
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    if not depth:
        return
    try:
        inner = sorted(
            Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)
        )
    except OSError:
        return
    for path in inner:
        if not path.name.startswith("."):
            yield from _walk(path, depth - 1)


def is_run(folder: Path) -> bool:
    """Whether a run was begun here; one that lost its recipe is told by its events and what lies beside them."""
    try:
        if (folder / "recipe.json").is_file():
            return True
        beside = ("checkpoints", "plan.json", "metrics.jsonl")
        return (folder / "events.jsonl").is_file() and any((folder / name).exists() for name in beside)
    except OSError:
        return False


def as_json(standing: Standing, now: float) -> dict[str, Any]:
    """Return the standing as `luban runs --json` gives it."""
    came = reached(standing)
    safe = standing.safe
    return {
        "run": str(standing.folder),
        "state": standing.state,
        "task": words(standing.recipe.get("task"), 60) or None,
        "step": came.step,
        "tokens": came.tokens,
        "unit": standing.said.unit,
        "seconds": came.seconds,
        "share": came.share,
        "primary": dict(came.primary),
        "parameters": parameter_count(standing.plan),
        "why": standing.why or None,
        "fix": standing.fix or None,
        "holder": standing.holder,
        "safe": None
        if safe is None
        else {"step": safe.step, "age_seconds": max(0.0, now - safe.written), "verified": safe.verified},
        "begun": standing.begun,
        "changed": standing.changed,
        "age_seconds": None if standing.changed is None else max(0.0, now - standing.changed),
        "bytes": folder_bytes(standing.folder),
        "next": next_command(standing),
    }
