"""Pictures as they are stored, in front of a network: bytes to numbers around zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A network for pictures that takes them as they are stored.

    Arguments:
        network: takes (batch, channels, height, width) float. mean, spread: of each channel, on the scale 0 to 1.

    Example:
        >>> model = Normalised(nn.Flatten(), [0.5], [0.5])
        >>> model(torch.tensor([[[[0], [255]]]], dtype=torch.uint8))
        tensor([[-1.,  1.]])
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], spread: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("spread", torch.tensor(spread)[:, None, None])

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the network's outputs.

        Arguments:
            pictures: (batch, height, width, channels) uint8, or float of the same range.
        """
        found: Tensor = self.network(self.prepared(pictures))
        return found

    def prepared(self, pictures: Tensor) -> Tensor:
        """Return pictures as the network takes them, (batch, channels, height, width), channels last in memory."""
        x = pictures.permute(0, 3, 1, 2).to(self.mean.dtype)
        return (x * (1.0 / 255.0) - self.mean) / self.spread
