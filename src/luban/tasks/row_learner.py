"""What a run trains when its task is one on rows: batches, loss, evaluation; the same for every such task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luban.data.row_order import RowOrder
from luban.data.row_sets import PreparedRows
from luban.data.row_store import RowSet
from luban.durable import FileSystem
from luban.models.counted import count_flops
from luban.recipe import settled
from luban.task_folder import TaskFolder, save_task_folder
from luban.tasks.base import Choice, Evaluation, Machine, Usage
from luban.tasks.row_measuring import answered, check_slices, device_of, is_minimised, measured, with_primary
from luban.tasks.starting import Start, take_over

if TYPE_CHECKING:
    from luban.tasks.rows import RowTask

Integers = NDArray[np.int64]

BATCH = 64


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
        check_slices(data.held_out, self._settings.evaluate.slices)
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

    short_steps = 0
    """All steps are alike."""

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
        device = self.device  # which is looked up, once a batch
        tensors = self._tensors(self.data.train, rows, device)
        columns = (positions, rows, positions // len(self.data.train))
        places = Places(*(torch.from_numpy(column.copy()).to(device) for column in columns))
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

__all__ = ["BATCH", "RATES", "Places", "RowBatch", "RowLearner", "choices"]
