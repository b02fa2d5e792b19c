"""What a task gives the engine. The engine gives it files, processes, time and a place to save."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

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
            "worst": list(self.worst),
            "best": list(self.best),
        }

    def _with_interval(self, name: str) -> dict[str, float | None]:
        value = self.figures[name]
        low, high = self.intervals.get(name, (value, value))
        return {"value": _number(value), "low": _number(low), "high": _number(high)}


def _number(value: float) -> float | None:
    """Return a number as JSON can say it: infinity and NaN are null."""
    return value if math.isfinite(value) else None


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

    def __init__(self, recipe: Any, prepared: Any, *, start: Any = None) -> None:
        """Build the model, freshly initialised or from a loaded model folder."""

    def batches(self, step: int, rank: int, ranks: int) -> Sequence[Any]:
        """Return a rank's micro-batches of a step; a pure function."""

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

    def samples(self) -> Sequence[Mapping[str, str]]:
        """Show what the model does now: prompt and answer."""

    def state(self) -> dict[str, Any]:
        """Return what the model folder keeps besides weights and tokenizer."""
