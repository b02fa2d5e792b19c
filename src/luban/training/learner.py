"""What the loop asks of its surroundings: something to learn, in batches, and somewhere to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Batch(Protocol):
    """A micro-batch: what the loss is computed on."""

    count: int
    """How many terms the loss sums over, for instance target tokens."""
    tokens: int
    """How many tokens (or rows) pass through the model."""
    rows: int
    """How many windows (or rows) it holds; what `batches` counts its `size` in."""

    def describe(self) -> Mapping[str, Any]:
        """Say where the batch came from, for the evidence when its loss is not finite."""


class Learner(Protocol):
    """What is learned."""

    model: nn.Module

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


class Record(Protocol):
    """Where the loop writes what happened; only rank 0 has one that writes."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Note what does not depend on the clock."""

    def timings(self, record: Mapping[str, Any]) -> None:
        """Note what does."""

    def sync(self) -> Mapping[str, int]:
        """Make the notes durable and return their sizes."""
