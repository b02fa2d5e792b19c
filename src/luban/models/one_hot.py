"""One-hot vectors of several columns of categories, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class OneHot(nn.Module):
    """Turns categories into vectors with a one at their own place and zeros elsewhere.

    A number that no category has, -1 above all, is an unknown category and gives zeros.

    Arguments:
        sizes: how many categories each column has.

    Example:
        >>> OneHot([3, 2])(torch.tensor([[2, 0], [-1, 1]])).tolist()
        [[0.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]
    """

    sizes: Tensor
    first: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        counts = torch.tensor(sizes, dtype=torch.int64)
        # Parts of the configuration, so no checkpoint holds them.
        self.register_buffer("sizes", counts, persistent=False)
        self.register_buffer("first", counts.cumsum(0) - counts, persistent=False)
        self.width = sum(sizes)

    def forward(self, categories: Tensor) -> Tensor:
        """Return the vectors: (batch, columns) int64 -> (batch, width) float32."""
        known = (categories >= 0) & (categories < self.sizes)
        places = torch.where(known, categories + self.first, self.width)  # those unknown: behind the last
        zeros = torch.zeros(len(categories), self.width + 1, device=categories.device)
        return zeros.scatter_(1, places, 1.0)[:, :-1]
