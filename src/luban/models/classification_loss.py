"""The losses of classifiers, row by row: cross-entropy, label smoothing, focal loss, class weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_losses(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    focal: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss of each row, rows being of one class each, (rows,).

    With probabilities p, target y and weights w it is, for each row,
    `w[y] * ((1 - s) * (1 - p[y])**gamma * -log p[y] + s * mean over classes of -log p)`.

    Arguments:
        logits: (rows, classes). targets: (rows,) class numbers.
        label_smoothing: s, the share of the target spread evenly over all classes (C. Szegedy et al., "Rethinking the
            Inception architecture", 2016).
        focal: gamma; rows that are right already count less (T.-Y. Lin et al., "Focal loss", 2017).
        weights: (classes,), what a row of each class counts.

    Example:
        >>> loss = classification_losses(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        >>> round(float(loss), 4)
        0.1269
    """
    if focal:
        logs = F.log_softmax(_wide(logits), dim=-1)  # (rows, classes)
        own = logs.gather(-1, targets[:, None]).squeeze(-1)  # (rows,)
        losses = -own * _power(-own.expm1(), focal)
        if label_smoothing:
            losses = (1.0 - label_smoothing) * losses - label_smoothing * logs.mean(-1)
    else:
        losses = F.cross_entropy(_wide(logits), targets, reduction="none", label_smoothing=label_smoothing)
    if weights is not None:
        losses = losses * weights[targets]
    return losses


def multilabel_losses(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    focal: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss of each row, rows having any number of labels, (rows,): the mean over labels of the binary
    cross-entropy.

    Arguments:
        logits: (rows, labels). targets: (rows, labels) of 0 and 1.
        label_smoothing: s; a target t becomes `t * (1 - s) + s / 2`.
        focal: gamma, as in `classification_losses`.
        weights: (labels,), what a label that is there counts.
    """
    logits = _wide(logits)
    wanted = targets * (1.0 - label_smoothing) + 0.5 * label_smoothing
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")  # (rows, labels)
    if focal:
        losses = losses * _power(torch.where(targets > 0.5, -logits, logits).sigmoid(), focal)
    if weights is not None:
        losses = losses * torch.where(targets > 0.5, weights, torch.ones_like(weights))
    return losses.mean(-1)


def _wide(x: Tensor) -> Tensor:
    """At least float32: a sum of exponentials in bfloat16 keeps two digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _power(wrong: Tensor, gamma: float) -> Tensor:
    """Return wrong**gamma; its slope is 0, not infinite times 0, where nothing is wrong and gamma is below 1."""
    return wrong.clamp_min(torch.finfo(wrong.dtype).tiny) ** gamma
