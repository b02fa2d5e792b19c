"""Cross-entropy of a language model that never holds the logits of all tokens at once.

Logits are the largest tensor of a small model: 4,096 tokens by 16,384 words are 256 MB, and as much again for
their gradient. Here a piece of the tokens is taken at a time, and its gradients are computed while its logits
are there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from luban.models.fused import kernels_for

if TYPE_CHECKING:
    from luban.kernels import Library

IGNORED = -100
CHUNK_TOKENS, CHUNK_BYTES = 512, 128 << 20
"""Tokens whose logits are held at once, and most bytes of these in float32: a large vocabulary takes fewer tokens."""
_GPU_CHUNK_TOKENS, _GPU_CHUNK_BYTES = 4096, 512 << 20
"""The same on a GPU, where no piece fits a cache: each reads and writes the whole gradient of the output matrix, so few
are better (reckoned, not measured)."""
_PLAIN_BYTES = 4 << 20  # smaller logits stay in cache; then the plain path is as fast (benchmarks/LOG.md)


def cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int | None = None,
    bias: Tensor | None = None,
    count: int | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of `targets`, in nats, and how many targets count.

    Divide the sum by the count of the whole batch, not of a part of it: then accumulating over parts is
    exact.

    Arguments:
        hidden: states after the final norm, (..., width).
        weight: the output embedding, (vocab_size, width).
        targets: (...) int64; -100 is ignored, and costs nothing.
        chunk_tokens: how many tokens' logits are held at once; None: 512, or as many as take 128 MB; more on a GPU.
        bias: (vocab_size,).
        count: how many targets count, where the caller knows: to find out on a GPU is to wait for all it was asked.
        label_smoothing: share of each target spread evenly over the vocabulary (C. Szegedy et al., "Rethinking the
            Inception architecture", 2016).

    Shapes:
        both results are scalars; the loss is float32, or float64 for float64 states.

    Example:
        >>> loss, count = cross_entropy_sum(torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, -100]))
        >>> f"{loss:.4f} {count}"
        '2.7726 2'
    """
    states, flat = hidden.flatten(0, -2), targets.flatten()  # (tokens, width), (tokens,)
    counted = flat != IGNORED
    found = counted.sum()
    if flat.numel() * weight.shape[0] * 4 <= _PLAIN_BYTES:
        logits = F.linear(states, weight, bias)
        loss = F.cross_entropy(
            _wide(logits), flat, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
        )
        return loss, found
    if (int(found) if count is None else count) < flat.numel():
        kept = counted.nonzero().squeeze(1)
        states, flat = states[kept], flat[kept]
    apply: Callable[..., Tensor] = _ChunkedCrossEntropy.apply
    chunk = chunk_tokens or _chunk_tokens(weight)
    return apply(kernels_for(states), states, weight, bias, flat, chunk, label_smoothing), found


def _chunk_tokens(weight: Tensor) -> int:
    on_cpu = weight.device.type == "cpu"
    tokens, size = (CHUNK_TOKENS, CHUNK_BYTES) if on_cpu else (_GPU_CHUNK_TOKENS, _GPU_CHUNK_BYTES)
    return max(1, min(tokens, size // (4 * weight.shape[0])))


@torch.no_grad()
def token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return each target's negative log-likelihood in nats, without gradients; ignored targets give 0.

    Shapes:
        as `cross_entropy_sum`; returns the shape of `targets`, float32 or float64.
    """
    states, flat = hidden.flatten(0, -2), targets.flatten()
    chunk_tokens = chunk_tokens or _chunk_tokens(weight)
    losses = [
        F.cross_entropy(_wide(F.linear(part, weight, bias)), wanted, ignore_index=IGNORED, reduction="none")
        for part, wanted in zip(
            torch.split(states, chunk_tokens), torch.split(flat, chunk_tokens), strict=True
        )
    ]
    return torch.cat(losses).view(targets.shape)


def _wide(x: Tensor) -> Tensor:
    """At least float32: a sum of exponentials in bfloat16 keeps two digits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one walk over the tokens; every target counts."""

    @staticmethod
    def forward(
        ctx: Any,
        library: Library | None,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_tokens: int,
        smoothing: float,
    ) -> Tensor:
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        matrix = weight.to(dtype)  # (vocab_size, width)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[1:4]
        for_hidden = torch.empty_like(hidden) if needs_hidden else None
        for_weight = weight.new_zeros(weight.shape, dtype=wide) if needs_weight else None
        for_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs_bias else None
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), chunk_tokens):
                states = hidden[start : start + chunk_tokens].to(dtype)
                wanted = targets[start : start + chunk_tokens, None]
                logits = F.linear(states, matrix, None if bias is None else bias.to(dtype))
                if library is not None and bias is None and dtype in (torch.float32, torch.bfloat16):
                    loss += library.cross_entropy(logits, wanted.flatten().contiguous(), smoothing).sum()
                    if for_hidden is not None:
                        for_hidden[start : start + chunk_tokens] = logits @ matrix
                    if for_weight is not None:
                        _add_product(library, for_weight, logits, states)
                    continue
                slopes = torch.log_softmax(
                    logits, dim=-1, dtype=wide
                )  # (chunk, vocab_size), slopes two lines on
                loss -= (1.0 - smoothing) * slopes.gather(1, wanted).sum()
                if smoothing:
                    loss -= smoothing * slopes.mean(1).sum()
                if not (needs_hidden or needs_weight or needs_bias):
                    continue
                slopes = slopes.exp_().scatter_add_(1, wanted, slopes.new_full(wanted.shape, smoothing - 1.0))
                if smoothing:
                    slopes -= smoothing / slopes.shape[1]
                if for_bias is not None:
                    for_bias += slopes.sum(0)
                slopes = slopes.to(dtype)
                if for_hidden is not None:
                    for_hidden[start : start + chunk_tokens] = slopes @ matrix
                if for_weight is not None:
                    _add_product(library, for_weight, slopes, states)
        ctx.save_for_backward(for_hidden, for_weight, for_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if slope is None else (slope * gradients[0]).to(dtype)
            for slope, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (None, *scaled, None, None, None)


def _add_product(library: Library | None, total: Tensor, slopes: Tensor, states: Tensor) -> None:
    """total += slopes^T states, summed in `total`'s dtype."""
    if (
        library is not None
        and library.multiplies(slopes.dtype, by_unit=True)
        and total.dtype == torch.float32
    ):
        library.matrix_backward(slopes, states.contiguous(), total=total)
    elif slopes.dtype == total.dtype:
        total.addmm_(slopes.t(), states)
    else:
        total += slopes.t() @ states
