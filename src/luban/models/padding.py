"""What padding means: texts of unequal length stand in one batch, and what fills them up must change nothing.

A mask is (batch, length) bool, True where a token is. Tokens stand first and padding behind them; where a
function holds for any mask it says so. A row without a token has finite answers, so that a batch filled up with
empty rows is harmless.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keys_mask(mask: Tensor) -> Tensor:
    """Return which keys attention may see, for any mask: (batch, 1, 1, length).

    A row without a token sees its padding, so that no softmax is over nothing.
    """
    seen = mask | ~mask.any(1, keepdim=True)
    return seen[:, None, None]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over each row's tokens, for any mask: (batch, length, width) -> (batch, width).

    Example:
        >>> x = torch.tensor([[[1.0], [3.0], [100.0]]])
        >>> masked_mean(x, torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    total = (x * mask[..., None]).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Return the largest value of each dimension over each row's tokens, for any mask.

    Shapes:
        (batch, length, width) -> (batch, width); a row without a token gives 0.
    """
    least = torch.finfo(x.dtype).min
    largest = x.masked_fill(~mask[..., None], least).amax(1)
    return largest.masked_fill(~mask.any(1, keepdim=True), 0.0)


def last_token(x: Tensor, mask: Tensor) -> Tensor:
    """Return the state of each row's last token: (batch, length, width) -> (batch, width)."""
    last = (mask.sum(1) - 1).clamp(min=0)
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(1)


def reverse_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Turn each row's tokens around and leave its padding behind them: (batch, length, width), the same.

    Twice is once around: what a backward network returns is put in the text's order by the same function.

    Example:
        >>> x = torch.tensor([[[1], [2], [3]], [[4], [5], [0]]])
        >>> reverse_tokens(x, torch.tensor([[True, True, True], [True, True, False]])).squeeze(2)
        tensor([[3, 2, 1], [5, 4, 0]])
    """
    lengths = mask.sum(1, keepdim=True)  # (batch, 1)
    places = torch.arange(mask.shape[1], device=mask.device)  # (length,)
    sources = torch.where(places < lengths, lengths - 1 - places, places)  # (batch, length)
    return x.gather(1, sources[..., None].expand(-1, -1, x.shape[-1]))
