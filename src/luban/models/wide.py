"""Single words and runs of words as evidence by themselves, beside what a network makes of the whole text.

Each word (and each run of neighbours, of two words or three) has for each class a log-count ratio of naive Bayes: how
much more often it comes in texts of that class than in others. A linear model on these ratios is hard to beat on little
text (Wang and Manning, "Baselines and bigrams", ACL 2012); here it is added to a network's logits and trained with it.

What is notable: a text that the ratios were counted in would be told by its own rare words, and the network beside
would be left nothing to learn. So while training a text is taken out of the counts it is judged by.
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
    """A network for texts with naive Bayes' evidence of words and runs of words added to its logits.

    Initial weights: each ratio counts START; the ratios themselves are set by `learn` from training texts and are no
    parameters.

    Arguments:
        network: takes ids and mask and gives (batch, outputs).
        vocab_size: of the ids. buckets: of runs of neighbours, a run being hashed; 0 looks at none.
        longest: words of a run at most, two or three. The first word with what stands before it counts as a run too.
        share: of words and runs that are left out while training.

    Example:
        >>> class Nothing(nn.Module):
        ...     def forward(self, ids, mask):
        ...         return torch.zeros(len(ids), 2)
        >>> model = Wide(Nothing(), vocab_size=5, outputs=2, buckets=0, share=0.0)
        >>> ids, mask = torch.tensor([[1, 2], [3, 2]]), torch.ones(2, 2, dtype=torch.bool)
        >>> model.learn([(ids, mask, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))])
        >>> model(ids, mask).argmax(1)
        tensor([0, 1])
    """

    ratios: Tensor
    own: Tensor
    texts: Tensor
    totals: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        vocab_size: int,
        outputs: int,
        buckets: int,
        share: float,
        longest: int = 2,
    ) -> None:
        super().__init__()
        self.network, self.vocab_size, self.buckets = network, vocab_size, buckets
        self.longest, self.share = longest, share
        size = vocab_size + buckets
        self.register_buffer("ratios", torch.zeros(size, outputs))
        # Counts follow from the training texts, so they are no part of a checkpoint: (features, outputs) texts of each
        # class that have a feature, (features, 1) texts of any, and the sums over features of own and of others.
        self.register_buffer("own", torch.zeros(size, outputs), persistent=False)
        self.register_buffer("texts", torch.zeros(size, 1), persistent=False)
        self.register_buffer("totals", torch.ones(2, outputs), persistent=False)
        self.evidence = nn.Parameter(torch.full((size, outputs), START))

    @torch.no_grad()
    def learn(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Set counts and ratios from training texts.

        Arguments:
            batches: ids and mask, (batch, length), and targets, (batch, outputs), 1 for the classes of a text.
        """
        self.own.zero_()
        self.texts.zero_()
        for ids, mask, targets in batches:
            features, first = self._features(ids, mask)  # (batch, places)
            flat, found = features.flatten(), first[..., None].to(self.own.dtype)
            self.texts.index_add_(0, flat, found.flatten(0, 1))
            self.own.index_add_(0, flat, (found * targets[:, None]).flatten(0, 1))
        own, others = self.own + SMOOTHING, self.texts - self.own + SMOOTHING
        self.totals.copy_(torch.stack((own.sum(0), others.sum(0))))
        self.ratios.copy_(self._ratios(self.own, self.texts))

    def _ratios(self, own: Tensor, texts: Tensor) -> Tensor:
        """Return log-count ratios from counts of features: (..., outputs), (..., 1) -> (..., outputs)."""
        sums, other_sums = self.totals.log().unbind()
        ratios = ((own + SMOOTHING).log() - sums) - ((texts - own + SMOOTHING).log() - other_sums)
        return ratios * (texts > 0)  # what was never seen is no evidence

    def _features(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of each place, (batch, places), and whether it is the first place of its feature."""
        found = [(ids, mask)]
        if self.buckets:
            begun = F.pad(ids, (1, 0), value=self.vocab_size)  # what stands before the first word
            numbers = bigram_buckets(begun, self.buckets)[
                :, :-1
            ]  # (batch, length): each word with the one before
            found.append((numbers + self.vocab_size, mask))
            if self.longest == 3:
                runs = (numbers[:, :-1] * _MULTIPLIER + ids[:, 1:]) % self.buckets  # and the one before that
                found.append((runs + self.vocab_size, mask[:, 1:]))
        features, firsts = [], []
        for numbers, there in found:
            same = (numbers[:, :, None] == numbers[:, None, :]) & there[:, None, :]  # (batch, length, length)
            before = torch.tril(same, diagonal=-1).any(2)
            features.append(numbers)
            firsts.append(there & ~before)
        return torch.cat(features, 1), torch.cat(firsts, 1)

    def forward(self, ids: Tensor, mask: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits, (batch, outputs).

        Arguments:
            ids, mask: (batch, length).
            targets: (batch, outputs) as `learn` took them, of texts that it has seen: they are judged by the counts of
                all others. None for texts that it has not.
        """
        features, first = self._features(ids, mask)
        if targets is None:
            ratios = F.embedding(features, self.ratios)  # (batch, places, outputs)
        else:
            # A text is taken out where it has a feature; at padding there is none to take out.
            there = first[..., None].to(self.own.dtype)  # (batch, places, 1)
            own = F.embedding(features, self.own) - there * targets[:, None]
            ratios = self._ratios(own, F.embedding(features, self.texts) - there)
        each = ratios * F.embedding(features, self.evidence)
        kept = dropout(first.to(each.dtype), self.share, self.training)
        wide = torch.einsum("bpo,bp->bo", each, kept)
        out: Tensor = self.network(ids, mask) + wide
        return out


_MULTIPLIER = 805_306_457  # a prime; buckets times it stays below 2^63
