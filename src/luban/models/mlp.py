"""The multilayer perceptron: matrices with a bend between them. Without a hidden layer it is linear regression, and
with a softmax or a sigmoid behind it logistic regression.

Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323, 1986.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.config_checks import check_choice, check_shares, check_sizes
from luban.models.dropout import dropout
from luban.models.head import Head

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}
# By how much a matrix is drawn larger so that what comes out of the activation has about the size of what went in:
# sqrt(2) where half of it is cut off. He et al., https://arxiv.org/abs/1502.01852
_GAINS = {"sigmoid": 1.0, "tanh": 1.0, "relu": math.sqrt(2.0), "gelu": math.sqrt(2.0), "silu": math.sqrt(2.0)}


@dataclass(frozen=True)
class MlpConfig:
    """The perceptron's shape.

    Arguments:
        hidden: widths of the hidden layers, from the input on; empty for a linear model.
        activation: sigmoid, tanh, relu, gelu or silu.
        dropout: share of each hidden layer that is zeroed while training.

    Raises:
        InputError: for a width below 1, an unknown activation, a share out of [0, 1).
    """

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_sizes(self, "inputs", "outputs")
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_shares(self, "dropout")
        if any(width < 1 for width in self.hidden):
            raise InputError("widths of hidden layers must be at least 1", received=list(self.hidden))


class Mlp(nn.Module):
    """A multilayer perceptron.

    Initial weights: hidden matrices normal with standard deviation gain / sqrt(inputs), gain sqrt(2) for relu,
    gelu and silu and 1 for the others; the output matrix 1 / sqrt(inputs); biases zero. A model without a hidden
    layer starts at zero: its loss is convex, and so the start is the same for every seed. Draws come from torch's
    default generator.

    Example:
        >>> Mlp(MlpConfig(inputs=4, outputs=3, hidden=(8, 8)))(torch.zeros(2, 4)).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, config: MlpConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.inputs, *config.hidden)
        hidden = [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
        self.layers = nn.ModuleList([*hidden, Head(widths[-1], config.outputs)])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            last = number == len(self.config.hidden)
            gain = 1.0 if last else _GAINS[self.config.activation]
            if self.config.hidden:
                nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            else:
                nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of each row: (batch, inputs) -> (batch, outputs)."""
        bend = ACTIVATIONS[self.config.activation]
        *hidden, output = self.layers
        for layer in hidden:
            x = dropout(bend(layer(x)), self.config.dropout, self.training)  # (batch, width)
        out: Tensor = output(x)
        return out
