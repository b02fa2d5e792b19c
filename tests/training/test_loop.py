"""The loop, on a small model that is no language model: it knows no task."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from luban.durable import sha256
from luban.errors import NonFiniteError, Stopped
from luban.recipe import TrainRecipe
from luban.signals import StopRequest
from luban.training.checkpoints import Checkpoints
from luban.training.compiling import Compiling
from luban.training.faults import Faults
from luban.training.loop import Loop, Progress
from luban.training.parallel import Alone

ROWS, FEATURES = 24, 6


@dataclass
class Rows:
    x: Tensor
    y: Tensor
    count: int
    tokens: int

    @property
    def rows(self) -> int:
        return len(self.x)

    def describe(self) -> Mapping[str, Any]:
        return {"rows": self.tokens}


class Learner:
    """Regression with dropout, so that random draws matter; every row has its own number of terms."""

    def __init__(self, recipe: TrainRecipe, *, poison: int | None = None, dropout: float = 0.2) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.poison = recipe, poison
        self.model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
        made = torch.Generator().manual_seed(7)
        self.x = torch.randn(ROWS, FEATURES, generator=made)
        self.y = self.x.sum(1, keepdim=True).sin()

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> Sequence[Rows]:
        batch = self.recipe.batch
        assert batch is not None
        size = size or self.recipe.micro_batch or batch
        first, last = step * batch + batch * rank // ranks, step * batch + batch * (rank + 1) // ranks
        made = []
        for at in range(first, last, size):
            index = torch.arange(at, min(at + size, last)) % ROWS
            x = self.x[index] * (math.nan if step == self.poison else 1.0)
            made.append(Rows(x, self.y[index], len(index), len(index)))
        return made

    def epoch(self, step: int) -> float:
        return step * self.recipe.batch / ROWS

    def loss(self, batch: Rows) -> Tensor:
        return (self.model(batch.x) - batch.y).square().sum()

    def flops(self, batch: Rows) -> int:
        return 6 * batch.tokens * (FEATURES * 8 + 8)


class Notes:
    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.times: list[Mapping[str, Any]] = []
        self.told: list[str] = []

    def metrics(self, record: Mapping[str, Any]) -> None:
        self.lines.append(record)

    def timings(self, record: Mapping[str, Any]) -> None:
        self.times.append(record)

    def sync(self) -> Mapping[str, int]:
        return {"metrics": len(self.lines)}


def make(
    folder: Path,
    recipe: TrainRecipe,
    *,
    stop: StopRequest | None = None,
    faults: Faults | None = None,
    clock: Callable[[], float] | None = None,
    poison: int | None = None,
    dropout: float = 0.2,
    measured: Callable[[int], Mapping[str, float]] | None = None,
) -> tuple[Loop, Notes, Learner]:
    learner, notes, checkpoints = (
        Learner(recipe, poison=poison, dropout=dropout),
        Notes(),
        Checkpoints(folder, keep=2, warn=print),
    )

    def evaluate(step: int) -> Mapping[str, float]:
        return {"loss": float((learner.model(learner.x) - learner.y).square().mean())}

    ticks = iter(range(10**9))
    loop = Loop(
        learner,
        recipe,
        plan=Alone(),
        evaluate=measured or evaluate,
        minimise=True,
        checkpoints=checkpoints,
        record=notes,
        stop=stop or StopRequest(),
        compiling=Compiling(learner.model, wanted=False, tell=print),
        faults=faults or Faults(),
        clock=clock or (lambda: float(next(ticks))),
        tell=notes.told.append,
    )
    return loop, notes, learner


def recipe(**changes: Any) -> TrainRecipe:
    return TrainRecipe(
        **{
            "steps": 20,
            "batch": 5,
            "checkpoint_every": 3,
            "optimizer": "adamw",
            "learning_rate": 0.01,
            **changes,
        }
    )


def final(folder: Path, step: int = 20) -> tuple[str, str]:
    path = folder / f"step-{step:08d}"
    return sha256(path / "model.safetensors"), sha256(path / "optimizer.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd", "rmsprop", "adam"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_run_stopped_at_any_step_ends_with_the_same_bytes(
    tmp_path: Path, optimizer: str, micro_batch: int | None
) -> None:
    how = recipe(optimizer=optimizer, micro_batch=micro_batch)
    whole, notes, _ = make(tmp_path / "whole", how)
    whole.run()
    for step in range(1, 20, 1 if optimizer == "adamw" else 6):
        folder, stop = tmp_path / f"{step}", StopRequest()
        first, before, _ = make(
            folder,
            how,
            stop=stop,
            faults=Faults({("before-optimizer", step - 1, 0): lambda s=stop: s.ask("test")}),
        )
        with pytest.raises(Stopped, match=f"step {step}; saved"):
            first.run()
        again, after, _ = make(folder, how)
        checkpoint = again.checkpoints.newest()
        assert checkpoint is not None and checkpoint.step == step
        again.run(checkpoint)
        assert final(folder) == final(tmp_path / "whole")
        kept = before.lines[: checkpoint.state["progress"]["logs"]["metrics"]]
        assert kept + after.lines == notes.lines


def test_what_was_done_after_the_last_checkpoint_is_done_again_the_same(tmp_path: Path) -> None:
    """A process that dies between checkpoints loses time, not bytes."""
    make(tmp_path / "whole", recipe())[0].run()

    def die() -> None:
        raise KeyboardInterrupt

    for point in ("step", "before-optimizer", "before-save", "after-save", "evaluate"):
        folder = tmp_path / point
        at = 12 if point in ("before-save", "after-save", "evaluate") else 13
        with pytest.raises(KeyboardInterrupt):
            make(folder, recipe(), faults=Faults({(point, at, 0): die}))[0].run()
        again = make(folder, recipe())[0]
        again.run(again.checkpoints.newest())
        assert final(folder) == final(tmp_path / "whole")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_any_split_of_a_batch_gives_the_same_gradient(batch: int, micro_batch: int) -> None:
    def gradient(micro: int | None) -> list[Tensor]:
        loop, _, learner = make(Path("unused"), recipe(batch=batch, micro_batch=micro), dropout=0.0)
        learner.model.double()
        learner.x, learner.y = learner.x.double(), learner.y.double()
        loop._gradients.add(3, learner.batches(3, 0, 1))
        return [p.grad for p in learner.model.parameters() if p.grad is not None]

    for whole, split in zip(gradient(None), gradient(min(micro_batch, batch)), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-12, atol=1e-14)


def test_the_gradient_is_that_of_the_mean_loss(tmp_path: Path) -> None:
    loop, _, learner = make(tmp_path, recipe(batch=8, micro_batch=3), dropout=0.0)
    computed = loop._gradients.add(0, learner.batches(0, 0, 1))
    got = [p.grad.clone() for p in learner.model.parameters() if p.grad is not None]
    learner.model.zero_grad()
    expected = (learner.model(learner.x[:8]) - learner.y[:8]).square().mean()
    expected.backward()
    assert computed.loss == pytest.approx(float(expected.detach()), rel=1e-6) and computed.tokens == 8
    for mine, parameter in zip(got, learner.model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


@pytest.mark.parametrize(
    "budget", [{"steps": 7}, {"steps": None, "tokens": 33}, {"steps": None, "minutes": 0.5}]
)
def test_the_run_ends_on_its_budget(tmp_path: Path, budget: dict[str, Any]) -> None:
    progress = make(tmp_path, recipe(**budget))[0].run()
    if budget.get("steps"):
        assert progress.step == 7
    elif budget.get("tokens"):
        assert progress.tokens == 35  # the first step that reaches 33, in batches of 5
    else:
        assert 30.0 <= progress.seconds < 45.0  # each reading of this clock is one second


def test_a_budget_of_minutes_counts_the_time_before_a_resume(tmp_path: Path) -> None:
    stop, how = StopRequest(), recipe(steps=None, minutes=1.0)
    with pytest.raises(Stopped):
        make(tmp_path, how, stop=stop, faults=Faults({("step", 4, 0): lambda: stop.ask("test")}))[0].run()
    again = make(tmp_path, how)[0]
    checkpoint = again.checkpoints.newest()
    assert checkpoint is not None
    progress = again.run(checkpoint)
    assert checkpoint.state["progress"]["seconds"] > 0
    assert 60.0 <= progress.seconds < 75.0


def test_a_number_that_is_none_never_reaches_the_optimizer(tmp_path: Path) -> None:
    loop, notes, learner = make(tmp_path, recipe(), poison=5)
    weights: list[Tensor] = []
    loop._faults = Faults(
        {("step", 5, 0): lambda: weights.extend(p.detach().clone() for p in learner.model.parameters())}
    )
    with pytest.raises(NonFiniteError, match="loss of step 6 is not finite") as error:
        loop.run()
    assert error.value.where == '[{"rows": 5, "loss": "nan"}]'
    for before, after in zip(weights, learner.model.parameters(), strict=True):
        assert torch.equal(before, after)
    assert notes.lines[-1]["kind"] == "non-finite" and notes.lines[-1]["loss"] == "nan"
    assert loop.checkpoints.steps() == [3]
    assert notes.told[-1].startswith("the loss of step 6 is not finite")


def test_early_stopping_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    values = iter([3.0, 2.0, 1.0, 1.5, math.nan, 1.2, 0.5])
    loop, _, _ = make(
        tmp_path, recipe(patience=3, evaluate_every=2, keep=2), measured=lambda step: {"loss": next(values)}
    )
    progress = loop.run()
    assert (progress.step, progress.best_step, progress.best) == (12, 6, 1.0)
    assert 6 in loop.checkpoints.steps()


def test_evaluations_are_spread_over_the_budget(tmp_path: Path) -> None:
    _, notes, _ = loop, notes, _ = make(tmp_path, recipe(steps=40))
    loop.run()
    assert [line["step"] for line in notes.lines if line["kind"] == "evaluation"] == list(range(4, 41, 4))


def test_what_is_logged_is_what_happened(tmp_path: Path) -> None:
    loop, notes, learner = make(tmp_path, recipe(steps=4))
    progress: Progress = loop.run()
    trained = [line for line in notes.lines if line["kind"] == "train"]
    assert [line["tokens"] for line in trained] == [5, 10, 15, 20]
    assert progress.flops == sum(
        learner.flops(batch) for step in range(4) for batch in learner.batches(step, 0, 1)
    )
    assert all(time["tokens"] == 5 for time in notes.times if time["kind"] == "train")
    assert not any("seconds" in line for line in notes.lines)


def test_other_threads_may_run_the_loop(tmp_path: Path) -> None:
    """Signals belong to the main thread; a notebook's worker thread trains all the same."""
    done: list[int] = []

    def work() -> None:
        with StopRequest().listening():
            done.append(make(tmp_path, recipe(steps=2))[0].run().step)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [2]
