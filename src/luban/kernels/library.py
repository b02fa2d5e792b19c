"""The compiled kernels as functions of tensors: they allocate what they return, and check nothing.

Who calls them (luban.models.fused) gives contiguous tensors on the CPU, of float32 and of one type T, float32 or
bfloat16.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    "cross_entropy": [_N, _N, _P, _P, _F, _P, _I],
}
_PRODUCTS: dict[str, tuple[list[Any], Any]] = {
    "tiles_allowed": ([], _N),
    "attention_forward_scratch": ([_N, _N], _N),
    "attention_forward": ([_N] * 5 + [_P] * 6 + [_I], None),
    "attention_backward_scratch": ([_N] * 3, _N),
    "attention_backward": ([_N] * 5 + [_P] * 10 + [_I], None),
    "muon_scratch": ([_N, _N], _N),
    "muon": ([_N, _P, _P, _P, _N, _I], None),
    "matrix_backward": ([_N] * 3 + [_P] * 3 + [_I] + [_P] * 2 + [_I], None),
}
"""Products of bfloat16: there where the processor has instructions for them, the last with a matrix unit only."""
_BLOCK, _TOKENS = 32, 512
"""BLOCK and TOKENS of the sources."""
_PIECE_OF_SQUARES = 32768
"""PIECE of the sources."""
_MOST_SCRATCH_BYTES = 64 << 20
"""Of one thread's attention."""
_MOST_MUON_BYTES = 8 << 20
"""Of one thread; beyond it torch's products, which go by blocks that fit a cache, are the better ones."""


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("slopes", "momentum", "weights")),
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((name, ctypes.c_double) for name in ("keep", "move")),
    ]


MOST_ITERATIONS = 8


class _Method(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("scale", "mix")),
        *((name, ctypes.c_int64) for name in ("nesterov", "iterations")),
        *((name, ctypes.c_double) for name in ("slack", "least")),
        ("coefficients", ctypes.c_double * 3 * MOST_ITERATIONS),
    ]


@dataclass(frozen=True)
class Moving:
    """A matrix that is to move: weights <- keep * weights - move * direction. All three are contiguous float32."""

    weights: Tensor
    momentum: Tensor
    slopes: Tensor
    keep: float
    move: float


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
        self._loaded = loaded
        loaded.squares.argtypes, loaded.squares.restype = [_N, _P, _P, _P, _P, _I], None
        there = [name for name in _PRODUCTS if hasattr(loaded, name)]
        for name in there:
            function = getattr(loaded, name)
            function.argtypes, function.restype = _PRODUCTS[name]
        # The system lends the matrix unit's registers to a process that asks.
        self._has_products = "tiles_allowed" in there and loaded.tiles_allowed() == 0
        self._has_unit = self._has_products and "matrix_backward" in there
        self.whole = self._has_products or "tiles_allowed" not in there
        """Whether all it has can be used by this process."""

    def multiplies(self, dtype: torch.dtype, *, by_unit: bool = False) -> bool:
        """Whether it has products of its own of numbers of that type: attention and Muon; by a matrix unit also the
        gradient of a matrix."""
        return (self._has_unit if by_unit else self._has_products) and dtype == torch.bfloat16

    def takes_attention(self, queries: Tensor, keys: Tensor) -> bool:
        """Whether causal attention over these is one kernel: a head of keys is one thread's work, of so much memory."""
        (batch, heads, length, size), kv_heads = queries.shape, keys.shape[1]
        return (
            self.multiplies(queries.dtype)
            and batch * kv_heads >= torch.get_num_threads()
            and self._loaded.attention_backward_scratch(heads // kv_heads, length, size)
            <= _MOST_SCRATCH_BYTES
        )

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

    def norm(self, tensors: Sequence[Tensor]) -> float:
        """Return the 2-norm of all numbers of contiguous float32 tensors, summed in float64."""
        sizes = [tensor.numel() for tensor in tensors]
        firsts = [0, *itertools.accumulate(-(-size // _PIECE_OF_SQUARES) for size in sizes)]
        table = torch.tensor([*(tensor.data_ptr() for tensor in tensors), *sizes, *firsts], dtype=torch.int64)
        sums = torch.empty(firsts[-1], dtype=torch.float64)
        at, count = table.data_ptr(), 8 * len(tensors)
        self._loaded.squares(
            firsts[-1], at, at + count, at + 2 * count, sums.data_ptr(), torch.get_num_threads()
        )
        return math.sqrt(float(sums.sum()))

    def cross_entropy(self, scores: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Return the loss of each row, float32, and turn (rows, words) scores into its slopes, in place.

        Arguments:
            targets: (rows,) int64; the loss of one that is no word is not a number.
        """
        rows, words = scores.shape
        losses = torch.empty(rows, dtype=torch.float32)
        self._functions["cross_entropy", scores.dtype](
            rows,
            words,
            scores.data_ptr(),
            targets.data_ptr(),
            smoothing,
            losses.data_ptr(),
            torch.get_num_threads(),
        )
        return losses

    def attention_forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return causal attention, (batch, length, heads, size), and the logarithms its gradient needs.

        Arguments:
            queries: (batch, heads, length, size) of bfloat16, scaled; keys, values: (batch, kv_heads, length, size).
        """
        batch, heads, length, size = queries.shape
        out = queries.new_empty(batch, length, heads, size)
        logs = torch.empty(batch, heads, length, dtype=torch.float32)
        threads = torch.get_num_threads()
        scratch = _bytes(threads * self._loaded.attention_forward_scratch(length, size))
        self._loaded.attention_forward(
            batch, heads, keys.shape[1], length, size, queries.data_ptr(), keys.data_ptr(), values.data_ptr(),
            out.data_ptr(), logs.data_ptr(), scratch.data_ptr(), threads,
        )  # fmt: skip
        return out, logs

    def attention_backward(
        self, slopes: Tensor, out: Tensor, queries: Tensor, keys: Tensor, values: Tensor, logs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of queries, keys and values; `slopes` is like `out`."""
        (batch, heads, length, size), kv_heads = queries.shape, keys.shape[1]
        found = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
        threads = torch.get_num_threads()
        scratch = _bytes(threads * self._loaded.attention_backward_scratch(heads // kv_heads, length, size))
        self._loaded.attention_backward(
            batch, heads, kv_heads, length, size,
            *(x.data_ptr() for x in (slopes, out, queries, keys, values, logs, *found, scratch)), threads,
        )  # fmt: skip
        return found

    def matrix_backward(self, slopes: Tensor, states: Tensor, *, total: Tensor | None = None) -> Tensor:
        """Return slopes^T states as float32, (outputs, inputs); with `total` it is added to that, in place.

        Arguments:
            slopes: (tokens, outputs); states: (tokens, inputs); bfloat16.
        """
        (tokens, outputs), inputs = slopes.shape, states.shape[1]
        if not tokens:
            return torch.zeros(outputs, inputs) if total is None else total
        out = torch.empty(outputs, inputs, dtype=torch.float32) if total is None else total
        left, right = (
            slopes.new_empty(_TOKENS * -(-width // _BLOCK) * _BLOCK) for width in (outputs, inputs)
        )
        self._loaded.matrix_backward(
            tokens, outputs, inputs, slopes.data_ptr(), states.data_ptr(), out.data_ptr(), int(total is not None),
            left.data_ptr(), right.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def takes_muon(self, rows: int, columns: int) -> bool:
        """Whether Muon's step of such a matrix is a kernel's: what one thread holds of it stays in its cache."""
        return self._has_products and bool(self._loaded.muon_scratch(rows, columns) <= _MOST_MUON_BYTES)

    def muon(
        self,
        matrices: Sequence[Moving],
        *,
        scale: float,
        mix: float,
        nesterov: bool,
        slack: float,
        least: float,
        coefficients: Sequence[tuple[float, float, float]],
    ) -> None:
        """Move matrices by Muon, each on one thread; what the numbers mean is told in luban.training.muon.

        There are at most `MOST_ITERATIONS` coefficients.
        """
        assert len(coefficients) <= MOST_ITERATIONS
        if not matrices:
            return
        threads = torch.get_num_threads()
        # The largest first: a thread that is left with one at the end should be left with a small one.
        ordered = sorted(matrices, key=lambda matrix: -matrix.weights.numel())
        shapes = [(moving.weights.shape[0], moving.weights[0].numel()) for moving in ordered]
        given = (_Matrix * len(ordered))()
        for entry, m, (rows, columns) in zip(given, ordered, shapes, strict=True):
            entry.slopes, entry.momentum = m.slopes.data_ptr(), m.momentum.data_ptr()
            entry.weights, entry.rows, entry.columns = m.weights.data_ptr(), rows, columns
            entry.keep, entry.move = m.keep, m.move
        how = _Method(scale, mix, int(nesterov), len(coefficients), slack, least)
        for row, triple in zip(how.coefficients, coefficients, strict=False):
            row[:] = triple
        each = max(self._loaded.muon_scratch(*shape) for shape in set(shapes))
        scratch = _bytes(threads * each)
        self._loaded.muon(
            len(ordered), ctypes.addressof(given), ctypes.addressof(how), scratch.data_ptr(), each, threads
        )


def _bytes(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.uint8)


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
