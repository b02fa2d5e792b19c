"""Recurrent networks for text: Elman, LSTM or GRU, one direction or two, one answer per text or per token.

Padding is invisible in both directions: the backward one reads each row turned around at its own last token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luban.models.config_checks import check_choice, check_shares, check_sizes
from luban.models.dropout import dropout
from luban.models.head import Head
from luban.models.padding import last_token, masked_max, masked_mean, reverse_tokens
from luban.models.recurrent_cells import CELLS, RecurrentLayer

POOLINGS = ("last", "mean", "max", "attention")


@dataclass(frozen=True)
class RecurrentConfig:
    """The network's shape.

    Arguments:
        outputs: classes, or figures to be told; labels where `per_token`.
        embedding_width: dimensions of an embedding.
        width: dimensions of a state, of each direction.
        cell: rnn, lstm or gru.
        pooling: how the states of a text become one: last (of each direction the one that has read all), mean, max
            or attention. Not looked at where `per_token`.
        per_token: answer for each token instead of once for the text.
        dropout: share of embeddings, of what goes from layer to layer, and of what the output layer reads, that is
            zeroed while training.

    Raises:
        InputError: for a size below 1, an unknown word, a share out of [0, 1).
    """

    vocab_size: int
    outputs: int
    embedding_width: int = 128
    width: int = 128
    layers: int = 1
    cell: str = "lstm"
    bidirectional: bool = True
    pooling: str = "max"
    per_token: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "outputs", "embedding_width", "width", "layers")
        check_choice(self, "cell", tuple(CELLS))
        check_choice(self, "pooling", POOLINGS)
        check_shares(self, "dropout")


class RecurrentLayers(nn.Module):
    """Layers of recurrent cells in one or two directions: a kernel call per layer and direction.

    Arguments:
        cell: rnn, lstm or gru.
        inputs: dimensions of what the first layer reads. width: dimensions of a state, of each direction.
        dropout: share of what goes from layer to layer that is zeroed while training.
    """

    def __init__(
        self, cell: str, inputs: int, width: int, layers: int, *, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        self.width, self.bidirectional, self.dropout = width, bidirectional, dropout
        self.states_width = 2 * width if bidirectional else width
        read = [inputs] + [self.states_width] * (layers - 1)
        self.onward_layers = nn.ModuleList(RecurrentLayer(cell, inputs, width) for inputs in read)
        self.backward_layers = nn.ModuleList(
            RecurrentLayer(cell, inputs, width) for inputs in read if bidirectional
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the top layer's states, forward then backward: (batch, length, inputs) -> (batch, length, width).

        `width` is `states_width`. States at padding mean nothing.
        """
        for layer, onward in enumerate(self.onward_layers):
            if layer:
                x = dropout(x, self.dropout, self.training)
            states, _ = onward(x)  # (batch, length, width)
            if self.bidirectional:
                turned, _ = self.backward_layers[layer](reverse_tokens(x, mask))
                states = torch.cat((states, reverse_tokens(turned, mask)), dim=-1)
            x = states
        return x

    def last(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return of each direction the state that has read the whole text: (batch, states_width)."""
        onward = last_token(states[..., : self.width], mask)
        return torch.cat((onward, states[:, 0, self.width :]), dim=-1)


class AttentionPooling(nn.Module):
    """A mean weighted by how much each state matters: softmax(u tanh(W h + b)).

    Yang et al., "Hierarchical Attention Networks for Document Classification", NAACL 2016.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, 1, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool over each row's tokens: (batch, length, width) -> (batch, width)."""
        pooled: Tensor = (self.weights(states, mask)[:, None] @ states).squeeze(1)
        return pooled

    def weights(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return how much each state counts: (batch, length, width) -> (batch, length), rows of sum 1."""
        scores = self.query(torch.tanh(self.key(states))).squeeze(-1)
        seen = mask | ~mask.any(1, keepdim=True)
        weights: Tensor = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return weights


class Recurrent(nn.Module):
    """A recurrent network over tokens.

    Initial weights: cells as `recurrent_cells.RecurrentLayer` says; embeddings normal with standard deviation 1; the
    output matrix and those of attention normal with 1 / sqrt(inputs); biases zero. Draws come from torch's default
    generator.

    Example:
        >>> ids, mask = torch.tensor([[1, 2, 3]]), torch.tensor([[True, True, False]])
        >>> Recurrent(RecurrentConfig(vocab_size=10, outputs=2))(ids, mask).shape
        torch.Size([1, 2])
        >>> Recurrent(RecurrentConfig(vocab_size=10, outputs=2, per_token=True))(ids, mask).shape
        torch.Size([1, 3, 2])
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.embedding_width)  # normal, standard deviation 1
        self.layers = RecurrentLayers(
            config.cell,
            config.embedding_width,
            config.width,
            config.layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
        )
        attends = config.pooling == "attention" and not config.per_token
        self.attention = AttentionPooling(self.layers.states_width) if attends else None
        self.output = Head(self.layers.states_width, config.outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return each token's state, (batch, length, states_width); those at padding mean nothing."""
        x = dropout(self.tokens(ids), self.config.dropout, self.training)  # (batch, length, embedding_width)
        states: Tensor = self.layers(x, mask)
        return states

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits, (batch, outputs), or (batch, length, outputs) where `per_token`.

        Arguments:
            ids: (batch, length) int64. mask: (batch, length) bool, tokens first and padding behind them.
        """
        x = self.hidden(ids, mask)
        if not self.config.per_token:
            x = self._pooled(x, mask)  # (batch, states_width)
        out: Tensor = self.output(dropout(x, self.config.dropout, self.training))
        return out

    def attended(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """Return how much each token counts in the pooled state, (batch, length); None without attention pooling."""
        return None if self.attention is None else self.attention.weights(self.hidden(ids, mask), mask)

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.attention is not None:
            pooled: Tensor = self.attention(states, mask)
            return pooled
        if self.config.pooling == "last":
            return self.layers.last(states, mask)
        return masked_max(states, mask) if self.config.pooling == "max" else masked_mean(states, mask)
