"""NaN and infinity: found before they reach the weights, and told with what is needed to find their cause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luban.learner import Batch

PATIENCE = 5
"""With `train.on_nonfinite: skip`: so many steps in a row that are not finite end the run."""
NAMED = 20
"""So many weights or gradients are named."""
SHOWN = 300
"""So many characters of the batches are shown; metrics.jsonl has them all."""


def number(value: float) -> float | None:
    """Return a number as JSON can say it: NaN and infinity are null.

    Example:
        >>> number(0.5), number(math.inf)
        (0.5, None)
    """
    return value if math.isfinite(value) else None


def not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinity.

    Example:
        >>> import torch
        >>> not_finite([("a", torch.ones(2)), ("b", torch.tensor([0.0, math.nan])), ("c", None)])
        ['b']
    """
    return [name for name, tensor in tensors if tensor is not None and not bool(tensor.isfinite().all())]


def evidence(
    step: int, loss: float, norm: float, model: nn.Module, batches: Sequence[tuple[Batch, float | None]]
) -> dict[str, Any]:
    """Return what metrics.jsonl keeps of a step that was not applied.

    Arguments:
        step: counted from 1.
        loss: of the step, per term.
        norm: of its gradient.
        model: with the gradients.
        batches: the micro-batches, each with its summed loss where this rank computed it. With a loss among
            them that is not finite only such micro-batches are named, else all.
    """
    bad = [(batch, value) for batch, value in batches if value is not None and not math.isfinite(value)]
    named = list(model.named_parameters())
    return {
        "kind": "non-finite",
        "step": step,
        "loss": str(loss),
        "gradient_norm": str(norm),
        "weights": not_finite(named)[:NAMED],
        "gradients": not_finite((name, parameter.grad) for name, parameter in named)[:NAMED],
        "batches": [
            {**batch.describe(), **({} if value is None else {"loss": str(value)})}
            for batch, value in bad or batches
        ],
    }


def what_is_not(found: Mapping[str, Any]) -> str:
    """Say which comes first: a weight that is not finite spoils every loss, and a loss every gradient."""
    if found["weights"]:
        return f"weight {found['weights'][0]}"
    return "gradient" if math.isfinite(float(found["loss"])) else "loss"
