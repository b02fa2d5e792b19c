"""Attention for training on a CPU, as batched matrix products.

torch's fused kernel for CPUs computes its products in small tiles of its own; oneDNN's products are several times
faster, in bfloat16 above all (benchmarks/LOG.md). So attention is written out here: a block of queries at a time
against the keys it may see, for as many heads at a time as keep the probabilities in the cache. Of what lies above
the diagonal of causal attention, only what is within a block is computed.

The backward pass needs the probabilities again. Where they are few they are kept, else they are computed anew, so
memory grows with the length and not with its square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

if TYPE_CHECKING:
    from luban.kernels import Library

QUERIES = 128
"""Queries in a block."""
CACHE_BYTES = 2 << 20
"""Probabilities computed at a time, for what the cores' caches hold."""
KEPT_BYTES = 16 << 20
"""Probabilities of one call that are kept for the backward pass."""
MOST_KEYS = 8192
"""Keys that a row of the kernels' softmax may have."""

_Block = tuple[slice, slice, slice, slice]


def attention_by_products(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, causal: bool
) -> Tensor:
    """Return softmax(q k / sqrt(head_dim)) v over the keys that a query sees; zero where it sees none.

    Products are in the dtype of the arguments, sums of exponentials in float32 at least. It can be differentiated
    once.

    Arguments:
        mask: bool, True where a query sees a key; None: all of them, or with `causal` those up to its own place.

    Shapes:
        queries: (batch, heads, length, head_dim); keys, values: (batch, heads, keys, head_dim); mask: broadcast to
        (batch, heads, length, keys). Returns (batch, heads, length, head_dim).

    Example:
        >>> x = torch.tensor([[1.0], [5.0]]).view(1, 1, 2, 1)
        >>> attention_by_products(torch.zeros(1, 1, 2, 1), x, x, None, causal=True).flatten().tolist()
        [1.0, 3.0]
    """
    queries = (queries * (1.0 / math.sqrt(queries.shape[-1]))).contiguous()  # cheaper here than on the scores
    mixed: Tensor = torch.ops.luban.attention(queries, keys.contiguous(), values.contiguous(), mask, causal)[
        0
    ]
    return mixed


def causal_by_kernels(library: Library, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return the same for causal attention by kernels, laid out for the matrix that follows.

    In bfloat16, where the processor multiplies such numbers, all of it is one kernel: scores are never rounded, and
    never held for more than 32 queries at a time. Else products are torch's, and softmax is a kernel.

    Shapes:
        queries: (batch, heads, length, head_dim), times 1 / sqrt(head_dim) already; keys, values: (batch, kv_heads,
        length, head_dim), where consecutive heads share, and length is at most `MOST_KEYS`. Returns (batch, length,
        heads * head_dim).
    """
    if library.takes_attention(queries, keys):
        by_blocks: Callable[..., Tensor] = _CausalByBlocks.apply
        return by_blocks(library, queries, keys, values).flatten(2)
    if queries.shape[1] != keys.shape[1]:
        keys, values = (x.repeat_interleave(queries.shape[1] // keys.shape[1], 1) for x in (keys, values))
    by_products: Callable[..., Tensor] = _CausalByKernels.apply
    return by_products(library, queries, keys, values).transpose(1, 2).flatten(2)


class _CausalByBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries, keys, values = (x.contiguous() for x in (queries, keys, values))
        mixed, logs = library.attention_forward(queries, keys, values)
        ctx.save_for_backward(mixed, queries, keys, values, logs)
        ctx.library = library
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.library.attention_backward(slopes.contiguous(), *ctx.saved_tensors)


class _CausalByKernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        mixed, *kept = _forward(queries, keys, values, None, True, library)
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.library = library
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        return None, *_backward(gradient, queries, keys, values, None, True, kept, ctx.library)


def _blocks(queries: Tensor, keys: Tensor, causal: bool) -> Iterator[_Block]:
    """Yield which rows of the batch, heads, queries and keys meet."""
    batch, heads, length, _ = queries.shape
    of_a_head = min(QUERIES, length) * keys.shape[2] * queries.element_size()
    some_heads = min(heads, max(1, CACHE_BYTES // of_a_head))
    some_rows = max(1, CACHE_BYTES // (of_a_head * heads))
    for row in range(0, batch, some_rows):
        for head in range(0, heads, some_heads):
            for start in range(0, length, QUERIES):
                end = min(length, start + QUERIES)
                yield (
                    slice(row, min(batch, row + some_rows)),
                    slice(head, min(heads, head + some_heads)),
                    slice(start, end),
                    slice(0, end if causal else keys.shape[2]),
                )


def _part(x: Tensor, rows: slice, heads: slice, places: slice) -> Tensor:
    """Return a block's part as (rows * heads, places, head_dim)."""
    return x[rows, heads, places].flatten(0, 1)


def _probabilities(
    queries: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    causal: bool,
    block: _Block,
    library: Library | None,
) -> Tensor:
    """Return what each query of a block sees of each key: (rows * heads, queries, keys)."""
    rows, heads, asking, seen = block
    scores = torch.bmm(_part(queries, rows, heads, asking), _part(keys, rows, heads, seen).mT)
    if library is not None:
        library.softmax_forward(scores, before=asking.start)
        return scores
    if causal:
        later = torch.full((scores.shape[1],) * 2, -math.inf, dtype=scores.dtype).triu_(1)
        scores[:, :, asking] += later
    if mask is None:
        return torch.softmax(scores, -1)
    whole = mask.expand(queries.shape[0], queries.shape[1], queries.shape[2], keys.shape[2])
    unseen = whole[rows, heads, asking, seen].logical_not()
    apart = (*unseen.shape[:2], *scores.shape[1:])
    chances = torch.softmax(scores.view(apart).masked_fill_(unseen, -math.inf), -1)
    return chances.masked_fill_(unseen, 0.0).view_as(scores)  # not a number where nothing is seen


def _keeps(queries: Tensor, keys: Tensor) -> bool:
    scores = math.prod(queries.shape[:3]) * keys.shape[2]
    return scores * queries.element_size() <= KEPT_BYTES


def _like_output(queries: Tensor) -> Tensor:
    batch, heads, length, head_dim = queries.shape
    return queries.new_empty(batch, length, heads, head_dim).transpose(1, 2)


def _forward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    causal: bool,
    library: Library | None = None,
) -> list[Tensor]:
    """Return what attention gives, and the probabilities of each block where they are kept.

    What it gives lies in memory as (batch, length, heads, head_dim), as what follows wants it.
    """
    mixed, kept = _like_output(queries), list[Tensor]()
    for block in _blocks(queries, keys, causal):
        rows, heads, asking, seen = block
        probabilities = _probabilities(queries, keys, mask, causal, block, library)
        found = torch.bmm(probabilities, _part(values, rows, heads, seen))
        mixed[rows, heads, asking] = found.view(mixed[rows, heads, asking].shape)
        if _keeps(queries, keys):
            kept.append(probabilities)
    return [mixed, *kept]


def _forward_shapes(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool
) -> list[Tensor]:
    del values, mask
    kept = [
        queries.new_empty((b.stop - b.start) * (h.stop - h.start), q.stop - q.start, k.stop)
        for b, h, q, k in _blocks(queries, keys, causal)
    ]
    return [_like_output(queries), *(kept if _keeps(queries, keys) else [])]


def _backward(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    causal: bool,
    kept: list[Tensor],
    library: Library | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    for_queries = queries.new_empty(queries.shape)
    # A key is met by every block of queries: those sums are long, so they are kept in float32 at least.
    wide = torch.promote_types(queries.dtype, torch.float32)
    for_keys, for_values = (x.new_zeros(x.shape, dtype=wide) for x in (keys, values))
    for number, block in enumerate(_blocks(queries, keys, causal)):
        rows, heads, asking, seen = block
        probabilities = kept[number] if kept else _probabilities(queries, keys, mask, causal, block, library)
        given = _part(gradient, rows, heads, asking)
        slopes = torch.bmm(given, _part(values, rows, heads, seen).mT)
        if library is None:
            slopes = torch._softmax_backward_data(slopes, probabilities, -1, slopes.dtype)
        else:
            library.softmax_backward(slopes, probabilities, before=asking.start)
        place = (rows, heads, asking)
        found = torch.bmm(slopes, _part(keys, rows, heads, seen))
        for_queries[place] = found.view(for_queries[place].shape)
        place = (rows, heads, seen)
        for_keys[place] += torch.bmm(slopes.mT, _part(queries, rows, heads, asking)).view(
            for_keys[place].shape
        )
        for_values[place] += torch.bmm(probabilities.mT, given).view(for_values[place].shape)
    return for_queries, for_keys.to(keys.dtype), for_values.to(values.dtype)


def _backward_shapes(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    causal: bool,
    kept: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    del gradient, mask, causal, kept
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape), values.new_empty(values.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    queries, keys, values, mask, ctx.causal = inputs
    ctx.masked = mask is not None
    ctx.save_for_backward(queries, keys, values, *([mask] if ctx.masked else []), *output[1:])


def _differentiate(ctx: Any, gradients: list[Tensor]) -> tuple[Tensor | None, ...]:
    queries, keys, values, *kept = ctx.saved_tensors
    mask = kept.pop(0) if ctx.masked else None
    backward = torch.ops.luban.attention_backward
    slopes: tuple[Tensor, ...] = backward(gradients[0], queries, keys, values, mask, ctx.causal, kept)
    return (*slopes, None, None)


# Defined by its schema: `custom_op` would import torch's compiler at the first call.
torch.library.define(
    "luban::attention", "(Tensor queries, Tensor keys, Tensor values, Tensor? mask, bool causal) -> Tensor[]"
)
torch.library.define(
    "luban::attention_backward",
    "(Tensor gradient, Tensor queries, Tensor keys, Tensor values, Tensor? mask, bool causal, Tensor[] kept)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("luban::attention", "default", _forward)
torch.library.impl("luban::attention_backward", "default", _backward)
torch.library.register_fake("luban::attention", _forward_shapes)
torch.library.register_fake("luban::attention_backward", _backward_shapes)
torch.library.register_autograd("luban::attention", _differentiate, setup_context=_save)


@register_flop_formula(torch.ops.luban.attention)
def _forward_flops(queries: Sequence[int], keys: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the FLOPs of two products over every pair of query and key, seen or not, as torch counts its own."""
    return 2 * 2 * math.prod(queries) * keys[2]


@register_flop_formula(torch.ops.luban.attention_backward)
def _backward_flops(_: Any, queries: Sequence[int], keys: Sequence[int], *__: Any, **___: Any) -> int:
    """Return those of four; what is computed again to save memory is not counted."""
    return 2 * _forward_flops(queries, keys)
