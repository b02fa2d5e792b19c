"""Attention: which token sees which, and the mixing itself, shared by every Transformer.

Vaswani et al., "Attention Is All You Need", https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.errors import InputError
from luban.models.attention_products import attention_by_products
from luban.models.cache import Cache


def attention_mask(
    ids: Tensor, cache: Cache | None = None, segments: Tensor | None = None, window: int | None = None
) -> Tensor | None:
    """Return who sees whom: True to attend, (batch or 1, 1, length, keys); None means plainly causal.

    ```
    keys      0 1 2 3      0 1 2 3      0 1 2 3
    query 0   x            x            x
    query 1   x x          x x          x x
    query 2   x x x            x          x x
    query 3   x x x x          x x          x x
              causal       segments     window
                           0 0 1 1      of 2
    ```

    Arguments:
        ids: (batch, length), for its shape and device.
        segments: (batch, length); only tokens of one number see each other.
        window: how many tokens back, itself included, a token sees.
    """
    length = ids.shape[1]
    if cache is not None:
        if segments is not None:
            raise InputError("segments cannot be used with a cache", fix="read the text without a cache")
        square = cache.starts is None and (length == 1 or cache.length == 0)
        if square and not _reaches(window, cache.length + length):
            return None
        return cache.mask(length, window, ids.device)
    if segments is None and not _reaches(window, length):
        return None
    slots = torch.arange(length, device=ids.device)
    seen = (slots[None, :] <= slots[:, None])[None]  # (1, length, length)
    if window is not None:
        seen = seen & (slots[None, :] > slots[:, None] - window)
    if segments is not None:
        seen = seen & (segments[:, None, :] == segments[:, :, None])
    return seen[:, None]


def _reaches(window: int | None, length: int) -> bool:
    return window is not None and window < length


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Mix `values` by how well each query fits each key: softmax(q k / sqrt(head_dim)) v.

    Without a mask a token sees itself and all before it.

    Shapes:
        queries: (batch, heads, length, head_dim); keys, values: (batch, kv_heads, keys, head_dim), where
        heads is a multiple of kv_heads and consecutive heads share. Returns (batch, heads, length, head_dim).
    """
    # A single query is the last token: it sees every key.
    return mix(queries, keys, values, mask, causal=mask is None and bool(queries.shape[2] > 1))


def mix(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Return softmax(q k / sqrt(head_dim)) v over all keys, those the mask lets through, or those up to each query.

    Shapes:
        as `attend`.
    """
    grouped = queries.shape[1] != keys.shape[1]
    if by_products(queries):
        if grouped:
            keys, values = (x.repeat_interleave(queries.shape[1] // x.shape[1], 1) for x in (keys, values))
        return attention_by_products(queries, keys, values, mask, causal=causal)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


def by_products(queries: Tensor) -> bool:
    """Whether attention is written out as products here: training on a CPU. All else has torch's fused kernel."""
    return queries.device.type == "cpu" and queries.requires_grad
