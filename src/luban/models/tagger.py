"""A network that tags tokens: words and their characters in, a score of each tag out; on top a field that chooses tags
together.

The characters tell of words that training never saw (Ma and Hovy 2016, https://arxiv.org/abs/1603.01354); where tokens
are characters themselves, pairs of neighbours take their place (as the bigrams of Zhang and Yang 2018,
https://arxiv.org/abs/1805.02023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.models.bag import bigram_buckets
from luban.models.config_checks import check_choice, check_shares, check_sizes
from luban.models.crf import Crf
from luban.models.dropout import dropout
from luban.models.head import Head
from luban.models.modern_encoder import ModernEncoder, ModernEncoderConfig
from luban.models.recurrent import RecurrentLayers

WINDOW = 3
"""Characters that a filter sees."""
UNKNOWN = 1
"""Row of the words' embedding that stands for a word that training did not have."""


@dataclass(frozen=True)
class TaggerConfig:
    """The network's shape.

    Arguments:
        words, letters: rows of the two embeddings; row 0 is padding. tags: how many there are.
        network: `lstm`, `gru` or `transformer`. bidirectional: whether the first two read from both ends.
        crf: whether tags are chosen together.
        width: of a word's embedding, and of each direction's state. letter_filters: 0 looks at no characters.
        pairs: rows of the hashed embedding of neighbouring tokens; 0 for none.
        once: words that came once in training, the last rows of their embedding. unknown: share of them that is read as
            unknown while training (Lample et al., https://arxiv.org/abs/1603.01360).

    Raises:
        InputError: for a size below 1, an unknown network, a share out of [0, 1).
    """

    words: int
    letters: int
    tags: int
    network: str = "lstm"
    crf: bool = True
    width: int = 128
    letter_filters: int = 32
    pairs: int = 0
    once: int = 0
    unknown: float = 0.0
    layers: int = 1
    bidirectional: bool = True
    heads: int = 4
    max_length: int = 512
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "words", "letters", "tags", "width", "layers", "heads", "max_length")
        check_choice(self, "network", ("lstm", "gru", "transformer"))
        check_shares(self, "dropout")


def token_losses(emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
    """Return the negative log-likelihood, in nats, of tags that are each chosen by itself, summed over the batch."""
    losses = F.cross_entropy(emissions.float().flatten(0, 1), tags.flatten(), reduction="none")
    return (losses * mask.flatten()).sum()


def token_answer(emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest tag of each token by itself, (batch, length), and its probability."""
    best, tags = emissions.float().softmax(-1).max(-1)
    return tags * mask, best


class Tagger(nn.Module):
    """Scores of tags for each token.

    Initial weights: embeddings normal with standard deviation 1 / sqrt(width), so that a token's vector has length one;
    filters normal with sqrt(2 / inputs), the output matrix with 1 / sqrt(inputs), biases zero; the layers and the field
    as their own classes say.

    Arguments:
        forbidden, forbidden_first, forbidden_last: which tags may not follow, begin and end; see `Crf`.

    Example:
        >>> model = Tagger(TaggerConfig(words=9, letters=5, tags=3, width=8))
        >>> words, letters = torch.tensor([[2, 3]]), torch.ones(1, 2, 4, dtype=torch.int64)
        >>> model(words, letters, torch.tensor([[True, True]])).shape
        torch.Size([1, 2, 3])
    """

    def __init__(
        self,
        config: TaggerConfig,
        forbidden: Tensor | None = None,
        forbidden_first: Tensor | None = None,
        forbidden_last: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.words = None if config.network == "transformer" else nn.Embedding(config.words, width)
        self.pairs = nn.Embedding(config.pairs, width) if config.pairs else None
        self.letters = self.filters = None
        if config.letter_filters:
            self.letters = nn.Embedding(config.letters, config.letter_filters)
            self.filters = nn.Conv1d(
                config.letter_filters, config.letter_filters, WINDOW, padding=WINDOW // 2
            )
        inputs = width * (3 if config.pairs else 1) + config.letter_filters
        self.encoder: RecurrentLayers | ModernEncoder
        if config.network == "transformer":
            # It embeds words itself; what else is known of a token joins behind it.
            self.encoder = ModernEncoder(
                ModernEncoderConfig(
                    config.words,
                    config.tags,
                    layers=config.layers,
                    width=width,
                    heads=config.heads,
                    max_length=config.max_length,
                    per_token=True,
                    dropout=config.dropout,
                )
            )
            del self.encoder.output  # the tagger's own reads more than the encoder's states
            hidden = inputs
        else:
            self.encoder = RecurrentLayers(
                config.network,
                inputs,
                width,
                config.layers,
                bidirectional=config.bidirectional,
                dropout=config.dropout,
            )
            hidden = self.encoder.states_width
        self.output = Head(hidden, config.tags)
        self.crf = None
        if config.crf:
            self.crf = Crf(
                config.tags,
                forbidden=forbidden,
                forbidden_first=forbidden_first,
                forbidden_last=forbidden_last,
            )
        for table in (self.words, self.pairs, self.letters):
            if table is not None:
                nn.init.normal_(table.weight, std=1.0 / math.sqrt(table.embedding_dim))
        if self.filters is not None and self.filters.bias is not None:
            nn.init.kaiming_normal_(self.filters.weight, nonlinearity="relu")
            nn.init.zeros_(self.filters.bias)
        nn.init.normal_(self.output.weight, std=1.0 / math.sqrt(hidden))
        nn.init.zeros_(self.output.bias)

    def forward(self, words: Tensor, letters: Tensor, mask: Tensor) -> Tensor:
        """Return the score of each tag for each token by itself, (batch, length, tags).

        Arguments:
            words: (batch, length) int64. letters: (batch, length, characters) int64, 0 behind a word's last.
            mask: (batch, length) bool, True where a token is.
        """
        share, parts, read = self.config.dropout, [], self._some_unknown(words)
        if self.words is None:
            assert isinstance(self.encoder, ModernEncoder)
            parts.append(self.encoder.hidden(read, mask))
        else:
            parts.append(self.words(read))
        if self.pairs is not None:
            # Each token with the one before it and with the one behind; the first and the last with padding.
            pairs = self.pairs(bigram_buckets(F.pad(words, (1, 1)), self.config.pairs)[:, :-1])
            parts += [pairs[:, :-1], pairs[:, 1:]]
        if self.letters is not None:
            parts.append(self._spelling(letters))
        x = dropout(torch.cat(parts, dim=-1), share, self.training)  # (batch, length, inputs)
        if isinstance(self.encoder, RecurrentLayers):
            x = dropout(self.encoder(x, mask), share, self.training)  # (batch, length, hidden)
        found: Tensor = self.output(x)
        return found

    def _some_unknown(self, words: Tensor) -> Tensor:
        """Return the words with some of those that came once in training as unknown; only while training."""
        if not self.training or not self.config.unknown:
            return words
        once = words >= self.config.words - self.config.once
        drawn = torch.rand(words.shape, device=words.device) < self.config.unknown
        return words.masked_fill(once & drawn, UNKNOWN)

    def _spelling(self, letters: Tensor) -> Tensor:
        """Return what the filters find in each word: (batch, length, characters) -> (batch, length, filters)."""
        assert self.letters is not None and self.filters is not None
        there = (letters != 0)[..., None]
        x = (self.letters(letters) * there).flatten(0, 1).transpose(1, 2)  # (words, filters, characters)
        best = F.relu(self.filters(x)).amax(2)  # (words, filters)
        return best.view(*letters.shape[:2], -1)

    def loss(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """Return the negative log-likelihood of the tags in nats, summed over the batch."""
        if self.crf is not None:
            found: Tensor = self.crf(emissions, tags, mask).sum()
            return found
        return token_losses(emissions, tags, mask)

    def answer(self, emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen tags, (batch, length), and the probability of each by itself."""
        if self.crf is None:
            return token_answer(emissions, mask)
        tags, _ = self.crf.decode(emissions, mask)
        chances = self.crf.marginals(emissions, mask)
        return tags, chances.gather(2, tags[..., None]).squeeze(2)
