"""From logits to the next token: the processors that narrow the choice, and the draw.

In the order they are applied: repetition penalty, temperature, top-k, top-p, min-p; the order of Hugging
Face.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luban.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Arguments:
        temperature: divides the logits; 0 takes the likeliest token and draws nothing.
        top_k: keep the k likeliest tokens.
        top_p: keep the fewest likeliest tokens whose probabilities sum to at least this.
            Holtzman et al., https://arxiv.org/abs/1904.09751
        min_p: keep tokens at least this share as likely as the likeliest. https://arxiv.org/abs/2407.01082
        repetition_penalty: divides positive logits of tokens already in the text, and multiplies negative
        ones.
            Keskar et al., https://arxiv.org/abs/1909.05858

    Raises:
        InputError: for a value out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks = [
            ("temperature", self.temperature >= 0.0, "at least 0"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", self.top_p is None or 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0.0, "above 0"),
        ]
        for name, holds, allowed in checks:
            if not holds:
                raise InputError(f"{name} must be {allowed}", received=getattr(self, name))


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen less likely.

    Shapes:
        logits: (batch, vocab_size); seen: (batch, vocab_size) bool. Returns (batch, vocab_size).
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def narrow(logits: Tensor, sampling: Sampling) -> Tensor:
    """Apply temperature, top-k, top-p and min-p; what is ruled out becomes -inf: (batch, vocab_size)."""
    scores = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        smallest = scores.topk(sampling.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1.0:
        ranked, order = scores.sort(descending=False)
        # What lies in the tail below 1 - top_p goes; the likeliest token always stays.
        dropped = ranked.softmax(-1).cumsum(-1) <= 1.0 - sampling.top_p
        dropped[..., -1] = False
        scores = scores.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    if sampling.min_p:
        probabilities = scores.softmax(-1)
        least = sampling.min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(probabilities < least, -torch.inf)
    return scores


def choose(logits: Tensor, sampling: Sampling, seen: Tensor, uniforms: Tensor | None) -> Tensor:
    """Choose one token per row: (batch,) int64.

    Arguments:
        logits: (batch, vocab_size).
        seen: (batch, vocab_size) bool, the tokens of each row's text; read when there is a repetition
        penalty.
        uniforms: (batch,) float64 in [0, 1), one draw per row; not needed at temperature 0.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1.0:
        scores = penalise_repetition(scores, seen, sampling.repetition_penalty)
    if sampling.temperature == 0.0 or uniforms is None:
        return scores.argmax(-1)
    probabilities = narrow(scores, sampling).double().softmax(-1)
    # Inverse of the distribution function: one draw decides, whatever else is in the batch.
    heights = probabilities.cumsum(-1)
    targets = uniforms.to(heights)[:, None] * heights[:, -1:]
    return torch.searchsorted(heights, targets, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
