"""Recurrent networks that translate: an encoder, a decoder, and attention between them.

The attention is Luong's "general" form, read after the decoder's cell: score(h, m) = h W m, context = the mean of
memory weighted by softmax(score), and the answer comes from tanh(V [context; h]). What was attended to is not fed
back into the cell, so that in training the decoder reads a whole target in one kernel call.

Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine Translation",
https://arxiv.org/abs/1508.04025; after Bahdanau, Cho and Bengio, https://arxiv.org/abs/1409.0473
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.config_checks import check_choice, check_shares, check_sizes
from luban.models.dropout import dropout
from luban.models.head import Head
from luban.models.recurrent import RecurrentLayers
from luban.models.recurrent_cells import CELLS, RecurrentLayer, State


@dataclass(frozen=True)
class RecurrentSeq2SeqConfig:
    """The networks' shape.

    Arguments:
        embedding_width: dimensions of an embedding.
        width: dimensions of a state, of each direction of the encoder and of the decoder.
        layers: of the encoder, and of the decoder.
        cell: rnn, lstm or gru.
        tied: the output matrix is the target's embedding; `embedding_width` must be `width`.
        dropout: share of the embeddings, of what goes from layer to layer, and of what the output matrix reads, that
            is zeroed while training.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    source_vocab_size: int
    target_vocab_size: int
    embedding_width: int = 256
    width: int = 256
    layers: int = 1
    cell: str = "lstm"
    tied: bool = False
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "source_vocab_size", "target_vocab_size", "embedding_width", "width", "layers")
        check_choice(self, "cell", tuple(CELLS))
        check_shares(self, "dropout")
        if self.tied and self.embedding_width != self.width:
            fix = "set embedding_width to width, or tied to false"
            raise InputError("a tied output needs states as wide as embeddings", received=self.width, fix=fix)


@dataclass
class Writing:
    """Translations under way, one a row."""

    memory: Tensor
    source_mask: Tensor
    states: list[State] = field(default_factory=list)
    """Of each decoder layer; empty at first."""


class RecurrentSeq2Seq(nn.Module):
    """An encoder in two directions and a decoder that attends to it. It can be searched: see `luban.models.beam`.

    The decoder starts at tanh(B e), e being the encoder's last state of both directions; an LSTM's cell at zero.

    Initial weights: cells as `recurrent_cells.RecurrentLayer` says; embeddings normal with standard deviation 1, or
    1 / sqrt(width) where `tied`; other matrices normal with 1 / sqrt(inputs); biases zero. Draws come from torch's
    default generator.

    Example:
        >>> model = RecurrentSeq2Seq(RecurrentSeq2SeqConfig(10, 12))
        >>> source, target = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2]])
        >>> model(source, torch.tensor([[True, True, False]]), target).shape
        torch.Size([1, 2, 12])
    """

    def __init__(self, config: RecurrentSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        width, inputs = config.width, [config.embedding_width] + [config.width] * (config.layers - 1)
        self.source_tokens = nn.Embedding(config.source_vocab_size, config.embedding_width)
        self.target_tokens = nn.Embedding(config.target_vocab_size, config.embedding_width)
        self.encoder = RecurrentLayers(
            config.cell,
            config.embedding_width,
            width,
            config.layers,
            bidirectional=True,
            dropout=config.dropout,
        )
        self.bridge = nn.Linear(2 * width, config.layers * width)
        self.decoder = nn.ModuleList(RecurrentLayer(config.cell, read, width) for read in inputs)
        self.score = nn.Linear(2 * width, width, bias=False)
        self.combine = nn.Linear(3 * width, width, bias=False)
        self.output = None if config.tied else Head(width, config.target_vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.in_features))
        nn.init.zeros_(self.bridge.bias)
        if config.tied:
            nn.init.normal_(self.target_tokens.weight, std=1.0 / math.sqrt(width))

    @property
    def output_weight(self) -> Tensor:
        """The matrix from hidden states to logits: (target_vocab_size, width)."""
        return self.target_tokens.weight if self.output is None else self.output.weight

    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Tensor:
        """Read the source: twice (batch, source) -> (batch, source, 2 width).

        Arguments:
            source_mask: bool, tokens first and padding behind them.
        """
        x = dropout(self.source_tokens(source_ids), self.config.dropout, self.training)
        out: Tensor = self.encoder(x, source_mask)
        return out

    def decode(
        self, target_ids: Tensor, memory: Tensor, source_mask: Tensor, states: list[State] | None = None
    ) -> tuple[Tensor, Tensor, list[State]]:
        """Read a target and attend to its source.

        Arguments:
            target_ids: (batch, target), from the start token on; with states those that come after them.
            memory: what `encode` returned. source_mask: what it was given.
            states: of the decoder's layers, from the call before; None begins.

        Returns:
            states that `output_weight` turns into logits, (batch, target, width); how much each target token attended
            to each source token, (batch, target, source), rows of sum 1; the layers' states after the last token.
        """
        x = dropout(self.target_tokens(target_ids), self.config.dropout, self.training)
        after = []
        for number, (layer, before) in enumerate(
            zip(self.decoder, states or self._begun(memory, source_mask), strict=True)
        ):
            if number:
                x = dropout(x, self.config.dropout, self.training)
            x, last = layer(x, before)  # (batch, target, width)
            after.append(last)
        scores = x @ self.score(memory).transpose(1, 2)  # (batch, target, source)
        seen = source_mask | ~source_mask.any(1, keepdim=True)
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        hidden = torch.tanh(self.combine(torch.cat((weights @ memory, x), dim=-1)))
        return dropout(hidden, self.config.dropout, self.training), weights, after

    def _begun(self, memory: Tensor, source_mask: Tensor) -> list[State]:
        """Return the states from which the decoder's layers start."""
        parts = torch.tanh(self.bridge(self.encoder.last(memory, source_mask))).chunk(
            self.config.layers, dim=-1
        )
        if self.config.cell == "lstm":
            return [(part.contiguous(), torch.zeros_like(part)) for part in parts]
        return [(part.contiguous(),) for part in parts]

    def forward(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor) -> Tensor:
        """Return the logits of the token that follows each target token: (batch, target, target_vocab_size)."""
        hidden, _, _ = self.decode(target_ids, self.encode(source_ids, source_mask), source_mask)
        return F.linear(hidden, self.output_weight)

    def attended(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor) -> Tensor:
        """Return how much was looked at each source token for the token behind each target token.

        Shapes:
            target_ids: (batch, target). Returns (batch, target, source); rows add up to 1.
        """
        return self.decode(target_ids, self.encode(source_ids, source_mask), source_mask)[1]

    def start(self, source_ids: Tensor, source_mask: Tensor) -> Writing:
        """Read the sources whose translations are to be written."""
        return Writing(self.encode(source_ids, source_mask), source_mask)

    def step(self, state: Writing, last_ids: Tensor) -> tuple[Tensor, Writing]:
        """Return log-probabilities of each row's next token, (rows, target_vocab_size), after `last_ids`, (rows,)."""
        hidden, _, states = self.decode(
            last_ids[:, None], state.memory, state.source_mask, state.states or None
        )
        log_probs = F.linear(hidden[:, 0], self.output_weight).log_softmax(-1)
        return log_probs, Writing(state.memory, state.source_mask, states)

    def reorder(self, state: Writing, rows: Tensor) -> Writing:
        """Continue with these rows, (rows,) int64, in this order; one may come twice."""
        states = [tuple(part[rows] for part in layer) for layer in state.states]
        return Writing(state.memory[rows], state.source_mask[rows], states)
