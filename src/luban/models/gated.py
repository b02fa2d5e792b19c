"""SwiGLU's gate: silu(gate) * up, of which the backward pass keeps the two arguments and nothing else.

Shazeer, "GLU Variants Improve Transformer", https://arxiv.org/abs/2002.05202. Written with torch's own functions,
autograd keeps silu(gate) besides, which is as large as each of them: a tenth of all that training keeps of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, of the same shape as both; the same to the last bit as torch's functions give.

    Example:
        >>> gated(torch.tensor([0.0, 40.0]), torch.tensor([3.0, 2.0])).tolist()
        [0.0, 80.0]
    """
    apply: Callable[..., Tensor] = _Gated.apply
    return apply(gate, up)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        for_up = F.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), for_up
