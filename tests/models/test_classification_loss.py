"""Losses of classifiers are torch's where torch has them, and their formula in float64 where it has none."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from luban.models.classification_loss import classification_losses, multilabel_losses

ROWS, CLASSES = 7, 5


def problem(seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logits, classes, sets of labels and weights, in float64."""
    draws = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(ROWS, CLASSES, generator=draws, dtype=torch.float64)
    classes = torch.randint(CLASSES, (ROWS,), generator=draws)
    labels = torch.randint(2, (ROWS, CLASSES), generator=draws).double()
    weights = torch.rand(CLASSES, generator=draws, dtype=torch.float64) + 0.1
    return logits.requires_grad_(), classes, labels, weights


seeds = st.integers(0, 10_000)
shares = st.sampled_from([0.0, 0.1, 0.5, 0.9])
gammas = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5])


@given(seed=seeds, smoothing=shares)
def test_label_smoothing_is_that_of_torch_in_value_and_slope(seed: int, smoothing: float) -> None:
    logits, classes, _, _ = problem(seed)
    ours = classification_losses(logits, classes, label_smoothing=smoothing)
    theirs = F.cross_entropy(logits, classes, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    slopes = [torch.autograd.grad(losses.sum(), logits)[0] for losses in (ours, theirs)]
    torch.testing.assert_close(*slopes)


@given(seed=seeds)
def test_class_weights_are_those_of_torch(seed: int) -> None:
    logits, classes, _, weights = problem(seed)
    ours = classification_losses(logits, classes, weights=weights)
    torch.testing.assert_close(ours, F.cross_entropy(logits, classes, weight=weights, reduction="none"))


@given(seed=seeds, smoothing=shares, gamma=gammas)
def test_all_of_it_together_is_the_formula_that_the_docstring_gives(
    seed: int, smoothing: float, gamma: float
) -> None:
    logits, classes, _, weights = problem(seed)
    p = logits.detach().exp() / logits.detach().exp().sum(1, keepdim=True)
    expected = []
    for row, y in enumerate(classes.tolist()):
        focal = (1 - p[row, y]) ** gamma * -p[row, y].log()
        even = -p[row].log().mean()
        expected.append(weights[y] * ((1 - smoothing) * focal + smoothing * even))
    ours = classification_losses(logits, classes, label_smoothing=smoothing, focal=gamma, weights=weights)
    torch.testing.assert_close(ours.detach(), torch.stack(expected))


@given(seed=seeds, smoothing=shares)
def test_several_labels_are_torchs_binary_cross_entropy(seed: int, smoothing: float) -> None:
    logits, _, labels, _ = problem(seed)
    ours = multilabel_losses(logits, labels, label_smoothing=smoothing)
    smooth = labels * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(
        ours, F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)
    )


@given(seed=seeds)
def test_weights_of_labels_count_where_the_label_is_there_as_torchs_pos_weight(seed: int) -> None:
    logits, _, labels, weights = problem(seed)
    theirs = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none")
    torch.testing.assert_close(multilabel_losses(logits, labels, weights=weights), theirs.mean(1))


@given(seed=seeds, gamma=gammas)
def test_focal_loss_of_several_labels_by_hand(seed: int, gamma: float) -> None:
    logits, _, labels, _ = problem(seed)
    p = 1 / (1 + (-logits.detach()).exp())
    right = labels * p + (1 - labels) * (1 - p)
    expected = ((1 - right) ** gamma * -right.log()).mean(1)
    torch.testing.assert_close(multilabel_losses(logits, labels, focal=gamma).detach(), expected)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_slopes_are_those_of_finite_differences(gamma: float) -> None:
    logits, classes, labels, weights = problem(1)
    for function, targets in ((classification_losses, classes), (multilabel_losses, labels)):
        assert torch.autograd.gradcheck(
            lambda x, f=function, t=targets: f(x, t, label_smoothing=0.2, focal=gamma, weights=weights),
            logits,
        )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_row_that_is_right_beyond_doubt_costs_nothing_and_pulls_at_nothing(gamma: float) -> None:
    """At p = 1 the power has an infinite slope where gamma is below 1."""
    logits = torch.tensor([[300.0, -300.0]], requires_grad=True)
    for losses in (
        classification_losses(logits, torch.tensor([0]), focal=gamma),
        multilabel_losses(logits, torch.tensor([[1.0, 0.0]]), focal=gamma),
    ):
        (slope,) = torch.autograd.grad(losses.sum(), logits)
        assert losses.item() == 0.0
        assert slope.tolist() == [[0.0, 0.0]]


def test_halves_are_summed_in_float32() -> None:
    logits, classes, labels, _ = problem(3)
    half = logits.detach().bfloat16()
    for function, targets in ((classification_losses, classes), (multilabel_losses, labels.float())):
        losses = function(half, targets, label_smoothing=0.1)
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, function(half.float(), targets, label_smoothing=0.1))
