"""Schedules and budgets: properties over all recipes, and equality with torch's schedulers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luban.recipe import TrainRecipe
from luban.training.schedules import Budget, Schedule

fractions = st.just(0.0) | st.floats(1e-6, 1.0)
recipes = st.builds(
    TrainRecipe,
    steps=st.just(100),
    schedule=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    warmup=fractions,
    decay=fractions,
    final_rate=fractions,
)


@given(recipes, fractions)
def test_the_rate_is_between_nothing_and_all(recipe: TrainRecipe, progress: float) -> None:
    rate = Schedule(recipe).rate(progress)
    assert 0.0 <= rate <= 1.0 + 1e-12
    assert rate >= min(recipe.final_rate, 0.1) - 1e-12


@given(recipes)
def test_the_rate_ends_at_the_final_rate(recipe: TrainRecipe) -> None:
    decay = recipe.decay if recipe.schedule == "wsd" else 1.0 - recipe.warmup
    ends = recipe.schedule != "constant" and decay > 0
    assert Schedule(recipe).rate(1.0) == pytest.approx(recipe.final_rate if ends else 1.0)


@given(recipes, fractions, fractions)
def test_the_rate_has_no_jump(recipe: TrainRecipe, one: float, other: float) -> None:
    decay = recipe.decay if recipe.schedule == "wsd" else 1.0 - recipe.warmup
    lengths = [length for length in (recipe.warmup, decay) if length > 0]
    steepest = max((math.pi / 2 / length for length in lengths), default=0.0)
    schedule = Schedule(recipe)
    assert abs(schedule.rate(one) - schedule.rate(other)) <= steepest * abs(one - other) * (1 + 1e-9) + 1e-9


@given(recipes, fractions, fractions)
def test_the_rate_never_rises_after_the_warm_up(recipe: TrainRecipe, one: float, other: float) -> None:
    early, late = sorted([max(one, recipe.warmup), max(other, recipe.warmup)])
    schedule = Schedule(recipe)
    assert schedule.rate(late) <= schedule.rate(early) + 1e-12


def torch_rates(make: object, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_linear_and_cosine_equal_torch(final: float) -> None:
    lr = torch.optim.lr_scheduler
    for name, make in (
        ("linear", lambda o: lr.LinearLR(o, start_factor=1.0, end_factor=final, total_iters=40)),
        ("cosine", lambda o: lr.CosineAnnealingLR(o, T_max=40, eta_min=final)),
    ):
        schedule = Schedule(TrainRecipe(steps=40, schedule=name, warmup=0.0, final_rate=final))
        assert [schedule.rate(step / 40) for step in range(41)] == pytest.approx(torch_rates(make, 40))


def test_warmup_stable_decay_equals_torch_schedulers_in_sequence() -> None:
    lr = torch.optim.lr_scheduler

    def make(o: torch.optim.Optimizer) -> lr.LRScheduler:
        return lr.SequentialLR(
            o,
            [
                lr.LinearLR(o, start_factor=0.1, end_factor=1.0, total_iters=10),
                lr.ConstantLR(o, factor=1.0),
                lr.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=20),
            ],
            milestones=[10, 30],
        )

    schedule = Schedule(TrainRecipe(steps=50, schedule="wsd", warmup=0.2, decay=0.4, final_rate=0.2))
    assert [schedule.rate(step / 50) for step in range(51)] == pytest.approx(torch_rates(make, 50))


@given(st.sampled_from(["steps", "tokens", "minutes"]), st.integers(1, 10**6), st.integers(0, 2 * 10**6))
def test_a_budget_counts_only_its_own_unit(kind: str, total: int, spent: int) -> None:
    budget = Budget(TrainRecipe(**{kind: total}))
    own = {"step": 0, "tokens": 0, "seconds": 0.0}
    own[{"steps": "step", "tokens": "tokens", "minutes": "seconds"}[kind]] = spent * (
        60 if kind == "minutes" else 1
    )
    assert budget.progress(**own) == pytest.approx(min(1.0, spent / total))
    assert budget.done(**own) is (spent >= total)
    foreign = {name: 10**9 if value == 0 else value for name, value in own.items()}
    if spent:
        assert budget.progress(**foreign) == budget.progress(**own)
