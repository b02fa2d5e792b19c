"""The gradient of a step: of the mean loss and its penalty, whatever the split; clipped as torch clips."""

import contextlib
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from luban.kernels import Library
from luban.training.gradients import Gradients
from luban.training.parallel import Alone
from toy_learner import Learner, Rows, recipe


def exact(batch: int = 8, micro_batch: int | None = None) -> Learner:
    """A toy learner in float64 without dropout."""
    learner = Learner(recipe(batch=batch, micro_batch=micro_batch), dropout=0.0)
    learner.model.double()
    learner.x, learner.y = learner.x.double(), learner.y.double()
    return learner


def gradients(learner: Learner, plan: Alone | None = None, **options: float) -> Gradients:
    return Gradients(learner, plan or Alone(), seed=0, forward=contextlib.nullcontext, **options)


def held(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def penalised(learner: Learner, batches: Sequence[Rows], l1: float) -> Tensor:
    """The loss that is minimised, written down as it is."""
    loss = sum(learner.loss(batch) for batch in batches) / sum(batch.count for batch in batches)
    return loss + l1 * sum(p.abs().sum() for p in learner.model.parameters() if p.ndim >= 2)


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.03]))
def test_any_split_of_a_batch_gives_the_same_gradient(batch: int, micro_batch: int, l1: float) -> None:
    def gradient(micro: int | None) -> list[Tensor]:
        learner = exact(batch, micro)
        own = gradients(learner, l1=l1)
        own.add(3, learner.batches(3, 0, 1))
        own.combine()
        return held(learner.model)

    for whole, split in zip(gradient(None), gradient(min(micro_batch, batch)), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("l1", [0.0, 0.3])
def test_the_gradient_is_that_of_the_mean_loss_and_its_penalty(l1: float) -> None:
    learner = exact(micro_batch=3)
    with torch.no_grad():
        learner.model[0].weight[0] = 0.0  # |w| has no gradient here: its subgradient is 0
    own, batches = gradients(learner, l1=l1), learner.batches(0, 0, 1)
    computed, norm = own.add(0, batches), own.combine()
    got = held(learner.model)
    learner.model.zero_grad()
    penalised(learner, batches, l1).backward()
    for mine, parameter in zip(got, learner.model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)
    assert norm == pytest.approx(
        math.sqrt(sum(float(p.grad.square().sum()) for p in learner.model.parameters()))
    )
    assert computed.loss == pytest.approx(float(penalised(learner, batches, 0.0).detach()))
    assert computed.tokens == 8


def test_the_penalty_is_added_once_for_all_ranks() -> None:
    class Twins(Alone):
        """The sum over two ranks with the same rows."""

        def reduce_gradients(self, model: nn.Module) -> None:
            for parameter in model.parameters():
                parameter.grad.mul_(2.0)

    learner = exact()
    alone, twins = gradients(learner), gradients(learner, Twins(), l1=0.3)
    alone.add(0, learner.batches(0, 0, 1))
    expected = [
        2.0 * gradient + (0.3 * parameter.sign() if parameter.ndim == 2 else 0.0)
        for gradient, parameter in zip(held(learner.model), learner.model.parameters(), strict=True)
    ]
    learner.model.zero_grad()
    twins.add(0, learner.batches(0, 0, 1))
    twins.combine()
    for mine, theirs in zip(held(learner.model), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_penalty_leaves_what_is_frozen_or_unused_alone() -> None:
    learner = exact()
    learner.model[0].weight.requires_grad_(False)
    learner.model.add_module("unused", nn.Linear(3, 3))
    own = gradients(learner, l1=0.3)
    learner.loss = lambda batch: learner.model[3](learner.model[0](batch.x).tanh()).sum()  # type: ignore[method-assign]
    own.add(0, learner.batches(0, 0, 1))
    own.combine()
    assert learner.model[0].weight.grad is None and learner.model.unused.weight.grad is None


@pytest.mark.parametrize("clip", [None, 1e-3, 1e3])
def test_clipping_equals_torch(clip: float | None) -> None:
    learner = exact()
    own = gradients(learner, clip=clip)
    own.add(0, learner.batches(0, 0, 1))
    scale = own.scale(own.combine())
    mine = [gradient * scale for gradient in held(learner.model)]
    learner.model.zero_grad()
    penalised(learner, learner.batches(0, 0, 1), 0.0).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(learner.model.parameters(), clip)
    for one, other in zip(mine, held(learner.model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0.0)


def test_the_norm_by_kernels_is_torchs(library: Library) -> None:
    """And where a gradient lies otherwise than in a row, torch's; what is no number is none."""
    learner = Learner(recipe())
    plain, by_kernels = (
        Gradients(learner, Alone(), seed=0, forward=contextlib.nullcontext, kernels=kernels)
        for kernels in (None, library)
    )
    plain.add(0, learner.batches(0, 0, 1))
    assert by_kernels.combine() == pytest.approx(plain.combine(), rel=1e-6)
    first = next(p for p in learner.model.parameters() if p.grad is not None and p.ndim == 2)
    first.grad = first.grad.t().contiguous().t()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "norm", lambda _: 1 / 0)
        assert by_kernels.combine() == plain.combine()
    first.grad = first.grad.contiguous()
    first.grad[0, 0] = torch.nan
    assert math.isnan(by_kernels.combine())


def test_trying_out_leaves_no_trace() -> None:
    """Norms learn from every batch that passes in training mode; a resumed run tries out once more than another."""
    learner = Learner(recipe(), norm=True)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    gradients(learner).try_out(0, None)
    assert held(learner.model) == []
    assert all(torch.equal(before[name], value) for name, value in learner.model.state_dict().items())
