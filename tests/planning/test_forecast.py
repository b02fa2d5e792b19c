"""A forecast adds up: against a simulated run that spends the same costs on a clock of its own."""

import dataclasses
import math

from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from luban.planning.forecast import evaluations_of, forecast
from luban.planning.rehearsal import Rehearsal
from luban.recipe import TrainRecipe

COSTS = st.builds(
    Rehearsal,
    step_seconds=st.floats(0.01, 2.0),
    step_tokens=st.integers(32, 4096),
    step_flops=st.integers(1, 10**12),
    evaluation_seconds=st.floats(0.0, 3.0),
    final_seconds=st.floats(0.0, 5.0),
    checkpoint_seconds=st.floats(0.0, 1.0),
    checkpoint_bytes=st.integers(1, 10**7),
    peak_bytes=st.integers(1, 10**10),
)


def simulated(
    settings: TrainRecipe, costs: Rehearsal, evaluations: int, short_steps: int = 0
) -> tuple[int, float]:
    """Step through a run as the loop does and return its steps and its clock."""
    steps, tokens, clock, evaluated, saved = 0, 0.0, 0.0, 0, 0.0
    while True:
        size = 0.5 if steps < short_steps else 1.0
        steps += 1
        tokens += size * costs.step_tokens
        clock += size * costs.step_seconds
        budget = {
            "steps": steps / settings.steps if settings.steps else 0,
            "tokens": tokens / settings.tokens if settings.tokens else 0,
            "minutes": clock / (60 * settings.minutes) if settings.minutes else 0,
        }
        if int(min(1.0, max(budget.values())) * evaluations) > evaluated:
            evaluated += 1
            clock += costs.evaluation_seconds
        if settings.checkpoint_every.seconds and clock - saved >= settings.checkpoint_every.seconds:
            clock += costs.checkpoint_seconds
            saved = clock
        if max(budget.values()) >= 1.0 or (settings.minutes and clock >= 60 * settings.minutes):
            return steps, clock + costs.checkpoint_seconds


@limits(max_examples=25)
@given(COSTS, st.integers(20, 200))
def test_steps_cost_what_a_simulated_run_costs(costs: Rehearsal, steps: int) -> None:
    settings = TrainRecipe(steps=steps)
    expected = forecast(settings, costs, evaluations=10, compiled=False, data_bytes=0, model_bytes=0)
    done, clock = simulated(settings, costs, 10)
    assert expected.steps == done == steps
    # A checkpoint more or less where one falls on the last step.
    assert math.isclose(
        expected.training_seconds, clock, rel_tol=0.01, abs_tol=2 * costs.checkpoint_seconds + 0.02
    )


@limits(max_examples=25)
@given(COSTS, st.integers(20, 200), st.integers(1, 300))
def test_short_steps_are_half_as_dear(costs: Rehearsal, steps: int, short: int) -> None:
    costs = dataclasses.replace(costs, step_tokens=2 * costs.step_tokens)  # so that halves are whole numbers
    options = {"evaluations": 10, "compiled": False, "data_bytes": 0, "model_bytes": 0, "short_steps": short}
    for budget in (
        TrainRecipe(steps=steps),
        TrainRecipe(tokens=steps * costs.step_tokens),
        TrainRecipe(minutes=max(1.0, steps * costs.step_seconds / 60.0)),
    ):
        expected = forecast(budget, costs, **options)
        done, clock = simulated(budget, costs, 10, short)
        slack = 2 * costs.evaluation_seconds * 10 + 3 * costs.checkpoint_seconds
        assert abs(expected.steps - done) <= (4 + 2 * slack / costs.step_seconds if budget.minutes else 0)
        assert expected.tokens == costs.step_tokens * (expected.steps - 0.5 * min(expected.steps, short))
        assert math.isclose(
            expected.training_seconds,
            clock,
            rel_tol=0.02,
            abs_tol=slack + 2 * costs.step_seconds if budget.minutes else 2 * costs.checkpoint_seconds + 0.02,
        )


@limits(max_examples=25)
@given(COSTS, st.integers(1_000, 100_000))
def test_tokens_become_the_step_that_reaches_them(costs: Rehearsal, tokens: int) -> None:
    settings = TrainRecipe(tokens=tokens)
    expected = forecast(settings, costs, evaluations=10, compiled=False, data_bytes=0, model_bytes=0)
    assert expected.tokens >= tokens > expected.tokens - costs.step_tokens


@limits(max_examples=25)
@given(COSTS, st.floats(1.0, 5.0))
def test_minutes_become_the_steps_that_fit(costs: Rehearsal, minutes: float) -> None:
    settings = TrainRecipe(minutes=minutes)
    evaluations = evaluations_of(settings, costs)
    expected = forecast(settings, costs, evaluations=evaluations, compiled=False, data_bytes=0, model_bytes=0)
    done, _ = simulated(settings, costs, evaluations)
    slack = 2 + (2 * costs.evaluation_seconds + 3 * costs.checkpoint_seconds) / costs.step_seconds
    assert abs(expected.steps - done) <= slack
    assert expected.training_seconds == round(60 * minutes, 2)


def test_evaluations_take_at_most_a_twentieth_of_minutes_and_never_change_a_budget_of_steps() -> None:
    costs = Rehearsal(0.1, 1024, 10**9, 1.5, 1.0, 0.1, 10**6, 10**9)
    assert evaluations_of(TrainRecipe(minutes=1), costs) == 2
    assert evaluations_of(TrainRecipe(minutes=3), costs) == 6
    assert evaluations_of(TrainRecipe(minutes=30), costs) == 10
    assert evaluations_of(TrainRecipe(steps=3), costs) == 10


def test_the_disk_holds_what_is_kept() -> None:
    costs = Rehearsal(1.0, 1024, 10**9, 0.0, 1.0, 0.0, 1_000_000, 10**9)
    few = forecast(TrainRecipe(steps=10), costs, evaluations=10, compiled=False, data_bytes=7, model_bytes=5)
    many = forecast(
        TrainRecipe(steps=1000, patience=3),
        costs,
        evaluations=10,
        compiled=False,
        data_bytes=7,
        model_bytes=5,
    )
    assert few.disk_bytes == 1_000_000 + 12 + 10 * 330
    assert many.disk_bytes == 3_000_000 + 12 + 1000 * 330
