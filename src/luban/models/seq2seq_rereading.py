"""A sequence-to-sequence network without a cache, such as an exported graph: each step reads all that was written.

It is a `luban.models.beam.Writer`, so the search takes it as it takes the networks that remember.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RereadingSeq2Seq:
    """Writes with a network of which only the logits are known.

    Arguments:
        graph: source_ids, source_mask (batch, source) and target_ids (batch, target), two target tokens at least ->
            logits (batch, target, vocab_size); a target token sees none behind it.
    """

    def __init__(self, graph: nn.Module) -> None:
        self._graph = graph

    def start(self, source_ids: Tensor, source_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Begin with nothing written."""
        return source_ids, source_mask, source_ids.new_zeros(len(source_ids), 0)

    def step(self, state: tuple[Tensor, Tensor, Tensor], last_ids: Tensor) -> tuple[Tensor, Any]:
        """Return log-probabilities of the next token."""
        source_ids, source_mask, written = state
        written = torch.cat((written, last_ids[:, None]), dim=1)
        # The graph takes two target tokens at least: what is behind the last one is not looked at.
        read = torch.cat((written, torch.zeros_like(written[:, :1])), dim=1)
        logits = self._graph(source_ids, source_mask, read)[:, written.shape[1] - 1]
        return logits.log_softmax(-1), (source_ids, source_mask, written)

    def reorder(self, state: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Continue with these rows."""
        source_ids, source_mask, written = state
        return source_ids[rows], source_mask[rows], written[rows]
