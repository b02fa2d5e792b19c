"""The last matrix of a network, marked as what it is."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from luban.models.dropout import dropout


class Head(nn.Linear):
    """The matrix from the last hidden states to the outputs; it computes what `nn.Linear` does.

    Its rows are outputs and not directions of a hidden space, so an optimizer for hidden matrices (Muon) leaves it
    to AdamW, as it does embeddings.

    Arguments:
        dropout: share of what it reads that is zeroed while training.

    Example:
        >>> Head(4, 2)
        Head(in_features=4, out_features=2, bias=True)
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True, *, dropout: float = 0.0) -> None:
        super().__init__(inputs, outputs, bias)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(dropout(x, self.dropout, self.training), self.weight, self.bias)
