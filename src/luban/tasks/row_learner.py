"""What a run trains when its task is one on rows: batches, loss, evaluation; the same for every such task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luban.data.row_order import RowOrder
from luban.data.row_sets import BESIDE, PreparedRows, identity_of
from luban.data.row_store import RowSet
from luban.durable import FileSystem
from luban.errors import RecipeError, nearest
from luban.metrics.directions import LOWER_IS_BETTER
from luban.metrics.resampling import bounds
from luban.metrics.row_scores import RowScores, digests_of
from luban.models.counted import count_flops
from luban.recipe import settled
from luban.task_folder import TaskFolder, save_task_folder
from luban.tasks.base import Choice, Evaluation, Machine, Usage
from luban.tasks.starting import Start, take_over

if TYPE_CHECKING:
    from luban.tasks.rows import RowTask, Scores

Integers = NDArray[np.int64]

BATCH = 64
SLICES = 20


@dataclass(frozen=True)
class Places:
    """Where the rows of a batch stand, each (rows,) int64.

    Attributes:
        positions: in the run, counted from its first row. numbers: among the training rows. epochs: in which.
    """

    positions: Tensor
    numbers: Tensor
    epochs: Tensor


@dataclass(frozen=True)
class RowBatch:
    """Rows as tensors."""

    tensors: dict[str, Tensor]
    rows: int
    count: int
    describe: Callable[[], Mapping[str, Any]]

    @property
    def tokens(self) -> int:
        """Rows that pass through the model."""
        return self.rows


class RowLearner:
    """A task on rows with its network and its data.

    Arguments:
        task: knowing what was learned from the training rows.
        data: the rows.
        start: a model to take weights from, wherever names and shapes are the same.
    """

    def __init__(self, task: RowTask, data: PreparedRows, *, start: Start | None = None) -> None:
        self.task, self.data = task, data
        self._settings, train = task.settings, task.settings.train
        _check_slices(data.held_out, self._settings.evaluate.slices)
        torch.manual_seed(train.seed)
        self.model: nn.Module = task.build()
        task.ready(self.model, data.train)  # what is not taken over from `start` begins as it would without
        self._taken = None if start is None else take_over(self.model, task, start)
        self._order = RowOrder(
            len(data.train),
            train.batch if task.batch_cost() is not None else settled(train.batch, "train.batch"),
            seed=train.seed,
            costs=task.costs(data.train),
            batch_cost=task.batch_cost(),
            weights=task.weights(data.train),
        )
        self._flops: dict[tuple[tuple[int, ...], ...], int] = {}
        self._task_after = task

    compiles_well = False
    """Each length of a text would compile anew, and short steps gain nothing: benchmarks/LOG.md."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> list[RowBatch]:
        """Return the rank's share of the step's rows, cut into micro-batches of at most `size` rows."""
        rows, positions = self._order.rows(step), self._order.positions(step)
        first, last = len(rows) * rank // ranks, len(rows) * (rank + 1) // ranks
        size = size or self._settings.train.micro_batch or max(1, last - first)
        return [
            self._batch(rows, positions, slice(at, min(at + size, last))) for at in range(first, last, size)
        ]

    def _batch(self, rows: Integers, positions: Integers, part: slice) -> RowBatch:
        """Return a part of a step's rows, each mixed with its partner where the task mixes rows.

        Partners are of the whole step, the first row with the last, however the step is cut.
        """
        own = rows[part]
        tensors, places = self._changed(own, positions[part])
        if self.task.mixes and len(rows) > 1:
            if len(own) == len(rows):
                partners = {name: tensor.flip(0) for name, tensor in tensors.items()}
            else:
                partners, _ = self._changed(rows[::-1][part], positions[::-1][part])
            tensors = self.task.mixed(tensors, partners, places)
        return RowBatch(tensors, len(own), self.task.count(tensors), partial(self._describe, own))

    def _changed(self, rows: Integers, positions: Integers) -> tuple[dict[str, Tensor], Places]:
        tensors = self._tensors(self.data.train, rows, self.device)
        columns = (positions, rows, positions // len(self.data.train))
        places = Places(*(torch.from_numpy(column.copy()).to(self.device) for column in columns))
        return self.task.augmented(tensors, places), places

    def _tensors(self, rows: RowSet, numbers: Integers, device: torch.device) -> dict[str, Tensor]:
        return {n: t.to(device) for n, t in self.task.collate(*rows.gather(numbers)).items()}

    def _describe(self, rows: Integers) -> dict[str, Any]:
        shown = [self.data.train.row(int(number)) for number in rows[:8]]
        return {"rows": [{"file": row["file"], "line": row["line"]} for row in shown], "count": len(rows)}

    def epoch(self, step: int) -> float:
        """Return how many times the training rows were seen after `step` steps."""
        return self._order.epoch(step)

    def steps(self, epochs: float) -> int:
        """Return how many steps so many epochs are."""
        return self._order.steps(epochs)

    def loss(self, batch: RowBatch) -> Tensor:
        """Return the loss summed over the batch."""
        return self.task.batch_loss(self.model, batch.tensors)

    def flops(self, batch: RowBatch) -> int:
        """Return the FLOPs of the matrix products and convolutions of forward and backward, counted once per shape.

        Those of the textbook: what a network spares itself backward, as `luban.models.best_windows` does, counts too.
        """
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in batch.tensors.values())
        if shapes not in self._flops:
            row = {name: tensor[:1] for name, tensor in batch.tensors.items()}
            # Backward is twice forward: a product for the gradient of each of its two factors.
            self._flops[shapes] = 3 * count_flops(self.model, **self.task.signature(row).inputs)
        return batch.rows * self._flops[shapes]

    def quick(self) -> dict[str, float]:
        """Measure some of the validation rows, spread evenly."""
        return self._measured(self._quick_rows())

    def rehearse_quick(self) -> float:
        """Measure every fourth row of `quick`, but at least 16 of them; return what share of the rows that was."""
        numbers = self._quick_rows()
        part = numbers[:: max(1, min(4, len(numbers) // 16))]
        self._measured(part)
        return len(part) / len(numbers)

    def _quick_rows(self) -> NDArray[np.int64]:
        step = max(1, len(self.data.validation) // self.task.quick_rows)
        return np.arange(0, len(self.data.validation), step, dtype=np.int64)

    def _measured(self, numbers: NDArray[np.int64]) -> dict[str, float]:
        """Measure validation rows; the primary figure comes first."""
        rows = self.data.validation
        answers = self.answers(rows, numbers)
        scores = self.task.scores(answers, rows, numbers)
        self._last = (answers, numbers)
        return with_primary(scores, self.primary)

    @property
    def primary(self) -> str:
        """The name of the figure that counts."""
        return self._settings.evaluate.primary or self.task.primary

    @property
    def minimise(self) -> bool:
        """Whether a smaller value of that figure is better."""
        return is_minimised(self.task, self.primary)

    def evaluate(self, *, stop: Callable[[], None]) -> Evaluation:
        """Measure the test rows (validation rows where there are none), with intervals and what a report shows."""
        self._task_after = self.task
        if self.data.test is not None:
            everything = np.arange(len(self.data.validation), dtype=np.int64)
            answers = self.answers(self.data.validation, everything, stop)
            self._task_after = self.task.calibrate(answers, self.data.validation)
        finished = self._task_after.finished()
        evaluation = measured(finished, self.model, self.data.held_out, self._settings.evaluate, stop)
        sections = {**evaluation.sections, "baselines": self.task.baselines(self.data)}
        notes = [*self.data.report.get("notes", [])]
        if why := self.task.without_baselines(self.data):
            notes.append({"kind": "baselines", "detail": why})
        if notes:
            sections["notes"] = notes
        return Evaluation(
            evaluation.primary,
            evaluation.direction,
            evaluation.figures,
            evaluation.intervals,
            evaluation.counts,
            sections={name: section for name, section in sections.items() if section},
            rows=evaluation.rows,
        )

    def answers(self, rows: RowSet, numbers: Integers, stop: Callable[[], None] = lambda: None) -> list[Any]:
        """Return what the model says now of rows, by number."""
        return answered(self.task, self.model, rows, numbers, stop)

    def evaluation_tokens(self) -> int:
        """Return how many rows pass through the model in `evaluate`."""
        return len(self.data.held_out) + (len(self.data.validation) if self.data.test is not None else 0)

    def largest_evaluation(self) -> int:
        """Compute the largest batch of `evaluate` and return its rows."""
        rows = self.data.held_out
        costs = self.task.costs(rows)
        order = np.argsort(costs, kind="stable")[::-1] if costs is not None else np.arange(len(rows))
        numbers = order[: self.task.evaluation_rows].astype(np.int64)
        self.task.answers(self.model, self._tensors(rows, numbers, self.device))
        return len(numbers)

    def views(self, count: int) -> list[str]:
        """Show the first training rows of the run as the network sees them."""
        return [self.task.view(self.data.train, int(number)) for number in self._order.rows(0)[:count]]

    def expected(self, tokens: int) -> dict[str, float]:
        """Return nothing: no law is known for what a classifier reaches."""
        del tokens
        return {}

    def samples(self) -> list[dict[str, str]]:
        """Show what the model answers now, of the rows measured last."""
        answers, numbers = self._last
        return self.task.samples(answers, self.data.validation, numbers)

    def started(self) -> str | None:
        """Say what was taken from the model to start from, and what begins anew, and why."""
        return None if self._taken is None else self._taken.told()

    def config(self) -> dict[str, Any]:
        """Return config.json of the model folder."""
        return self.task.config()

    def usage(self) -> Usage:
        """Say how others use the model."""
        return self.task.usage()

    def save(self, folder: Path, card: str, fs: FileSystem) -> None:
        """Write the model folder."""
        task = self._task_after
        state = {
            "task": task.name,
            "recipe": task.settings.model_dump(mode="json"),
            "fitted": dict(task.fitted.state),
            "primary": self.primary,
        }
        weights = task.weights_out(self.model.state_dict())
        content = TaskFolder(task.config(), weights, task.fitted.tokenizers, state, task.files())
        save_task_folder(folder, content, card, fs)


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


def _check_slices(rows: RowSet, asked: Sequence[str]) -> None:
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
                for low, high in [intervals.get(name, (figure, figure))]
            }
            found.append({"column": column, "value": value, "rows": len(numbers), "metrics": metrics})
    return found


def choices(
    recipe: Any,
    prepared: PreparedRows,
    machine: Machine,
    start: Any,
    share: float,
    batch: int | None = BATCH,
) -> dict[str, Choice]:
    """Choose batch and rate where a recipe on rows leaves them open.

    Arguments:
        share: of the usual rate, what suits the task. batch: the most rows of a step, what suits the task; None where
            steps are cut by what rows cost.
    """
    del machine
    chosen: dict[str, Choice] = {}
    rows = len(prepared.train)
    if recipe.train.batch is None and batch is not None:
        batch = min(batch, max(4, 2 ** int(math.log2(max(4, rows / 32)))))
        chosen["train.batch"] = Choice(
            batch, f"{rows:,} training rows: an epoch has {math.ceil(rows / batch):,} steps"
        )
    if recipe.train.learning_rate is None:
        rate = RATES[recipe.train.optimizer] * share
        why = f"usual for {recipe.train.optimizer}"
        if start is not None:
            rate, why = (
                rate / 5,
                f"a fifth of what is usual for {recipe.train.optimizer}: the model begins trained",
            )
        chosen["train.learning_rate"] = Choice(rate, why)
    return chosen


RATES = {"sgd": 0.05, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3, "muon": 3e-3}

__all__ = ["RowBatch", "RowLearner", "answered", "choices", "measured"]
