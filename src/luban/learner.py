"""What the loop trains: something to learn, in batches. A task's learner is that and more (`luban.tasks.base`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Batch(Protocol):
    """A micro-batch: what the loss is computed on."""

    @property
    def count(self) -> int:
        """How many terms the loss sums over, for instance target tokens."""

    @property
    def tokens(self) -> int:
        """How many tokens (or rows) pass through the model."""

    @property
    def rows(self) -> int:
        """How many windows (or rows) it holds; what `batches` counts its `size` in."""

    def describe(self) -> Mapping[str, Any]:
        """Say where the batch came from, for the evidence when its loss is not finite."""


class Learner(Protocol):
    """What is learned."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def short_steps(self) -> int:
        """So many first steps are half as large as every step after them; 0 where all are alike."""

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> Sequence[Batch]:
        """Return this rank's micro-batches of step `step` (counted from 0); a pure function of its arguments.

        `size` is the most rows of a micro-batch; None leaves the choice to the learner. The rows of the step are
        the same for every size.
        """

    def epoch(self, step: int) -> float:
        """Return how many times the data was seen after `step` steps."""

    def loss(self, batch: Any) -> Tensor:
        """Return the sum of the loss over the batch's terms: a scalar with a gradient."""

    def flops(self, batch: Any) -> int:
        """Return the floating-point operations of forward and backward on the batch."""


def whole_steps(steps: int, short_steps: int, size: float = 0.5) -> float:
    """Return how many whole steps `steps` amount to, of which the first `short_steps` are so much of one.

    Example:
        >>> whole_steps(10, 0), whole_steps(10, 4), whole_steps(3, 4)
        (10.0, 8.0, 1.5)
    """
    return steps - (1.0 - size) * min(steps, short_steps)
