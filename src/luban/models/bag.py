"""A bag of words and word pairs: the mean of their embeddings, then a linear layer. Small, fast and hard to beat on
topics and opinions.

Joulin et al., "Bag of Tricks for Efficient Text Classification" (fastText), https://arxiv.org/abs/1607.01759
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.config_checks import check_shares, check_sizes
from luban.models.dropout import dropout
from luban.models.head import Head
from luban.models.padding import masked_mean

_MULTIPLIER = 116_049_371  # fastText's, for hashing runs of words


@dataclass(frozen=True)
class BagConfig:
    """The bag's shape.

    Arguments:
        outputs: classes, or figures to be told.
        width: dimensions of an embedding.
        bigram_buckets: embeddings shared by all pairs of neighbouring tokens; 0 means that pairs are not looked at.
        dropout: share of the mean that is zeroed while training.

    Raises:
        InputError: for a size below 1 or a share out of [0, 1).
    """

    vocab_size: int
    outputs: int
    width: int = 64
    bigram_buckets: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "outputs", "width")
        check_shares(self, "dropout")
        if self.bigram_buckets < 0:
            raise InputError("bigram_buckets must be at least 0", received=self.bigram_buckets)


def bigram_buckets(ids: Tensor, buckets: int) -> Tensor:
    """Return the bucket of each token with its right neighbour, the last one's being the first.

    The bucket of (a, b) is (116049371 a + b) modulo `buckets`. fastText hashes the words' spelling first; ids are
    hashes without collisions already. Below 2^31 tokens nothing overflows.

    Shapes:
        (batch, length) int64, the same.

    Example:
        >>> bigram_buckets(torch.tensor([[0, 5, 0]]), 1000)
        tensor([[  5, 855,   0]])
    """
    return (ids * _MULTIPLIER + ids.roll(-1, 1)) % buckets


class Bag(nn.Module):
    """A classifier that reads a text as a bag of tokens and, where asked for, of pairs of neighbours.

    Tokens and pairs have the same weight in the mean, as in fastText.

    Initial weights, as fastText's: embeddings uniform in +-1 / width; the output matrix and its bias zero. Draws
    come from torch's default generator.

    Example:
        >>> model = Bag(BagConfig(vocab_size=10, outputs=2, bigram_buckets=50))
        >>> model(torch.tensor([[1, 2, 3]]), torch.tensor([[True, True, False]])).shape
        torch.Size([1, 2])
    """

    def __init__(self, config: BagConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.bigrams = nn.Embedding(config.bigram_buckets, config.width) if config.bigram_buckets else None
        self.output = Head(config.width, config.outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        for table in (self.tokens, self.bigrams):
            if table is not None:
                nn.init.uniform_(table.weight, -1.0 / self.config.width, 1.0 / self.config.width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits: (batch, length) int64 and (batch, length) bool, any mask -> (batch, outputs)."""
        x = self.tokens(ids)  # (batch, length, width)
        if self.bigrams is not None:
            pairs = self.bigrams(bigram_buckets(ids, self.config.bigram_buckets))  # (batch, length, width)
            x = torch.cat((x, pairs), dim=1)  # (batch, 2 length, width)
            # The last place has no neighbour: what rolled round to it is the row's beginning.
            places = torch.arange(ids.shape[1], device=ids.device)
            mask = torch.cat((mask, mask & mask.roll(-1, 1) & (places < ids.shape[1] - 1)), dim=1)
        mean = masked_mean(x, mask)  # (batch, width)
        out: Tensor = self.output(dropout(mean, self.config.dropout, self.training))
        return out
