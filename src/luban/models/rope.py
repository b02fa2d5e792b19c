"""Rotary position embedding (RoPE): a query and a key meet under an angle that only their distance decides.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", https://arxiv.org/abs/2104.09864
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luban.errors import InputError

_FIRST_ROWS = 2048


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's stretching of low frequencies, so that texts longer than trained on are read.

    Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched by `factor`, those
    below `original_max_position_embeddings / high_freq_factor` are kept, and those between are blended.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def frequencies(head_dim: int, theta: float, scaling: Llama3Scaling | None = None) -> Tensor:
    """Return the angle per position of each pair of dimensions, in radians: (head_dim / 2,) float32.

    Example:
        >>> frequencies(4, 10_000.0)
        tensor([1.0000, 0.0100])
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    angles = 1.0 / (theta**exponent)
    if scaling is None:
        return angles
    turns = (
        scaling.original_max_position_embeddings * angles / (2 * math.pi)
    )  # over the length first trained on
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return angles * (kept + (1.0 - kept) / scaling.factor)


class RotaryTables(nn.Module):
    """Cosines and sines of every position's angles, computed once and grown when longer texts come.

    The two halves of a row are equal: dimension i turns with dimension i + head_dim / 2, as in Hugging Face.
    The tables are no part of a checkpoint.

    Arguments:
        max_length: positions go from 0 to max_length - 1.
    """

    def __init__(
        self, head_dim: int, max_length: int, theta: float, scaling: Llama3Scaling | None = None
    ) -> None:
        super().__init__()
        self.head_dim, self.max_length, self.theta, self.scaling = head_dim, max_length, theta, scaling
        self.cosines: Tensor
        self.sines: Tensor
        self.reset()

    def reset(self) -> None:
        """Compute the first tables anew; needed after the model was built on the "meta" device."""
        # A model that may read 131,072 tokens seldom does, and the whole tables would take 128 MB.
        self._fill(min(self.max_length, _FIRST_ROWS), None)

    def _fill(self, rows: int, device: torch.device | None) -> None:
        positions = torch.arange(rows, dtype=torch.float32, device=device)
        turning = frequencies(self.head_dim, self.theta, self.scaling).to(positions.device)
        angles = torch.outer(positions, turning)  # (rows, head_dim / 2)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, length: int, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines for `positions`, or for the first `length`.

        Shapes:
            positions: (length,) or (batch, length) int64. Returns twice (length, 1, head_dim) or
            (batch, length, 1, head_dim).

        Raises:
            InputError: for a position from `max_length` on.
        """
        needed = length if positions is None else last_position(positions) + 1
        if needed > self.max_length:
            fix = f"give at most {self.max_length} tokens, the model's max_length"
            raise InputError("the text is longer than the model reads", received=needed, fix=fix)
        if needed > self.cosines.shape[0]:
            self._fill(min(self.max_length, 2 * needed), self.cosines.device)
        if positions is None:
            return self.cosines[:length, None], self.sines[:length, None]
        return self.cosines[positions][..., None, :], self.sines[positions][..., None, :]


def last_position(positions: Tensor) -> int:
    """Return the largest of `positions`; 0 while compiling, where reading a value would cut the graph."""
    return 0 if torch.compiler.is_compiling() else int(positions.max())


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair of dimensions (i, i + head_dim / 2) of `x` by its position's angle.

    Shapes:
        x: (batch, length, heads, head_dim); cosines, sines: (length, 1, head_dim), or with the batch before.
        Returns the shape and dtype of `x`.
    """
    first, second = x.chunk(2, dim=-1)
    return (x * cosines + torch.cat((-second, first), dim=-1) * sines).to(x.dtype)
