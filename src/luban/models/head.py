"""The last matrix of a network, marked as what it is."""

from __future__ import annotations

from torch import nn


class Head(nn.Linear):
    """The matrix from the last hidden states to the outputs; it computes what `nn.Linear` does.

    Its rows are outputs and not directions of a hidden space, so an optimizer for hidden matrices (Muon) leaves it
    to AdamW, as it does embeddings.

    Example:
        >>> Head(4, 2)
        Head(in_features=4, out_features=2, bias=True)
    """
