"""A convolutional network for sentences: filters a few words wide, and of each filter the place where it fits best.

Kim, "Convolutional Neural Networks for Sentence Classification", https://arxiv.org/abs/1408.5882
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.best_windows import best_windows
from luban.models.config_checks import check_shares, check_sizes
from luban.models.dropout import dropout
from luban.models.head import Head


@dataclass(frozen=True)
class TextCnnConfig:
    """The network's shape; the defaults are Kim's, but for an embedding that is learned from scratch.

    Arguments:
        outputs: classes, or figures to be told.
        width: dimensions of an embedding.
        windows: how many neighbouring tokens the filters of each kind see.
        filters: filters of each kind.
        dropout: share of what the filters found that is zeroed while training.

    Raises:
        InputError: for a size below 1 or a share out of [0, 1).
    """

    vocab_size: int
    outputs: int
    width: int = 128
    windows: tuple[int, ...] = (3, 4, 5)
    filters: int = 100
    dropout: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        check_sizes(self, "vocab_size", "outputs", "width", "filters")
        check_shares(self, "dropout")
        if not self.windows or min(self.windows) < 1:
            raise InputError("windows must be one or more sizes of at least 1", received=list(self.windows))


class TextCnn(nn.Module):
    """A classifier of convolutions and a maximum over time.

    ```
    tokens                 a  b  c
    windows of 3     . . a  |  . a b  |  a b c  |  b c .  |  c . .      (. is zero)
    ```

    Every window that holds a token counts, those at the edges included, so every token meets every place of a
    filter and texts shorter than a window are read too.

    Initial weights: embeddings uniform in +-0.25, as Kim drew words without a vector; filters normal with standard
    deviation sqrt(2 / inputs) for the ReLU behind them; the output matrix normal with 1 / sqrt(inputs); biases zero.
    Draws come from torch's default generator.

    Example:
        >>> model = TextCnn(TextCnnConfig(vocab_size=10, outputs=2))
        >>> model(torch.tensor([[1, 2]]), torch.tensor([[True, True]])).shape
        torch.Size([1, 2])
    """

    def __init__(self, config: TextCnnConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.filters = nn.ModuleList(
            nn.Conv1d(config.width, config.filters, window, padding=window - 1) for window in config.windows
        )
        self.output = Head(config.filters * len(config.windows), config.outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        nn.init.uniform_(self.tokens.weight, -0.25, 0.25)
        for layer in self.filters:
            assert isinstance(layer, nn.Conv1d) and layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.output.weight, std=self.output.in_features**-0.5)
        nn.init.zeros_(self.output.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits: (batch, length) int64 and (batch, length) bool -> (batch, outputs)."""
        x = self.tokens(ids) * mask[..., None]  # (batch, length, width)
        found = []
        for layer in self.filters:
            assert isinstance(layer, nn.Conv1d) and layer.bias is not None
            found.append(best_windows(x, mask, layer.weight, layer.bias))  # (batch, filters)
        best = torch.cat(found, dim=1)
        out: Tensor = self.output(dropout(best, self.config.dropout, self.training))
        return out
