"""Schedules and budgets: properties over all recipes, and equality with torch's schedulers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luban.recipe import TrainRecipe
from luban.training.progress import Progress
from luban.training.schedules import Budget, Schedule

fractions = st.just(0.0) | st.floats(1e-6, 1.0)
recipes = st.builds(
    TrainRecipe,
    steps=st.just(100),
    schedule=st.sampled_from(["constant", "linear", "cosine", "wsd", "plateau"]),
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
    ends = recipe.schedule not in ("constant", "plateau") and decay > 0
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


figures = st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, math.nan]), max_size=30)


@given(figures, st.integers(1, 4), st.floats(0.1, 0.9), st.sampled_from([0.0, 0.3]), st.booleans())
def test_a_plateau_equals_torch(
    values: list[float], patience: int, factor: float, final: float, minimise: bool
) -> None:
    recipe = TrainRecipe(
        steps=100,
        schedule="plateau",
        warmup=0.0,
        plateau_patience=patience,
        plateau_factor=factor,
        final_rate=final,
    )
    schedule, progress = Schedule(recipe), Progress()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # Torch counts how many may be no better, ours how many are.
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        "min" if minimise else "max",
        factor=factor,
        patience=patience - 1,
        threshold=0.0,
        min_lr=final,
        eps=0.0,
    )
    for value in values:
        progress.judge(value, recipe, minimise=minimise)
        progress.plateau = schedule.after(progress.plateau, progress.worse)
        theirs.step(value)
        assert progress.plateau == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert schedule.rate(0.7) == 1.0


@given(
    st.sampled_from(["steps", "tokens", "epochs"]),
    st.integers(1, 500),
    st.integers(1, 40),
    st.integers(1, 90),
)
def test_the_steps_of_a_budget_are_those_after_which_it_is_spent(
    kind: str, total: int, step_tokens: int, per_epoch: int
) -> None:
    budget = Budget(TrainRecipe(**{kind: total}), lambda step: step / per_epoch)
    walked = next(step for step in range(1, 10**6) if budget.done(step, step * step_tokens, 0.0))
    assert budget.steps_in(step_tokens) == walked
    assert (
        walked
        == {"steps": total, "tokens": math.ceil(total / step_tokens), "epochs": total * per_epoch}[kind]
    )
    assert not budget.done(walked - 1, (walked - 1) * step_tokens, 0.0)


def test_nobody_knows_the_steps_of_minutes() -> None:
    assert Budget(TrainRecipe(minutes=1)).steps_in(100) is None


@given(st.floats(0.01, 50.0), st.integers(1, 90), st.integers(0, 5000))
def test_a_budget_of_epochs_counts_passes_over_the_data(epochs: float, per_epoch: int, step: int) -> None:
    budget = Budget(TrainRecipe(epochs=epochs), lambda step: step / per_epoch)
    assert budget.progress(step, 0, 0.0) == pytest.approx(min(1.0, step / per_epoch / epochs))
    assert budget.done(step, 10**9, 1e9) is (step / per_epoch / epochs >= 1.0)
