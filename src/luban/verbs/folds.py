"""Cross-validation: a run whose parts are runs, each measured on another fold; reported with their spread."""

from __future__ import annotations

import contextlib
import math
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from luban.console import Show
from luban.durable import new_folder, read_json, write_json
from luban.errors import InputError, LubanError
from luban.evaluation.records import said_by_task
from luban.machine import peak_rss_bytes
from luban.metrics.directions import bounds
from luban.recipe import Recipe
from luban.run import Run
from luban.verbs.decisions import with_values
from luban.verbs.records import write_page

Part = Callable[[Run, Recipe, bool], Mapping[str, Any]]


def folds_of(recipe: Recipe) -> int | None:
    """Return how many folds a recipe asks for; None where it asks for none, or is itself that of one fold."""
    data: Any = getattr(recipe, "data", None)
    folds = getattr(data, "folds", None)
    return None if folds is None or data.fold is not None else int(folds)


def fold_folder(run: Run, fold: int) -> Run:
    """Return the run of a fold; they are counted from 1 in names."""
    return Run(run.folder / "folds" / f"fold-{fold + 1}", run.fs)


def train_folds(run: Run, recipe: Recipe, part: Part, show: Show) -> dict[str, Any]:
    """Train every fold that is not finished, then put their figures together.

    A run that was stopped goes on with the fold it was at; folds that are finished are not touched.

    Arguments:
        run: begun; its lock is held. part: trains one fold to its end, or goes on with it, and returns its result.

    Returns:
        result.json: each figure is the mean over folds, with `spread` (standard deviation) and `folds` beside.
    """
    count = folds_of(recipe)
    assert count is not None, "the recipe asks for folds"
    if not run.result.is_file():
        if fold_folder(run, 0).exists:
            run.event("resumed", "goes on with its folds")
        with _noted(run):
            results = []
            for fold in range(count):
                one = fold_folder(run, fold)
                show.line(f"fold {fold + 1} of {count}")
                results.append(part(one, with_values(recipe, {"data.fold": fold}), one.exists))
            _finish(run, results)
    found: dict[str, Any] = read_json(run.result)
    return found


@contextlib.contextmanager
def _noted(run: Run) -> Iterator[None]:
    """Note in the events of the whole run how a sitting ended that did not finish it."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(LubanError, OSError):  # a full disk must not hide why
            run.ended(error)
        raise


def _finish(run: Run, results: Sequence[Mapping[str, Any]]) -> None:
    primary = results[0]["primary"]
    names = [name for name in results[0]["metrics"] if all(_value(r, name) is not None for r in results)]
    values = {name: [float(r["metrics"][name]) for r in results] for name in names}
    if primary["name"] not in values:
        raise InputError(
            f"a fold has no {primary['name']}: it holds out too little to measure it",
            fix="take fewer folds, or give more data",
        )
    means = {name: statistics.fmean(figures) for name, figures in values.items()}
    spread = {name: statistics.stdev(figures) for name, figures in values.items()}
    # The typical model: neither the luckiest fold's nor the unluckiest's.
    distances = [abs(value - means[primary["name"]]) for value in values[primary["name"]]]
    typical = fold_folder(run, distances.index(min(distances)))
    with new_folder(run.model, run.fs) as new:
        shutil.copytree(typical.model, new, dirs_exist_ok=True)
    evaluations = [read_json(fold_folder(run, n).evaluation) for n in range(len(results))]
    folds = [
        {"fold": n + 1, "metrics": {name: values[name][n] for name in names}} for n in range(len(results))
    ]
    head = {"name": primary["name"], "value": means[primary["name"]], "direction": primary["direction"]}
    # The interval of the mean of so many folds, as if they were independent: they share training data, so it is short.
    reach = {name: _student(len(results) - 1) * spread[name] / math.sqrt(len(results)) for name in names}
    write_json(
        run.evaluation,
        {
            "primary": head,
            "metrics": {n: {"value": means[n], **_interval(n, means[n], reach[n])} for n in names},
            "counts": {"folds": len(results)},
            "worst": [],
            "best": [],
            "folds": folds,
            "baselines": _baselines(evaluations),
            "notes": _notes(evaluations),
        },
        run.fs,
    )
    total = {name: sum(r[name] for r in results) for name in ("seconds", "steps", "tokens", "flops")}
    result = {
        "status": "done",
        "task": results[0]["task"],
        **said_by_task(*results)._asdict(),
        "primary": head,
        "metrics": means,
        "spread": spread,
        "folds": folds,
        **total,
        "peak_rss_bytes": peak_rss_bytes(),
        "model": "model",
        "model_of": typical.folder.name,
    }
    write_json(run.result, result, run.fs)
    run.event("finished", f"{head['name']} {head['value']:.4f} over {len(results)} folds")
    write_page(run)


def _baselines(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the simpler models that stand beside every fold, each figure being the mean over folds."""
    of_folds = [{one["name"]: one["metrics"] for one in e.get("baselines", [])} for e in evaluations]
    shared = [name for name in of_folds[0] if all(name in fold for fold in of_folds)]
    found = []
    for name in shared:
        figures = [fold[name] for fold in of_folds]
        there = [key for key in figures[0] if all(key in one for one in figures)]
        found.append(
            {"name": name, "metrics": {k: statistics.fmean(one[k] for one in figures) for k in there}}
        )
    return found


def _notes(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return what a person has to know of the data before believing a figure: once where every fold says it, else with
    the fold that does."""
    said: dict[tuple[str, str], list[int]] = {}
    for number, evaluation in enumerate(evaluations, 1):
        for note in evaluation.get("notes", []):
            said.setdefault((note["kind"], note["detail"]), []).append(number)
    found = []
    for (kind, detail), folds in said.items():
        where = "" if len(folds) == len(evaluations) else f"fold {', '.join(map(str, folds))}: "
        found.append({"kind": kind, "detail": where + detail})
    return found


def _interval(name: str, mean: float, reach: float) -> dict[str, float]:
    """Return the ends of an interval around a mean, within what the figure can be."""
    least, most = bounds(name)
    return {"low": max(least, mean - reach), "high": min(most, mean + reach)}


def _student(freedom: int) -> float:
    """Return the 97.5 % point of Student's t, to 0.3 %: from a table for few degrees of freedom, then by expansion.

    Example:
        >>> [round(_student(n), 2) for n in (1, 2, 9, 30)]
        [12.71, 4.3, 2.26, 2.04]
    """
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    if freedom <= len(table):
        return table[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom)  # Abramowitz and Stegun 26.7.5


def _value(result: Mapping[str, Any], name: str) -> float | None:
    value = result["metrics"].get(name)
    return float(value) if isinstance(value, int | float) else None
