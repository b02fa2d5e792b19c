"""What a network attended to: the weights of its attention, kept while it runs, for a person to look at.

Where no gradient is asked for, networks mix with `scaled_dot_product_attention`, which computes the weights inside its
kernel and does not give them out. `AttentionWeights` stands between: while it is on, each call's weights are computed
beside it and kept, so that no network has to be written for being watched, and none computes differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class AttentionWeights(TorchFunctionMode):
    """Keeps the weights of every attention that is computed without gradients while it is on.

    Attributes:
        found: of each call, in order, (batch, heads, queries, keys) float32; each row adds up to 1.

    Example:
        >>> x = torch.zeros(1, 2, 3, 4)
        >>> with AttentionWeights() as seen:
        ...     _ = F.scaled_dot_product_attention(x, x, x)
        >>> seen.found[0][0, 0, 0].sum()
        tensor(1.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let a function run; of attention, compute the weights too."""
        del types
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.found.append(_weights(*args, **given))
        return func(*args, **given)


@torch.no_grad()
def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(q k / sqrt(head_dim)), by the arguments of `scaled_dot_product_attention`; without dropout."""
    del value, dropout_p
    if enable_gqa:  # consecutive heads share keys
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.float() @ key.float().transpose(-2, -1) * (scale or 1.0 / math.sqrt(query.shape[-1]))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    return scores.softmax(-1)


def rollout(layers: Sequence[Tensor]) -> Tensor:
    """Return how much of each token of the input reaches each token of the output, through all layers.

    Each layer hands on half of what a token was, over the residual, and half by the mean of its heads: the product
    of (A + I) / 2 over the layers. Rows add up to 1. What values and MLPs make of it is not looked at.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928

    Shapes:
        layers: (batch, heads, length, length) each, the first layer first. Returns (batch, length, length).
    """
    flow = torch.eye(layers[0].shape[-1], device=layers[0].device)
    reached = flow.expand(layers[0].shape[0], -1, -1)
    for weights in layers:
        reached = (0.5 * (weights.mean(1) + flow)) @ reached
    return reached
