"""What a task gives the engine. The engine gives it files, processes, time and a place to save."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from luban.metrics.document_losses import DocumentLosses
from luban.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """What was measured on held-out data."""

    primary: str
    direction: str
    """`min` or `max`: which way the primary figure is better."""
    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    worst: Sequence[Mapping[str, Any]] = ()
    best: Sequence[Mapping[str, Any]] = ()
    documents: DocumentLosses | None = None
    """What each document cost, for a comparison in pairs; not part of evaluation.json."""

    def as_json(self) -> dict[str, Any]:
        """Return the form of evaluation.json."""
        return {
            "primary": {
                "name": self.primary,
                "value": _number(self.figures[self.primary]),
                "direction": self.direction,
            },
            "metrics": {name: self._with_interval(name) for name in self.figures},
            "counts": dict(self.counts),
            "worst": [_passage(passage) for passage in self.worst],
            "best": [_passage(passage) for passage in self.best],
        }

    def _with_interval(self, name: str) -> dict[str, float | None]:
        value = self.figures[name]
        low, high = self.intervals.get(name, (value, value))
        return {"value": _number(value), "low": _number(low), "high": _number(high)}


def _passage(passage: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) if isinstance(value, float) else value for name, value in passage.items()}


def _number(value: float) -> float | None:
    """Return a number as JSON can say it: infinity and NaN are null."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Choice:
    """What was chosen for a key that the recipe leaves open, and why."""

    value: int | float
    why: str

    def as_json(self) -> dict[str, Any]:
        """Return the form of plan.json."""
        return {"value": self.value, "why": self.why}


@dataclass(frozen=True)
class Machine:
    """What a choice needs to know of the machine.

    Attributes:
        peak_flops: measured rate of matrix products, FLOP/s. memory_bytes: what a run may take now.
    """

    peak_flops: float
    memory_bytes: int


class Task(Protocol):
    """One thing to learn. A class of this shape, found by name, is all that training needs."""

    name: ClassVar[str]
    recipe: ClassVar[type[Recipe]]
    model: nn.Module
    minimise: bool
    tokenizer: Any
    """What the model folder keeps to read raw input; None for a task without one."""

    @staticmethod
    def prepare(
        recipe: Any, folder: Path, *, stop: Callable[[], None], progress: Callable[[str, float], None]
    ) -> Any:
        """Turn the recipe's data into what training reads, in `folder`, whole or not at all; returns it opened."""

    @staticmethod
    def choose(recipe: Any, prepared: Any, machine: Machine, start: Any = None) -> Mapping[str, Choice]:
        """Choose a value for each key that the recipe leaves open (`train.batch`), from budget, data and machine."""

    def __init__(self, recipe: Any, prepared: Any, *, start: Any = None) -> None:
        """Build the model, freshly initialised or from a loaded model folder."""

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> Sequence[Any]:
        """Return a rank's micro-batches of a step, of at most `size` rows if it is given; a pure function."""

    def epoch(self, step: int) -> float:
        """Return how many times the data was seen after `step` steps."""

    def loss(self, batch: Any) -> Tensor:
        """Return the loss summed over the batch."""

    def flops(self, batch: Any) -> int:
        """Return FLOPs of forward and backward."""

    def quick(self) -> Mapping[str, float]:
        """Measure a fixed part of the held-out data; the primary figure comes first."""

    def evaluate(self, *, stop: Callable[[], None]) -> Evaluation:
        """Measure all of it."""

    def evaluation_tokens(self) -> int:
        """Return how many tokens (or rows) pass through the model in `evaluate`."""

    def largest_evaluation(self) -> int:
        """Compute the largest batch that `evaluate` meets and return its tokens (or rows)."""

    def views(self, count: int) -> Sequence[str]:
        """Show `count` training examples as the model will see them."""

    def expected(self, tokens: int) -> Mapping[str, float]:
        """Return the held-out figures expected after so many tokens (or rows), by name; none where no law is known."""

    def samples(self) -> Sequence[Mapping[str, str]]:
        """Show what the model does now: prompt and answer."""

    def state(self) -> dict[str, Any]:
        """Return what the model folder keeps besides weights and tokenizer."""
