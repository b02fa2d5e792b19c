"""RMSNorm: a vector divided by its root mean square, then scaled per dimension.

Zhang and Sennrich, "Root Mean Square Layer Normalization", https://arxiv.org/abs/1910.07467
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luban.models.fused import LANES, kernels_for, norm_after_sum


class RMSNorm(nn.Module):
    """Normalise the last dimension, in float32 at least, and scale it by `weight`.

    Example:
        >>> RMSNorm(2)(torch.tensor([3.0, -3.0])).tolist()
        [1.0, -1.0]
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x / rms(x) * weight in the shape of `x`, (..., width), and its dtype, or that of autocast."""
        apply: Callable[..., Tensor] = _Normalise.apply
        return apply(x, self.weight, self.eps)

    def after(self, x: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x + added (`x` where nothing is added), and the norm of that: what a residual stream needs of both."""
        fits = x.dtype == self.weight.dtype == torch.float32 and self.weight.numel() % LANES == 0
        if fits and (library := kernels_for(x)):
            return norm_after_sum(library, x, added, self.weight, self.eps)
        total = x if added is None else x + added
        return total, self(total)


class _Normalise(torch.autograd.Function):
    """The gradient by hand: eager torch on CPU takes 1.5 to 1.8 times as long for the same.

    Kept for it is `x`, which others keep too, and not the normed vectors, which are as large again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = scale.mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        out: Tensor = (wide * scale).mul_(weight).to(_dtype_after(x))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale, weight = ctx.saved_tensors
        normed = _wide(x) * scale
        gradient = gradients[0].to(normed.dtype)
        for_weight = (gradient * normed).flatten(0, -2).sum(0)
        gradient = gradient * weight
        along = (gradient * normed).mean(-1, keepdim=True)
        # Moving along x changes its length only, which the norm takes away again.
        for_x = gradient.addcmul_(normed, along, value=-1.0).mul_(scale)
        return for_x.to(x.dtype), for_weight.to(weight.dtype), None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _dtype_after(x: Tensor) -> torch.dtype:
    """The dtype of what follows: under autocast every product that reads a norm would convert it for itself."""
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
