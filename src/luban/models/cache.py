"""Keys and values of the text read so far, so that generating a token costs one token's work.

Rows of unequal length are padded on the left: all rows' texts end at one slot, and their new tokens share the
next. `starts` says where each row begins; what stands before it is never attended to.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GROWTH = 64  # slots added beyond what is asked for, so that growing by one token seldom copies


class Cache:
    """Keys and values of every layer, preallocated and grown by half when full.

    Arguments:
        starts: padding on the left of each row, in slots: (batch,) int64. None when no row is padded.

    Shapes:
        keys, values of a layer: (batch, kv_heads, length, head_dim).
    """

    def __init__(self, starts: Tensor | None = None) -> None:
        self.starts = starts
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def positions(self, length: int, device: torch.device) -> Tensor:
        """Positions of the next `length` tokens: (length,), or (batch, length) where rows are padded."""
        slots = torch.arange(self.length, self.length + length, device=device)
        return slots if self.starts is None else (slots - self.starts[:, None]).clamp(min=0)

    def mask(self, length: int, window: int | None, device: torch.device) -> Tensor:
        """Which slots the next `length` tokens see, True to attend.

        Shapes:
            returns (batch or 1, 1, length, self.length + length).
        """
        queries = torch.arange(self.length, self.length + length, device=device)[:, None]
        keys = torch.arange(self.length + length, device=device)[None, :]
        seen = (keys <= queries)[None]
        if window is not None:
            seen = seen & (keys > queries - window)
        if self.starts is not None:
            # Padding sees itself, so that no row of the softmax is empty.
            seen = seen & ((keys >= self.starts[:, None, None]) | (keys == queries))
        return seen[:, None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's keys and values, each (batch, kv_heads, new, head_dim), and return all of them.

        Every layer is extended once with the same number of tokens, then `advance` counts them.
        """
        end = self.length + keys.shape[2]
        if layer not in self._layers or self._layers[layer][0].shape[2] < end:
            self._layers[layer] = self._grown(layer, keys, end + end // 2 + _GROWTH)
        stored_keys, stored_values = self._layers[layer]
        stored_keys[:, :, self.length : end] = keys
        stored_values[:, :, self.length : end] = values
        return stored_keys[:, :, :end], stored_values[:, :, :end]

    def _grown(self, layer: int, like: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        batch, heads, _, head_dim = like.shape
        grown = like.new_empty(2, batch, heads, capacity, head_dim)
        if layer in self._layers:
            for new, old in zip(grown, self._layers[layer], strict=True):
                new[:, :, : self.length] = old[:, :, : self.length]
        return grown[0], grown[1]

    def advance(self, length: int) -> None:
        """Count `length` tokens as read, after every layer was extended by them."""
        self.length += length

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, (rows,) int64, and drop the others."""
        self.starts = None if self.starts is None else self.starts[rows]
        self._layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._layers.items()}
