"""BERT that tags tokens: it reads their pieces, and the first piece of each token answers for it.

Devlin et al., "BERT", section 5.3: https://arxiv.org/abs/1810.04805
"""

from __future__ import annotations

from torch import Tensor

from luban.models.encoder import Encoder
from luban.models.tagger import token_answer, token_losses


class PieceTagger(Encoder):
    """An encoder with an answer for each token; its parameters are those of `BertForTokenClassification`.

    Arguments:
        config: with `per_token`.

    Example:
        >>> import torch
        >>> from luban.models.encoder import EncoderConfig
        >>> model = PieceTagger(EncoderConfig(10, outputs=3, layers=1, width=8, heads=2, per_token=True))
        >>> pieces, mask = torch.tensor([[1, 5, 6, 2]]), torch.ones(1, 4, dtype=torch.bool)
        >>> model(pieces, mask, torch.tensor([[1, 2]])).shape
        torch.Size([1, 2, 3])
    """

    crf = None
    """No field stands on top: tags are chosen each by itself, as other tools that read the model do."""

    def forward(self, pieces: Tensor, mask: Tensor, firsts: Tensor) -> Tensor:  # type: ignore[override]
        """Return the score of each tag for each token, (batch, tokens, tags).

        Arguments:
            pieces: (batch, length) int64. mask: (batch, length) bool, True where a piece is.
            firsts: (batch, tokens) int64, the place of each token's first piece; 0 behind the last token.
        """
        scores = super().forward(pieces, mask)  # (batch, length, tags)
        return scores.gather(1, firsts[..., None].expand(-1, -1, scores.shape[-1]))

    def loss(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """Return the negative log-likelihood of the tags in nats, summed over the batch."""
        return token_losses(emissions, tags, mask)

    def answer(self, emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen tags, (batch, tokens), and the probability of each."""
        return token_answer(emissions, mask)
