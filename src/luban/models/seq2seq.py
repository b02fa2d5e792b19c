"""The Transformer that translates: an encoder that reads the source, a decoder that writes the target.

What is notable:
- three masks: the source's padding, in the encoder and from the decoder; and the target's order, in which a token sees
  itself and what stands before it. Padding behind a target is seen by nothing before it and needs no mask
- the norm before each block or behind it; before, one more stands at the end of each stack
- embeddings scaled by sqrt(width), with sinusoids or learned positions added
- while writing, keys and values of the target so far and of the whole source are kept

Vaswani et al., "Attention Is All You Need", https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.attention import attend, attention_mask
from luban.models.attention_weights import AttentionWeights
from luban.models.cache import Cache
from luban.models.config_checks import check_choice, check_heads, check_shares, check_sizes
from luban.models.dropout import dropout
from luban.models.head import Head
from luban.models.padding import keys_mask


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The Transformer's shape.

    Arguments:
        layers: of the encoder. decoder_layers: of the decoder; 0 means as many.
        mlp_width: width inside the MLP; 0 means 4 times `width`.
        max_length: the longest source or target, in tokens.
        norm: pre or post, before each block or behind it.
        positions: sinusoidal or learned.
        shared: source and target have one embedding, and so one vocabulary.
        tied: the output matrix is the target's embedding.
        dropout: share of the embeddings and of what each block adds that is zeroed while training.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    source_vocab_size: int
    target_vocab_size: int
    layers: int = 3
    decoder_layers: int = 0
    width: int = 256
    heads: int = 4
    mlp_width: int = 0
    max_length: int = 512
    norm: str = "pre"
    positions: str = "sinusoidal"
    shared: bool = False
    tied: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "source_vocab_size", "target_vocab_size", "layers", "width", "heads", "max_length")
        check_choice(self, "norm", ("pre", "post"))
        check_choice(self, "positions", ("sinusoidal", "learned"))
        check_shares(self, "dropout")
        check_heads(self.width, self.heads)
        if self.width % 2:
            raise InputError("width must be even: sinusoids come in pairs", received=self.width)
        if self.shared and self.source_vocab_size != self.target_vocab_size:
            sizes = (self.source_vocab_size, self.target_vocab_size)
            raise InputError("shared embeddings need one vocabulary for both languages", received=sizes)
        object.__setattr__(self, "decoder_layers", self.decoder_layers or self.layers)
        object.__setattr__(self, "mlp_width", self.mlp_width or 4 * self.width)


def sinusoids(length: int, width: int) -> Tensor:
    """Return a vector for each position, sines at even dimensions and cosines at odd: (length, width).

    Example:
        >>> sinusoids(2, 2)
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403]])
    """
    rates = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates  # (length, width / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()


class DecoderCache:
    """What the decoder remembers: keys and values of the target so far, and of the source.

    Attributes:
        own: of the target, grown by each call. source: by layer, computed at the first call.
    """

    def __init__(self) -> None:
        self.own = Cache()
        self.source: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows, (rows,) int64, in this order; one may come twice."""
        self.own.keep(rows)
        self.source = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.source.items()}


class Attention(nn.Module):
    """Attention from one text to another, or to itself."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of a text, each (batch, heads, length, head_dim)."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Mix values for each token of `x`: (batch, length, width) -> (batch, length, width).

        Without a mask, a token sees itself and all before it.
        """
        mixed = attend(self._split(self.query(x)), keys, values, mask)  # (batch, heads, length, head_dim)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class Mlp(nn.Module):
    """Two matrices with a ReLU between."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself: (batch, length, width) -> (batch, length, width)."""
        out: Tensor = self.down(F.relu(self.up(x)))
        return out


class Block(nn.Module):
    """What surrounds a change of the residual stream: its norm, before or behind, and dropout."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.first, self.dropout = config.norm == "pre", config.dropout

    def forward(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Add `change` to `x`: (batch, length, width) -> (batch, length, width)."""
        added = dropout(change(self.norm(x) if self.first else x), self.dropout, self.training)
        out: Tensor = x + added if self.first else self.norm(x + added)
        return out


class EncoderLayer(nn.Module):
    """Every source token sees every other, then the MLP."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(config), Mlp(config)
        self.around_attention, self.around_mlp = Block(config), Block(config)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """One layer: (batch, source, width) -> (batch, source, width)."""
        x = self.around_attention(
            x, lambda read: self.attention(read, *self.attention.keys_values(read), seen)
        )
        out: Tensor = self.around_mlp(x, self.mlp)
        return out


class DecoderLayer(nn.Module):
    """Every target token sees those before it, then the source, then the MLP."""

    def __init__(self, config: Seq2SeqConfig, number: int) -> None:
        super().__init__()
        self.number = number
        self.attention, self.source_attention, self.mlp = Attention(config), Attention(config), Mlp(config)
        self.around_attention, self.around_source = Block(config), Block(config)
        self.around_mlp = Block(config)

    def forward(
        self, x: Tensor, memory: Tensor, order: Tensor | None, seen: Tensor, cache: DecoderCache | None
    ) -> Tensor:
        """One layer: (batch, target, width) -> (batch, target, width)."""

        def mix(read: Tensor) -> Tensor:
            keys, values = self.attention.keys_values(read)
            if cache is not None:
                keys, values = cache.own.extend(self.number, keys, values)
            mixed: Tensor = self.attention(read, keys, values, order)
            return mixed

        x = self.around_attention(x, mix)
        if cache is not None and self.number in cache.source:
            keys, values = cache.source[self.number]
        else:
            keys, values = self.source_attention.keys_values(memory)
            if cache is not None:
                cache.source[self.number] = keys, values
        x = self.around_source(x, lambda read: self.source_attention(read, keys, values, seen))
        out: Tensor = self.around_mlp(x, self.mlp)
        return out


class Embedding(nn.Module):
    """A token is what it is, times sqrt(width), and where it stands."""

    def __init__(self, config: Seq2SeqConfig, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.max_length, self.dropout = config.max_length, config.dropout
        self.places: Tensor
        if config.positions == "learned":
            self.places = nn.Parameter(torch.empty(config.max_length, config.width))
        else:
            self.register_buffer("places", sinusoids(config.max_length, config.width), persistent=False)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embed tokens of which the first stands at `start`: (batch, length) -> (batch, length, width)."""
        end = start + ids.shape[1]
        if end > self.max_length:
            fix = f"give at most {self.max_length} tokens, the model's max_length"
            raise InputError("the text is longer than the model reads", received=int(end), fix=fix)
        x = self.tokens(ids) * math.sqrt(self.tokens.embedding_dim) + self.places[start:end]
        return dropout(x, self.dropout, self.training)


@dataclass
class Writing:
    """Translations under way, one a row: what `Seq2Seq.step` goes on from, and changes."""

    memory: Tensor
    source_mask: Tensor
    cache: DecoderCache = field(default_factory=DecoderCache)


class Seq2Seq(nn.Module):
    """A Transformer from one sequence to another. It can be searched: see `luban.models.beam`.

    Initial weights: matrices Xavier uniform, embeddings and learned positions normal with standard deviation
    1 / sqrt(width), norms one, biases zero. Draws come from torch's default generator.

    Example:
        >>> model = Seq2Seq(Seq2SeqConfig(10, 12, layers=1, width=8, heads=2))
        >>> source, target = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2]])
        >>> model(source, torch.tensor([[True, True, False]]), target).shape
        torch.Size([1, 2, 12])
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.source = Embedding(config, config.source_vocab_size)
        self.target = Embedding(config, config.target_vocab_size)
        if config.shared:
            self.target.tokens = self.source.tokens
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.decoder = nn.ModuleList(DecoderLayer(config, number) for number in range(config.decoder_layers))
        last = nn.LayerNorm if config.norm == "pre" else nn.Identity
        self.encoder_norm, self.decoder_norm = last(config.width), last(config.width)
        self.output = None if config.tied else Head(config.width, config.target_vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        for name, parameter in self.named_parameters():
            if name.endswith(("tokens.weight", "places")):
                nn.init.normal_(parameter, std=1.0 / math.sqrt(self.config.width))
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)

    @property
    def output_weight(self) -> Tensor:
        """The matrix from hidden states to logits: (target_vocab_size, width)."""
        return self.target.tokens.weight if self.output is None else self.output.weight

    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Tensor:
        """Read the source: twice (batch, source) -> (batch, source, width).

        Arguments:
            source_mask: bool, True where a token is; any mask.

        Raises:
            InputError: for a source longer than `max_length`.
        """
        x, seen = self.source(source_ids), keys_mask(source_mask)
        for layer in self.encoder:
            x = layer(x, seen)
        out: Tensor = self.encoder_norm(x)
        return out

    def decode(
        self, target_ids: Tensor, memory: Tensor, source_mask: Tensor, cache: DecoderCache | None = None
    ) -> Tensor:
        """Return the decoder's states, which `output_weight` turns into logits: (batch, target, width).

        Arguments:
            target_ids: (batch, target), the tokens written so far, from the start token on; with a cache those it
                has not seen yet.
            memory: what `encode` returned. source_mask: what it was given.
            cache: takes in these tokens, and at its first call the source.

        Raises:
            InputError: for a target longer than `max_length`.
        """
        own = None if cache is None else cache.own
        x = self.target(target_ids, 0 if own is None else own.length)  # (batch, target, width)
        order, seen = attention_mask(target_ids, own), keys_mask(source_mask)
        for layer in self.decoder:
            x = layer(x, memory, order, seen, cache)
        if own is not None:
            own.advance(target_ids.shape[1])
        out: Tensor = self.decoder_norm(x)
        return out

    def forward(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor) -> Tensor:
        """Return the logits of the token that follows each target token: (batch, target, target_vocab_size)."""
        memory = self.encode(source_ids, source_mask)
        return F.linear(self.decode(target_ids, memory, source_mask), self.output_weight)

    @torch.no_grad()
    def attended(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor) -> Tensor:
        """Return how much the last decoder layer looked at each source token for the token behind each target token.

        Shapes:
            target_ids: (batch, target). Returns (batch, target, source), the mean over heads; rows add up to 1.
        """
        memory = self.encode(source_ids, source_mask)
        with AttentionWeights() as seen:
            self.decode(target_ids, memory, source_mask)
        last: Tensor = seen.found[-1]
        return last.mean(1)  # a decoder layer looks at its own text first, then at the source

    def start(self, source_ids: Tensor, source_mask: Tensor) -> Writing:
        """Read the sources whose translations are to be written."""
        return Writing(self.encode(source_ids, source_mask), source_mask)

    def step(self, state: Writing, last_ids: Tensor) -> tuple[Tensor, Writing]:
        """Return log-probabilities of each row's next token, (rows, target_vocab_size), after `last_ids`, (rows,)."""
        hidden = self.decode(last_ids[:, None], state.memory, state.source_mask, state.cache)
        return F.linear(hidden[:, 0], self.output_weight).log_softmax(-1), state

    def reorder(self, state: Writing, rows: Tensor) -> Writing:
        """Continue with these rows, (rows,) int64, in this order; one may come twice."""
        state.cache.keep(rows)
        return Writing(state.memory[rows], state.source_mask[rows], state.cache)
