"""What is measured of a model of rows, whoever asks: a run at its end, or `luban evaluate`.

Answers come from the network batch by batch; figures, intervals, the worst errors and slices come from the answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from luban.data.row_sets import BESIDE, identity_of
from luban.data.row_store import RowSet
from luban.errors import RecipeError, nearest
from luban.metrics.directions import LOWER_IS_BETTER
from luban.metrics.resampling import bounds
from luban.metrics.row_scores import RowScores, digests_of
from luban.tasks.base import Evaluation

if TYPE_CHECKING:
    from luban.tasks.rows import RowTask, Scores

Integers = NDArray[np.int64]

SLICES = 20
"""Values of a column that figures are given by, at most: those of the most rows."""


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's parameters are; the CPU for a graph, which has none."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def answered(
    task: RowTask, model: nn.Module, rows: RowSet, numbers: Integers, stop: Callable[[], None]
) -> list[Any]:
    """Return the model's answer to each of `numbers`, in their order; rows of like cost are computed together."""
    costs, device = task.costs(rows), device_of(model)
    order = np.argsort(costs[numbers], kind="stable") if costs is not None else np.arange(len(numbers))
    found: list[Any] = [None] * len(numbers)
    with torch.no_grad():
        for at in range(0, len(order), task.evaluation_rows):
            stop()
            places = order[at : at + task.evaluation_rows]
            tensors = {n: t.to(device) for n, t in task.collate(*rows.gather(numbers[places])).items()}
            for place, answer in zip(places.tolist(), task.answers(model, tensors), strict=True):
                found[place] = answer
    return found


def measured(
    task: RowTask, model: nn.Module, rows: RowSet, settings: Any, stop: Callable[[], None]
) -> Evaluation:
    """Measure all of a split.

    Arguments:
        settings: the recipe's `evaluate` section.
    """
    numbers = np.arange(len(rows), dtype=np.int64)
    answers = answered(task, model, rows, numbers, stop)
    scores = task.scores(answers, rows, numbers)
    primary = settings.primary or task.primary
    figures = with_primary(scores, primary)
    digests = digests_of(map(identity_of, rows.rows()))
    ranks = np.argsort(np.argsort(digests, kind="stable"), kind="stable")
    resampled = scores.resampled(settings.bootstrap, ranks=ranks)
    intervals = bounds(figures, resampled) if settings.bootstrap else {}
    badness = task.badness(answers, rows, numbers)
    worst = [int(n) for n in np.argsort(-badness, kind="stable")[: settings.errors] if badness[n] > 0]
    sections = {
        **task.sections(scores),
        "errors": _errors(task, model, rows, worst, answers),
        "slices": _slices(task, answers, rows, settings),
    }
    return Evaluation(
        primary=primary,
        direction="min" if is_minimised(task, primary) else "max",
        figures=figures,
        intervals=intervals,
        counts={"rows": len(rows)},
        sections={name: section for name, section in sections.items() if section},
        rows=RowScores(digests, task.row_scores(answers, rows, numbers), resampled),
    )


def _errors(
    task: RowTask, model: nn.Module, rows: RowSet, worst: Sequence[int], answers: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return what the report shows of the worst rows: each beside its answer, and what the network looked at."""
    if not worst:
        return []
    device, chosen = device_of(model), [answers[number] for number in worst]
    tensors = {n: t.to(device) for n, t in task.collate(*rows.gather(np.array(worst, np.int64))).items()}
    with torch.no_grad():
        looked = task.attended(model, tensors, chosen)
    errors = []
    for number, answer, attention in zip(worst, chosen, looked, strict=True):
        shown = task.show(rows, number, answer)
        parts = [*shown["parts"], *([] if attention is None else [attention])]
        errors.append({**shown, "parts": parts, "where": "{file}:{line}".format(**rows.row(number))})
    return errors


def check_slices(rows: RowSet, asked: Sequence[str]) -> None:
    """Refuse columns to give figures by that prepared rows were kept without; raises RecipeError."""
    there = _columns(rows.row(0)) if asked and len(rows) else {}
    lacking = [name for name in asked if name not in there]
    if lacking:
        raise RecipeError(
            "the prepared rows were kept without these columns",
            received=lacking,
            where="evaluate.slices",
            fix="prepare them with evaluate.slices, or leave it out",
        )


def is_minimised(task: RowTask, figure: str) -> bool:
    """Whether a smaller value is better: as the task says of its own figure, of another by its name."""
    return task.minimise if figure == task.primary else figure in LOWER_IS_BETTER


def with_primary(scores: Scores, name: str) -> dict[str, float]:
    """Return the figures, first the one that counts; NaN where these rows do not define it, as an area under a curve.

    Raises:
        RecipeError: no figure of the task has that name.
    """
    figures = scores.figures()
    if name not in figures and name not in (there := scores.names()):
        close = nearest(name, there)
        fix = (f"did you mean {close}? " if close else "") + f"there are: {', '.join(there)}"
        raise RecipeError("the task has no such figure", received=name, where="evaluate.primary", fix=fix)
    return {name: figures.get(name, math.nan), **figures}


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that was kept of a row, by column."""
    return {**row["values"], **row.get(BESIDE, {})}


def _slices(task: RowTask, answers: Sequence[Any], rows: RowSet, settings: Any) -> list[dict[str, Any]]:
    """Return the figures of the rows of each value of the columns asked for, the largest groups first."""
    found = []
    for column in settings.slices:
        groups: dict[str, list[int]] = {}
        for number, row in enumerate(rows.rows()):
            groups.setdefault(str(_columns(row).get(column)), []).append(number)
        for value in sorted(groups, key=lambda v: -len(groups[v]))[:SLICES]:
            numbers = np.array(groups[value], np.int64)
            scores = task.scores([answers[n] for n in groups[value]], rows, numbers)
            figures = scores.figures()
            intervals = (
                bounds(figures, scores.resampled(min(200, settings.bootstrap))) if settings.bootstrap else {}
            )
            metrics = {
                name: {"value": figure, "low": low, "high": high}
                for name, figure in figures.items()
                if math.isfinite(figure)
                for low, high in [intervals.get(name, (None, None))]
            }
            found.append({"column": column, "value": value, "rows": len(numbers), "metrics": metrics})
    return found
