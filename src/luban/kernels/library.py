"""The compiled kernels as functions of tensors: they allocate what they return, and check nothing.

Who calls them (luban.models.fused) gives contiguous tensors on the CPU, of float32 and of one type T, float32 or
bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_PIECE = 64
"""Rows whose sum for a weight is one part: it must not depend on the number of threads."""
_N, _P, _F, _I = ctypes.c_long, ctypes.c_void_p, ctypes.c_float, ctypes.c_int
_ARGUMENTS = {
    "norm_forward": [_N, _N, _P, _P, _P, _P, _F, _P, _P, _I],
    "norm_backward": [_N, _N, _P, _P, _P, _P, _P, _P, _P, _P, _N, _I],
    "heads_forward": [_N] * 5 + [_P, _P, _P, _F, _P, _P, _F, _P, _P, _P, _P, _I],
    "heads_backward": [_N] * 5 + [_P] * 9 + [_F, _P, _P, _N, _I],
    "gated_forward": [_N, _N, _P, _P, _I],
    "gated_backward": [_N, _N, _P, _P, _P, _I],
    "softmax_forward": [_N] * 4 + [_P, _I],
    "softmax_backward": [_N] * 4 + [_P, _P, _I],
}


class Library:
    """The functions of fused.c; shapes and meaning are told there.

    Arguments:
        loaded: the shared library.
    """

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._functions: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
        for name, arguments in _ARGUMENTS.items():
            for dtype, suffix in _TYPES.items():
                function = getattr(loaded, f"{name}_{suffix}")
                function.argtypes, function.restype = arguments, None
                self._functions[name, dtype] = function

    def norm_forward(
        self, x: Tensor, added: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x + added, its norm as `dtype`, and what each row was multiplied by.

        Without anything to add the first is `x` itself.
        """
        width = x.shape[-1]
        rows = x.numel() // width
        total = x if added is None else torch.empty_like(x)
        out, scale = torch.empty(x.shape, dtype=dtype), torch.empty(rows, dtype=torch.float32)
        into = None if added is None else total.data_ptr()
        self._functions["norm_forward", dtype](
            rows, width, x.data_ptr(), _at(added), into, weight.data_ptr(), eps, out.data_ptr(), scale.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return total, out, scale

    def norm_backward(
        self,
        slopes: Tensor,
        total: Tensor,
        scale: Tensor,
        weight: Tensor,
        residual: Tensor | None,
        *,
        added: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the gradients of `x`, of what was added (as the type of `slopes`), and of the weight."""
        rows, width, dtype = scale.numel(), total.shape[-1], slopes.dtype
        for_x = torch.empty_like(total)
        for_added = torch.empty_like(slopes) if added and dtype != total.dtype else None
        part = torch.empty(-(-rows // _PIECE), width, dtype=torch.float32)
        self._functions["norm_backward", dtype](
            rows, width, slopes.data_ptr(), total.data_ptr(), scale.data_ptr(), weight.data_ptr(), _at(residual),
            for_x.data_ptr(), _at(for_added), part.data_ptr(), _PIECE, torch.get_num_threads(),
        )  # fmt: skip
        return for_x, for_added if dtype != total.dtype else for_x if added else None, part.sum(0)

    def heads_forward(
        self,
        packed: Tensor,
        weights: tuple[Tensor, Tensor] | None,
        eps: float,
        cosines: Tensor,
        sines: Tensor,
        kv_heads: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries (times 1 / sqrt(size)), keys, values, and what norms multiplied by."""
        batch, length, wide = packed.shape
        size = cosines.shape[-1]
        heads = wide // size - 2 * kv_heads
        queries = packed.new_empty(batch, heads, length, size)
        keys, values = (packed.new_empty(batch, kv_heads, length, size) for _ in range(2))
        scale = torch.empty(batch * length, heads + kv_heads, dtype=torch.float32)
        first, second = weights or (None, None)
        self._functions["heads_forward", packed.dtype](
            batch, length, heads, kv_heads, size, packed.data_ptr(), _at(first), _at(second), eps,
            cosines.data_ptr(), sines.data_ptr(), size**-0.5, queries.data_ptr(), keys.data_ptr(), values.data_ptr(),
            scale.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return queries, keys, values, scale

    def heads_backward(
        self,
        slopes: tuple[Tensor, Tensor, Tensor],
        packed: Tensor,
        weights: tuple[Tensor, Tensor] | None,
        scale: Tensor,
        cosines: Tensor,
        sines: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of `packed`, and those of the weights, (2, size)."""
        (batch, heads, length, size), kv_heads = slopes[0].shape, slopes[1].shape[1]
        for_packed = torch.empty_like(packed)
        part = torch.empty(-(-batch * length // _PIECE), 2, size, dtype=torch.float32)
        first, second = weights or (None, None)
        self._functions["heads_backward", packed.dtype](
            batch, length, heads, kv_heads, size, *(slope.data_ptr() for slope in slopes), packed.data_ptr(),
            _at(first), _at(second), scale.data_ptr(), cosines.data_ptr(), sines.data_ptr(), size**-0.5,
            for_packed.data_ptr(), part.data_ptr(), _PIECE, torch.get_num_threads(),
        )  # fmt: skip
        return for_packed, part.sum(0)

    def gated_forward(self, packed: Tensor) -> Tensor:
        """Return silu of the first half of the last dimension, times the second."""
        width = packed.shape[-1] // 2
        out = packed.new_empty(*packed.shape[:-1], width)
        rows = out.numel() // width
        self._functions["gated_forward", packed.dtype](
            rows, width, packed.data_ptr(), out.data_ptr(), torch.get_num_threads()
        )
        return out

    def gated_backward(self, slopes: Tensor, packed: Tensor) -> Tensor:
        """Return the gradient of `packed`."""
        width = slopes.shape[-1]
        out = torch.empty_like(packed)
        self._functions["gated_backward", packed.dtype](
            slopes.numel() // width, width, slopes.data_ptr(), packed.data_ptr(), out.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def softmax_forward(self, scores: Tensor, before: int) -> None:
        """Turn (blocks, queries, keys) scores into probabilities, in place; query i sees `before` + i + 1 keys."""
        self._functions["softmax_forward", scores.dtype](
            *scores.shape, before, scores.data_ptr(), torch.get_num_threads()
        )

    def softmax_backward(self, slopes: Tensor, probabilities: Tensor, before: int) -> None:
        """Turn slopes of probabilities into slopes of scores, in place."""
        self._functions["softmax_backward", slopes.dtype](
            *slopes.shape, before, slopes.data_ptr(), probabilities.data_ptr(), torch.get_num_threads()
        )


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
