"""Of each filter the window of a text that it fits best, with a gradient that looks at those windows alone.

A maximum over time passes its gradient to one window in each text. A convolution does not know that: it multiplies
the zeros of all other windows too, and backward costs twice what forward does. Here backward gathers the windows that
won: of a text of n words one in n, so that almost all of its work falls away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def best_windows(x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return how well the best window of each text fits each filter, at least zero: (batch, filters).

    Windows at the edges count while they hold a token; beyond the text there are zeros. Of windows that fit equally
    well the first has the gradient.

    Arguments:
        x: (batch, length, width); zeros where `mask` is false. mask: (batch, length), true from the first place on.
        weight: (filters, width, window), as a convolution has it. bias: (filters,).

    Example:
        >>> x, mask = torch.tensor([[[1.0], [5.0], [2.0]]]), torch.ones(1, 3, dtype=torch.bool)
        >>> best_windows(x, mask, torch.tensor([[[1.0, 1.0]], [[-1.0, 0.0]]]), torch.zeros(2))
        tensor([[7., 0.]])
    """
    eager = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if eager and len(x):
        found: Tensor = _BestWindows.apply(x, mask, weight, bias)  # type: ignore[no-untyped-call]
        return found
    fits = F.conv1d(x.transpose(1, 2), weight, padding=weight.shape[2] - 1)  # (batch, filters, windows)
    held = _holds(mask, weight.shape[2])[:, None]
    return F.relu(fits.masked_fill(~held, -torch.inf).max(2).values + bias)


def _holds(mask: Tensor, window: int) -> Tensor:
    """Return which windows hold a token: (batch, length) -> (batch, length + window - 1)."""
    # Window i ends at token i: it holds a token while its first place is one.
    return F.pad(mask, (window - 1, 0), value=True)


class _BestWindows(torch.autograd.Function):
    """The same on a CPU while training: forward one product, backward two sums over what won."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        (batch, length, width), (filters, _, window) = x.shape, weight.shape
        windows = length + window - 1
        padded = F.pad(x, (0, 0, window - 1, window - 1)).contiguous()  # (batch, windows + window - 1, width)
        each = padded.as_strided((batch, windows, window * width), (padded.stride(0), width, 1))
        computed = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        matrix = weight.to(computed).permute(2, 1, 0).reshape(window * width, filters)
        with torch.autocast("cpu", enabled=False):
            fits = each.to(computed).reshape(batch * windows, window * width) @ matrix
        barred = torch.zeros(batch, windows, 1, dtype=fits.dtype).masked_fill_(
            ~_holds(mask, window)[..., None], -torch.inf
        )
        # The bias is the same for all windows: it is added to the best alone.
        best, place = fits.view(batch, windows, filters).add_(barred).max(1)
        found = F.relu(best.to(bias.dtype) + bias)
        ctx.save_for_backward(padded, weight, place, found > 0)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight, place, alive = ctx.saved_tensors
        (batch, places, width), (filters, _, window) = padded.shape, weight.shape
        gradient = (gradients[0] * alive).to(padded.dtype)  # (batch, filters)
        shares = gradient[..., None].expand(-1, -1, window)
        # Of each window that won its places in the text, (batch, filters, window), and their rows of padded.
        taken = place[..., None] + torch.arange(window)
        rows = taken + (torch.arange(batch) * places)[:, None, None]
        to_x = to_weight = None
        if ctx.needs_input_grad[2]:
            # A filter's gradient is the sum of its windows, each times the gradient of its text.
            to_weight = F.embedding_bag(
                rows.permute(1, 2, 0).reshape(filters * window, batch),
                padded.flatten(0, 1),
                mode="sum",
                per_sample_weights=shares.permute(1, 2, 0).reshape(filters * window, batch),
            )
            to_weight = to_weight.view(filters, window, width).transpose(1, 2).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            # A token's is the sum of what the filters that won where it stands have at its place.
            small = taken.flatten(1).numpy().astype(np.min_scalar_type(places))  # sorted by digits
            order = torch.from_numpy(np.argsort(small, axis=1, kind="stable"))  # (batch, filters * window)
            counts = torch.bincount(rows.flatten(), minlength=batch * places)
            to_x = F.embedding_bag(
                order.flatten(),
                weight.transpose(1, 2).reshape(-1, width).to(padded.dtype),
                F.pad(counts.cumsum(0), (1, 0)),
                mode="sum",
                per_sample_weights=shares.flatten(1).gather(1, order).flatten(),
                include_last_offset=True,
            )
            to_x = to_x.view(batch, places, width)[:, window - 1 : places - window + 1]
        return to_x, None, to_weight, gradient.sum(0).to(weight.dtype)
