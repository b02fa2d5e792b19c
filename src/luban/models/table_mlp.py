"""A plain perceptron for tables, and without hidden layers a linear model: what everything else is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.mlp import Mlp, MlpConfig
from luban.models.one_hot import OneHot


@dataclass(frozen=True)
class TableMlpConfig:
    """The network's shape, and the scale of its columns of numbers.

    Arguments:
        outputs: classes, or 1 for a number.
        means, spreads: of each column of numbers. categories: how many there are in each column of categories.
        hidden: widths of the hidden layers; empty for a linear model. activation, dropout: see `MlpConfig`.
    """

    outputs: int
    means: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()
    categories: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("means", "spreads", "categories", "hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.means and not self.categories:
            raise InputError("a table needs a column", fix="give means or categories")
        if len(self.means) != len(self.spreads) or min(self.spreads, default=1.0) <= 0.0:
            raise InputError("every column of numbers has a spread above 0", received=list(self.spreads))


class TableMlp(nn.Module):
    """Numbers scaled to mean zero and variance one, a flag for each that is missing, categories one-hot; then an `Mlp`.

    The same call and answer as `luban.models.tabular.TabM`, with one member.

    Example:
        >>> model = TableMlp(TableMlpConfig(outputs=2, means=(1.0,), spreads=(2.0,), categories=(3,), hidden=(4,)))
        >>> model(torch.tensor([[5.0], [float("nan")]]), torch.tensor([[2], [-1]])).shape
        torch.Size([2, 1, 2])
    """

    means: Tensor
    spreads: Tensor

    def __init__(self, config: TableMlpConfig) -> None:
        super().__init__()
        self.config = config
        # Parts of the configuration, so no checkpoint holds them.
        self.register_buffer("means", torch.tensor(config.means), persistent=False)
        self.register_buffer("spreads", torch.tensor(config.spreads), persistent=False)
        self.one_hot = OneHot(config.categories)
        inputs = 2 * len(config.means) + self.one_hot.width
        self.mlp = Mlp(MlpConfig(inputs, config.outputs, config.hidden, config.activation, config.dropout))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Return (batch, 1, outputs).

        Arguments:
            numbers: (batch, columns) float; NaN is missing. categories: (batch, columns) int64; -1 is unknown.
        """
        parts = []
        if self.config.means:
            missing = numbers.isnan()
            scaled = torch.where(missing, 0.0, (numbers - self.means) / self.spreads)
            parts += [scaled, missing.to(scaled.dtype)]
        if self.config.categories:
            parts.append(self.one_hot(categories).to(self.spreads.dtype))
        found: Tensor = self.mlp(torch.cat(parts, dim=1))[:, None]
        return found
