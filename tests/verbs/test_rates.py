"""The range test, where its answer is known: on quadratics, whose gradient descent is stable below 2 / curvature."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from luban.errors import InputError, NonFiniteError, RecipeError, Stopped
from luban.recipe import TrainRecipe
from luban.verbs.rates import find_rates, rates
from toy_learner import Learner, make, recipe


@dataclass
class Nothing:
    """A quadratic has no rows."""

    count: int = 1
    tokens: int = 1
    rows: int = 1

    def describe(self) -> Mapping[str, Any]:
        return {}


class Quadratic:
    """Half the sum of curvature times the square of each weight, and a constant; all weights start at one."""

    def __init__(self, curvatures: Sequence[float], least: float = 0.0) -> None:
        self.model = nn.Module()
        self.model.weight = nn.Parameter(torch.ones(len(curvatures), dtype=torch.float64))
        self.curvatures, self.least = torch.tensor(curvatures, dtype=torch.float64), least

    short_steps = 0

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> list[Nothing]:
        return [Nothing()]

    def epoch(self, step: int) -> float:
        return float(step)

    def loss(self, batch: Nothing) -> Tensor:
        return 0.5 * (self.curvatures * self.model.weight.square()).sum() + self.least

    def flops(self, batch: Nothing) -> int:
        return 1


DESCENT = TrainRecipe(steps=1, optimizer="sgd", momentum=0.0, clip=None)


@settings(max_examples=25)
@given(st.floats(20.0, 2e4), st.lists(st.floats(0.01, 1.0), max_size=3), st.sampled_from([0.0, 0.01]))
def test_a_quadratic_diverges_above_its_stable_limit_and_the_suggestion_lies_below(
    sharpest: float, others: list[float], least: float
) -> None:
    learner = Quadratic([sharpest, *(sharpest * share for share in others)], least * sharpest)
    found, stable = find_rates(learner, DESCENT), 2.0 / sharpest
    rates = torch.tensor([row["rate"] for row in found.rows], dtype=torch.float64)
    # A rate of one over a curvature takes its weight to zero at once, from where it is long in coming back.
    assume(((torch.outer(rates, learner.curvatures) - 1.0).abs() > 0.01).all())
    assert found.divergence is not None and found.suggestion is not None and found.steepest is not None
    assert stable < found.divergence < 10.0 * stable  # sharp ones fall far first, and rise from there
    assert found.suggestion == min(found.steepest, found.divergence / 10) < stable
    assert stable / 1000 < found.suggestion


def test_each_loss_is_that_of_gradient_descent_at_these_rates() -> None:
    learner, weight = Quadratic([30.0, 3.0], 0.5), torch.ones(2, dtype=torch.float64)
    found = find_rates(learner, DESCENT, steps=60, lowest=1e-5, highest=0.05)
    assert found.divergence is None and len(found.rows) == 60
    for step, row in enumerate(found.rows):
        assert row["rate"] == pytest.approx(1e-5 * 5000.0 ** (step / 59))
        weight = weight - row["rate"] * learner.curvatures * weight
        assert row["loss"] == pytest.approx(float(0.5 * (learner.curvatures * weight**2).sum() + 0.5))


def test_the_loss_falls_fastest_where_its_slope_over_the_logarithm_is_steepest() -> None:
    """For a small enough rate d loss / d log rate is known: the flow w(rate) is exp(-curvature rate / step)."""
    learner, curvature, steps = Quadratic([10.0]), 10.0, 400
    found = find_rates(learner, DESCENT, steps=steps, lowest=1e-6, highest=1e-2)
    step = math.log(1e4) / (steps - 1)
    # The loss is 5 exp(-2 c r / step), whose slope over log r is largest where 2 c r / step = 1.
    assert found.steepest == pytest.approx(step / (2.0 * curvature), rel=0.15)
    assert found.divergence is None and found.suggestion == found.steepest
    assert found.why == "the loss falls fastest there"


def test_a_loss_that_only_rises_is_answered_by_a_tenth_of_where_it_diverges() -> None:
    found = find_rates(Quadratic([2000.0]), DESCENT, lowest=0.01)
    assert found.steepest is None and found.divergence is not None
    assert found.suggestion == found.divergence / 10
    assert "a tenth of the rate at which the loss diverges" in found.why
    json.dumps(asdict(found), allow_nan=False)


def test_batches_that_differ_are_no_divergence() -> None:
    """Of a model that starts from evidence nearly every row is right, and the loss of one that is not a thousandfold;
    as of rare classes with weights."""

    class Uneven(Quadratic):
        seen = 0

        def loss(self, batch: Nothing) -> Tensor:
            self.seen += 1
            return super().loss(batch) * (1000.0 if self.seen % 5 == 0 else 1.0)

    found = find_rates(Uneven([1e-3]), DESCENT)
    assert found.divergence is None and len(found.rows) == 100


def test_rates_at_which_nothing_happens_give_no_suggestion() -> None:
    class Flat(Quadratic):
        def loss(self, batch: Nothing) -> Tensor:
            return 0.0 * self.model.weight.sum() + 1.0

    found = find_rates(Flat([1.0]), DESCENT)
    assert (found.steepest, found.divergence, found.suggestion) == (None, None, None)
    assert "try higher ones" in found.why


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_the_steps_are_those_of_a_run_with_the_same_settings(tmp_path: Path, optimizer: str) -> None:
    """Dropout, micro-batches, clipping, penalty, groups and frozen parameters are as in the loop."""
    how = recipe(
        optimizer=optimizer,
        micro_batch=2,
        steps=12,
        schedule="constant",
        warmup=0.0,
        clip=0.2,
        l1=0.01,
        groups=[{"match": "3.*", "rate": 0.3}],
        freeze=["0.bias"],
    )
    loop, notes, _ = make(tmp_path, how)
    loop.run()
    run = [line["loss"] for line in notes.lines if line["kind"] == "train"]
    found = find_rates(Learner(how), how, steps=11, lowest=0.01, highest=0.01 * (1 + 1e-9))
    assert [row["loss"] for row in found.rows] == pytest.approx(run[1:], rel=1e-5)


def test_the_learner_is_left_as_it_was() -> None:
    how = recipe(freeze=["0.*", "1.*"])
    learner = Learner(how, norm=True)
    learner.model.eval()
    learner.model[2].train()
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    found = find_rates(learner, how)
    assert all(torch.equal(before[name], value) for name, value in learner.model.state_dict().items())
    assert [module.training for module in learner.model.modules()] == [False, False, False, True, False]
    assert all(p.requires_grad and p.grad is None for p in learner.model.parameters())
    assert find_rates(learner, how) == found
    with pytest.raises(Stopped):
        find_rates(learner, how, stop=stopping_at(7))
    assert all(torch.equal(before[name], value) for name, value in learner.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in learner.model.parameters())


def stopping_at(step: int) -> Any:
    calls = iter(range(step))

    def stop() -> None:
        if next(calls, None) is None:
            raise Stopped("a signal")

    return stop


def test_what_cannot_be_tried_is_refused() -> None:
    for wrong in ({"steps": 9}, {"lowest": 0.0}, {"lowest": 2.0}):
        with pytest.raises(InputError, match="range test"):
            find_rates(Quadratic([1.0]), DESCENT, **wrong)
    with pytest.raises(NonFiniteError, match="before any rate"):
        find_rates(Learner(recipe(), poison=0), recipe())
    with pytest.raises(RecipeError, match="matches no parameter"):
        find_rates(Learner(recipe()), recipe(freeze=["absent"]))


def test_a_loss_that_is_not_finite_ends_the_test_there() -> None:
    found = find_rates(Learner(recipe(), poison=30), recipe())
    assert len(found.rows) == 30 and found.rows[-1]["loss"] is None
    assert found.divergence == found.rows[-1]["rate"]


def test_the_verb_begins_as_a_run_would_and_keeps_nothing(small: dict[str, Any], tmp_path: Path) -> None:
    given = copy.deepcopy(small)
    given["train"]["learning_rate"] = 0.02
    found = rates(given, out=tmp_path / "run", steps=12)
    assert found["now"] == 0.02 and 1 <= len(found["rows"]) <= 12
    assert set(found) == {"rows", "steepest", "divergence", "suggestion", "why", "now"}
    assert list(tmp_path.iterdir()) == []
