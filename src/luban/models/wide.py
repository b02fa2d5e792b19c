"""Single words and pairs of words as evidence by themselves, beside what a network makes of the whole text.

Each word (and each pair of neighbours) has for each class a log-count ratio of naive Bayes: how much more often it
comes in texts of that class than in others. A linear model on these ratios is hard to beat on little text (Wang and
Manning, "Baselines and bigrams", ACL 2012); here it is added to a network's logits and trained with it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.models.bag import bigram_buckets
from luban.models.dropout import dropout

SMOOTHING = 1.0
"""What is added to each count."""
START = 0.15
"""Weight of each ratio at the start: naive Bayes with its evidence, which is not independent, taken down."""


class Wide(nn.Module):
    """A network for texts with naive Bayes' evidence of words and pairs added to its logits.

    Initial weights: each ratio counts START; the ratios themselves are set by `learn` from training texts and are no
    parameters.

    Arguments:
        network: takes ids and mask and gives (batch, outputs).
        vocab_size: of the ids. pairs: buckets of pairs of neighbours; 0 looks at none.
        share: of words and pairs that are left out while training.

    Example:
        >>> class Nothing(nn.Module):
        ...     def forward(self, ids, mask):
        ...         return torch.zeros(len(ids), 2)
        >>> model = Wide(Nothing(), vocab_size=5, outputs=2, pairs=0, share=0.0)
        >>> ids, mask = torch.tensor([[1, 2], [3, 2]]), torch.ones(2, 2, dtype=torch.bool)
        >>> model.learn([(ids, mask, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))])
        >>> model(ids, mask).argmax(1)
        tensor([0, 1])
    """

    ratios: Tensor

    def __init__(
        self, network: nn.Module, *, vocab_size: int, outputs: int, pairs: int, share: float
    ) -> None:
        super().__init__()
        self.network, self.vocab_size, self.pairs, self.share = network, vocab_size, pairs, share
        self.register_buffer("ratios", torch.zeros(vocab_size + pairs, outputs))
        self.evidence = nn.Parameter(torch.full((vocab_size + pairs, outputs), START))

    @torch.no_grad()
    def learn(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Set the ratios from training texts.

        Arguments:
            batches: ids and mask, (batch, length), and targets, (batch, outputs), 1 for the classes of a text.
        """
        own = torch.full_like(
            self.ratios, SMOOTHING
        )  # (features, outputs): texts of the class that have the feature
        others = torch.full_like(self.ratios, SMOOTHING)
        for ids, mask, targets in batches:
            features, first = self._features(ids, mask)  # (batch, places)
            flat = features.flatten()
            for table, wanted in ((own, targets), (others, 1.0 - targets)):
                values = first[..., None] * wanted[:, None]  # (batch, places, outputs)
                table.index_add_(0, flat, values.flatten(0, 1).to(table.dtype))
        ratios = (own / own.sum(0)).log() - (others / others.sum(0)).log()
        # What was never seen is no evidence.
        self.ratios.copy_(ratios * ((own + others).sum(1, keepdim=True) > 2 * own.shape[1] * SMOOTHING))

    def _features(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of each place, (batch, places), and whether it is the first place of its feature."""
        found = [(ids, mask)]
        if self.pairs:
            both = mask & F.pad(mask, (0, 1))[:, 1:]  # a pair needs two tokens
            found.append((bigram_buckets(ids, self.pairs) + self.vocab_size, both))
        features, firsts = [], []
        for numbers, there in found:
            same = (numbers[:, :, None] == numbers[:, None, :]) & there[:, None, :]  # (batch, length, length)
            before = torch.tril(same, diagonal=-1).any(2)
            features.append(numbers)
            firsts.append(there & ~before)
        return torch.cat(features, 1), torch.cat(firsts, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits, (batch, outputs)."""
        features, first = self._features(ids, mask)
        each = F.embedding(features, self.ratios) * F.embedding(
            features, self.evidence
        )  # (batch, places, outputs)
        kept = dropout(first.to(each.dtype), self.share, self.training)
        wide = torch.einsum("bpo,bp->bo", each, kept)
        out: Tensor = self.network(ids, mask) + wide
        return out
