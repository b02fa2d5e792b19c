"""The chain against every labelling there is, in float64."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from luban.errors import InputError
from luban.models.crf import Crf

LABELS = 3


def chain(seed: int, **forbidden: Tensor) -> Crf:
    torch.manual_seed(seed)
    crf = Crf(LABELS, **forbidden).double()
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    return crf


def texts(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    emissions = torch.randn(len(lengths), max(lengths), LABELS, dtype=torch.float64, generator=generator)
    return emissions, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def score(crf: Crf, emissions: Tensor, labels: tuple[int, ...]) -> Tensor:
    """The definition, a term at a time; minus infinity where a step is forbidden."""
    total = crf.first[labels[0]] + crf.last[labels[-1]]
    total = total + sum(emissions[place, label] for place, label in enumerate(labels))
    total = total + sum(crf.transitions[pair] for pair in itertools.pairwise(labels))
    steps = any(bool(crf.forbidden[pair]) for pair in itertools.pairwise(labels))
    if steps or crf.forbidden_first[labels[0]] or crf.forbidden_last[labels[-1]]:
        return total - torch.inf
    return total


def check_against_every_labelling(crf: Crf, lengths: list[int], seed: int) -> None:
    emissions, mask = texts(lengths, seed)
    partition, (best, best_scores) = crf.log_partition(emissions, mask), crf.decode(emissions, mask)
    marginals = crf.marginals(emissions, mask)
    for row, length in enumerate(lengths):
        every = list(itertools.product(range(LABELS), repeat=length))
        scores = torch.stack([score(crf, emissions[row], labels) for labels in every])
        torch.testing.assert_close(partition[row], scores.logsumexp(0))
        winner = int(scores.argmax())
        assert best[row].tolist() == [*every[winner], *[0] * (max(lengths) - length)]
        torch.testing.assert_close(best_scores[row], scores[winner])
        found = crf.score(emissions[row : row + 1], best[row : row + 1], mask[row : row + 1])
        torch.testing.assert_close(found[0], scores[winner])
        shares = scores.softmax(0)
        for place in range(max(lengths)):
            for label in range(LABELS):
                share = sum(
                    (
                        share
                        for share, labels in zip(shares, every, strict=True)
                        if labels[place : place + 1] == (label,)
                    ),
                    start=torch.zeros((), dtype=torch.float64),
                )
                torch.testing.assert_close(marginals[row, place, label], share)


@settings(max_examples=8)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 99))
def test_equals_every_labelling(lengths: list[int], seed: int) -> None:
    check_against_every_labelling(chain(seed), lengths, seed)


def test_forbidden_steps() -> None:
    """As in O, B, I: I follows B or I only, and is never first; and here B may not be last."""
    forbidden = torch.zeros(LABELS, LABELS, dtype=torch.bool)
    forbidden[0, 2] = True
    crf = chain(
        1,
        forbidden=forbidden,
        forbidden_first=torch.tensor([False, False, True]),
        forbidden_last=torch.tensor([False, True, False]),
    )
    check_against_every_labelling(crf, [4, 1, 3], 1)


def test_forbidden_labels_cost_much_and_have_gradients() -> None:
    crf = chain(1, forbidden_first=torch.tensor([False, False, True]))
    emissions, mask = texts([3])
    loss = crf(emissions.requires_grad_(), torch.tensor([[2, 0, 0]]), mask)
    loss.sum().backward()
    assert 9_000.0 < loss.item() < 11_000.0
    assert bool(emissions.grad.isfinite().all())


def test_marginals_are_the_slope_of_the_partition() -> None:
    crf, (emissions, mask) = chain(2), texts([5, 2, 3])
    emissions.requires_grad_()
    (slope,) = torch.autograd.grad(crf.log_partition(emissions, mask).sum(), emissions)
    torch.testing.assert_close(crf.marginals(emissions, mask), slope)


def test_gradients_equal_finite_differences() -> None:
    crf, (emissions, mask) = chain(3), texts([4, 1, 3])
    labels = torch.randint(0, LABELS, mask.shape)

    def loss(emissions: Tensor, transitions: Tensor, first: Tensor, last: Tensor) -> Tensor:
        weights = {"transitions": transitions, "first": first, "last": last}
        return torch.func.functional_call(crf, weights, (emissions, labels, mask))

    weights = (crf.transitions, crf.first, crf.last)
    assert torch.autograd.gradcheck(loss, (emissions.requires_grad_(), *weights))


def test_labels_at_padding_are_not_looked_at() -> None:
    crf, (emissions, mask) = chain(4), texts([2, 4])
    labels = torch.randint(0, LABELS, mask.shape)
    ignored = labels.masked_fill(~mask, -100)
    assert torch.equal(crf(emissions, labels, mask), crf(emissions, ignored, mask))


def test_half_precision_is_raised() -> None:
    crf, (emissions, mask) = Crf(LABELS), texts([40])
    half = emissions.bfloat16()
    assert torch.equal(crf.log_partition(half, mask), crf.log_partition(half.float(), mask))


def test_wrong_shape() -> None:
    with pytest.raises(InputError, match="forbidden_first"):
        Crf(3, forbidden_first=torch.zeros(2, dtype=torch.bool))
