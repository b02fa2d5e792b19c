"""What lies between the matrix products of a decoder, by kernels of one pass each, and its products side by side.

torch does a norm, a rotation or a gate in five to ten operations, each of which reads and writes what the one before
wrote: at small widths most of a step on a CPU. The kernels (luban.kernels) do each at once. They compute what the
modules say, in the precision that autocast would give it: products in bfloat16 where it is on, all between them in
float32.

Used is a library within `using`, while training, and only where a model's shapes fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from luban.kernels import Library

LANES = 16
"""Numbers that a kernel takes at a time."""
MOST_SIZE = 512

_library: ContextVar[Library | None] = ContextVar("library", default=None)


@contextlib.contextmanager
def using(library: Library | None) -> Iterator[None]:
    """Let what trains within the block use a library, or none."""
    token = _library.set(library)
    try:
        yield
    finally:
        _library.reset(token)


def kernels_for(x: Tensor) -> Library | None:
    """Return the library that is to be used for what follows from `x`: only training on a CPU uses one."""
    if torch.compiler.is_compiling():  # which fuses by itself, and cannot look into a context variable
        return None
    library = _library.get()
    if library is None or not x.requires_grad or x.device.type != "cpu":
        return None
    return library if x.dtype in (torch.float32, torch.bfloat16) else None


def fits(*widths: int, head_dim: int) -> bool:
    """Whether shapes are such that kernels take them: vectors of whole lanes, heads of whole halves.

    Example:
        >>> fits(128, head_dim=32), fits(120, head_dim=32), fits(128, head_dim=16)
        (True, False, False)
    """
    return (
        all(width % LANES == 0 for width in widths) and head_dim % (2 * LANES) == 0 and head_dim <= MOST_SIZE
    )


def _dtype(x: Tensor) -> torch.dtype:
    """The type of the products that follow."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _side_by_side(weights: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """Return matrices below one another, (sum of their outputs, inputs), as `dtype`."""
    whole = torch.empty(sum(w.shape[0] for w in weights), weights[0].shape[1], dtype=dtype)
    for part, weight in zip(torch.split(whole, [w.shape[0] for w in weights]), weights, strict=True):
        part.copy_(weight.detach())
    return whole


def _slopes_of(library: Library, x: Tensor, slopes: Tensor, weights: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients of matrices whose products with `x` lie side by side."""
    states, slopes = x.flatten(0, -2), slopes.flatten(0, -2)
    if library.multiplies(states.dtype, by_unit=True):
        whole = library.matrix_backward(slopes.contiguous(), states.contiguous())  # (sum of outputs, inputs)
    else:
        whole = (slopes.t() @ states).to(weights[0].dtype)
    return list(torch.split(whole, [w.shape[0] for w in weights]))


def norm_after_sum(
    library: Library, x: Tensor, added: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return x + added (`x` where nothing is added), and its RMS norm times `weight` in the type of what follows.

    Shapes:
        x, added: (..., width), width a multiple of 16; weight: (width,). Returns two of the shape of `x`.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _NormAfterSum.apply
    return apply(library, x, added, weight, eps)


class _NormAfterSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, library: Library, x: Tensor, added: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        dtype = _dtype(x)
        x, given = x.contiguous(), None if added is None else added.to(dtype).contiguous()
        total, out, scale = library.norm_forward(x, given, weight, eps, dtype)
        ctx.save_for_backward(total, scale, weight)
        ctx.library, ctx.added = library, None if added is None else added.dtype
        ctx.set_materialize_grads(False)
        return total.view_as(total) if added is None else total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, residual: Tensor | None, slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        total, scale, weight = ctx.saved_tensors
        if slopes is None:
            for_added = None if residual is None or ctx.added is None else residual.to(ctx.added)
            return None, residual, for_added, None, None
        for_x, for_added, for_weight = ctx.library.norm_backward(
            slopes.contiguous(),
            total,
            scale,
            weight,
            None if residual is None else residual.contiguous(),
            added=ctx.added is not None,
        )
        for_added = None if for_added is None else for_added.to(ctx.added)
        return None, for_x, for_added, for_weight, None


def heads_of(
    library: Library,
    x: Tensor,
    matrices: tuple[Tensor, Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    cosines: Tensor,
    sines: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values as `attend` takes them, but queries times 1 / sqrt(head_dim): by one product of
    three matrices, then norm of each head, rotation and layout in one pass.

    Shapes:
        x: (batch, length, width); matrices: (heads or kv_heads * head_dim, width); norms: (head_dim,), of queries and
        of keys; cosines, sines: (length, head_dim). Returns (batch, heads or kv_heads, length, head_dim).
    """
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _HeadsOf.apply
    first, second = norms or (None, None)
    return apply(library, x, *matrices, first, second, eps, cosines, sines)


class _HeadsOf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        library: Library,
        x: Tensor,
        for_queries: Tensor,
        for_keys: Tensor,
        for_values: Tensor,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        eps: float,
        cosines: Tensor,
        sines: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        matrices = (for_queries, for_keys, for_values)
        states = x.to(_dtype(x))
        matrix = _side_by_side(matrices, states.dtype)
        packed = states @ matrix.t()  # (batch, length, (heads + 2 kv_heads) * head_dim)
        norms = None if query_norm is None or key_norm is None else (query_norm, key_norm)
        kv_heads = for_keys.shape[0] // cosines.shape[-1]
        queries, keys, values, scale = library.heads_forward(packed, norms, eps, cosines, sines, kv_heads)
        ctx.save_for_backward(states, matrix, packed, scale, cosines, sines, query_norm, key_norm, *matrices)
        ctx.library, ctx.dtype = library, x.dtype
        return queries, keys, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        states, matrix, packed, scale, cosines, sines, query_norm, key_norm, *matrices = ctx.saved_tensors
        norms = None if query_norm is None else (query_norm, key_norm)
        for_queries, for_keys, for_values = (slope.contiguous() for slope in slopes)
        for_packed, for_norms = ctx.library.heads_backward(
            (for_queries, for_keys, for_values), packed, norms, scale, cosines, sines
        )
        for_weights = (
            _slopes_of(ctx.library, states, for_packed, tuple(matrices))
            if any(ctx.needs_input_grad[2:5])
            else [None] * 3
        )
        of_norms = (None, None) if norms is None else (for_norms[0], for_norms[1])
        return None, (for_packed @ matrix).to(ctx.dtype), *for_weights, *of_norms, None, None, None


def gated_products(library: Library, x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(x gate^T) * (x up^T), by one product of two matrices.

    Shapes:
        x: (..., width); gate, up: (mlp_width, width), mlp_width at least 16. Returns (..., mlp_width).
    """
    apply: Callable[..., Tensor] = _GatedProducts.apply
    return apply(library, x, gate, up)


class _GatedProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        states = x.to(_dtype(x))
        matrix = _side_by_side((gate, up), states.dtype)
        packed = states @ matrix.t()  # (..., 2 * mlp_width)
        ctx.save_for_backward(states, matrix, packed, gate, up)
        ctx.library, ctx.dtype = library, x.dtype
        return library.gated_forward(packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        states, matrix, packed, gate, up = ctx.saved_tensors
        for_packed = ctx.library.gated_backward(slopes.contiguous(), packed)
        needed = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        for_weights = _slopes_of(ctx.library, states, for_packed, (gate, up)) if needed else [None, None]
        return None, (for_packed @ matrix).to(ctx.dtype), *for_weights


def product(library: Library, x: Tensor, linear: nn.Module) -> Tensor:
    """Return what a layer gives: where it is a matrix and no more, its gradient goes by the library's products.

    Shapes:
        x: (..., inputs). Returns (..., outputs).
    """
    states = x.to(_dtype(x))
    if is_plain(linear) and library.multiplies(states.dtype, by_unit=True):
        apply: Callable[..., Tensor] = _Product.apply
        return apply(library, states, linear.weight)
    out: Tensor = linear(x)
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, states: Tensor, weight: Tensor) -> Tensor:
        matrix = weight.to(states.dtype)
        ctx.save_for_backward(states, matrix, weight)
        ctx.library = library
        return states @ matrix.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        states, matrix, weight = ctx.saved_tensors
        for_weight = (
            _slopes_of(ctx.library, states, slopes, (weight,))[0] if ctx.needs_input_grad[2] else None
        )
        return None, slopes @ matrix, for_weight


def plain(*linears: nn.Module) -> bool:
    """Whether these are float32 matrices and nothing else: a layer in the place of one is left to itself."""
    return all(is_plain(linear) for linear in linears)


def is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether this is one."""
    return type(linear) is nn.Linear and _is_matrix(linear.bias, linear.weight)


def _is_matrix(bias: Tensor | None, weight: Tensor) -> bool:
    return bias is None and weight.dtype == torch.float32
