"""The loop, on a small model that is no language model: it knows no task."""

import dataclasses
import math
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from luban.errors import NonFiniteError, Stopped
from luban.signals import StopRequest
from luban.training.faults import Faults
from luban.training.loop import Progress
from luban.training.parallel import Alone
from toy_learner import final, make, recipe


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


def scripted(step: int) -> Mapping[str, float]:
    """Figures that get better, worse, better again and then stay: a pure function of the step, as real ones are."""
    return {"loss": {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1, 10: 1.0, 12: math.nan}.get(step, 1.5)}


OPTIONS: dict[str, dict[str, Any]] = {
    "epochs": {"steps": None, "epochs": 4.1},
    "l1": {"l1": 0.01, "optimizer": "muon"},
    "plateau": {"schedule": "plateau", "plateau_patience": 2, "warmup": 0.2},
    "target": {"target": 1.0},
    "keep_best": {"keep_best": True},
    "everything": {
        "keep_best": True,
        "patience": 5,
        "schedule": "plateau",
        "plateau_patience": 1,
        "l1": 0.001,
    },
    "freeze": {"freeze": ["1.*", "0.bias"]},
    "groups": {
        "groups": [{"match": "0.*", "rate": 0.1, "weight_decay": 0.5}, {"match": "*bias"}],
        "optimizer": "muon",
    },
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_resumed_to_the_same_bytes(tmp_path: Path, option: str) -> None:
    """Stopped and saved, or dead at once with whatever the last checkpoint had."""
    how = recipe(evaluate_every=2, **OPTIONS[option])
    whole, notes, _ = make(tmp_path / "whole", how, norm=True, measured=scripted)
    end = whole.run()
    assert end.step == (10 if option == "target" else 20)

    def die() -> None:
        raise KeyboardInterrupt

    points = [("before-optimizer", 3), ("evaluate", 8), ("step", 9), ("after-save", 9)]
    for point, step in points + ([("evaluate", 14), ("before-optimizer", 17)] if end.step > 17 else []):
        for dies in (True, False):
            folder, stop = tmp_path / f"{point}-{step}-{dies}", StopRequest()
            fault = Faults({(point, step, 0): die if dies else lambda s=stop: s.ask("test")})
            first, before, _ = make(folder, how, norm=True, measured=scripted, stop=stop, faults=fault)
            with pytest.raises((Stopped, KeyboardInterrupt)):
                first.run()
            again, after, _ = make(folder, how, norm=True, measured=scripted)
            checkpoint = again.checkpoints.newest()
            assert checkpoint is not None
            progress = again.run(checkpoint)
            assert final(folder, end.step) == final(tmp_path / "whole", end.step)
            assert (
                before.lines[: checkpoint.state["progress"]["logs"]["metrics"]] + after.lines == notes.lines
            )
            assert again.checkpoints.steps() == whole.checkpoints.steps()
            mine, theirs = ({**vars(p), "seconds": 0, "logs": {}} for p in (progress, end))
            assert mine == theirs


def test_a_checkpoint_from_before_an_option_goes_on_without_it(tmp_path: Path) -> None:
    """State that a later version added is missing in what an earlier one wrote."""
    make(tmp_path / "whole", recipe())[0].run()
    stop = StopRequest()
    with pytest.raises(Stopped):
        make(
            tmp_path / "old", recipe(), stop=stop, faults=Faults({("step", 7, 0): lambda: stop.ask("test")})
        )[0].run()
    again = make(tmp_path / "old", recipe())[0]
    checkpoint = again.checkpoints.newest()
    assert checkpoint is not None
    progress = {name: value for name, value in checkpoint.state["progress"].items() if name != "plateau"}
    again.run(dataclasses.replace(checkpoint, state={**checkpoint.state, "progress": progress}))
    assert final(tmp_path / "old") == final(tmp_path / "whole")


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


@pytest.mark.parametrize(("keep_best", "kept"), [(True, [6, 11, 12]), (False, [11, 12])])
def test_the_best_checkpoint_is_kept_without_stopping_early(
    tmp_path: Path, keep_best: bool, kept: list[int]
) -> None:
    values = iter([3.0, 2.0, 1.0, 1.5, 1.5, 1.5])
    how = recipe(steps=12, keep_best=keep_best, evaluate_every=2, checkpoint_every=1)
    loop, _, learner = make(tmp_path, how, measured=lambda step: {"loss": next(values)})
    weights: list[Tensor] = []
    loop._faults = Faults({("step", 6, 0): lambda: weights.append(learner.model[0].weight.detach().clone())})
    progress = loop.run()
    assert (progress.step, progress.best_step, progress.stopped_early) == (12, 6, False)
    assert loop.checkpoints.steps() == kept
    if keep_best:
        best = loop.checkpoints.best(6)
        assert best is not None and torch.equal(best.model["0.weight"], weights[0])


@pytest.mark.parametrize(
    ("minimise", "target", "steps"), [(True, 0.5, 8), (True, 0.4, 20), (False, 0.8, 2), (False, 0.9, 4)]
)
def test_a_run_ends_when_it_reaches_its_target(
    tmp_path: Path, minimise: bool, target: float, steps: int
) -> None:
    measured = {2: 0.8, 4: 0.9, 6: math.nan, 8: 0.5}
    loop, _, _ = make(
        tmp_path,
        recipe(target=target, evaluate_every=2),
        measured=lambda step: {"figure": measured.get(step, 0.6), "loss": 0.0},
    )
    loop._minimise = minimise
    progress = loop.run()
    assert progress.step == steps and progress.stopped_early is (steps < 20)
    assert loop.checkpoints.steps()[-1] == steps


def test_a_plateau_brings_the_rate_down(tmp_path: Path) -> None:
    """Counted by hand: two in a row no better at 6 and 8, better at 10, NaN is no better, two more at 12 and 14."""
    how = recipe(
        schedule="plateau",
        plateau_patience=2,
        plateau_factor=0.1,
        warmup=0.0,
        evaluate_every=2,
        learning_rate=1.0,
    )
    loop, notes, _ = make(tmp_path, how, measured=scripted)
    progress = loop.run()
    rates = [line["learning_rate"] for line in notes.lines if line["kind"] == "train"]
    expected = [1.0] * 8 + [0.1] * 6 + [0.01] * 4 + [0.001] * 2
    assert rates == pytest.approx(expected)
    assert progress.plateau == pytest.approx(0.001) and progress.worse == 5


def test_a_budget_of_epochs_ends_and_evaluates_by_the_data(tmp_path: Path) -> None:
    loop, notes, _ = make(tmp_path, recipe(steps=None, epochs=2, batch=6, schedule="linear", warmup=0.0))
    assert loop.run().step == 8
    trained = [line for line in notes.lines if line["kind"] == "train"]
    assert trained[-1]["epoch"] == 2.0
    assert [line["learning_rate"] for line in trained] == pytest.approx(
        [0.01 * (1 - n / 8) for n in range(8)]
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_what_is_frozen_keeps_its_bytes_and_its_statistics(tmp_path: Path, optimizer: str) -> None:
    how = recipe(freeze=["0.*", "1.*"], optimizer=optimizer, weight_decay=0.5, l1=0.1)
    loop, _, learner = make(tmp_path, how, norm=True)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    loop.run()
    same = {name for name, tensor in learner.model.state_dict().items() if torch.equal(tensor, before[name])}
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert same == {"0.weight", "0.bias", "1.weight", "1.bias", *statistics}
    assert not any(name.startswith(("0.", "1.")) for name in loop.optimizer.state()[0])
    assert learner.model.training and not learner.model[1].training
    # What is not frozen does learn from data, also where a part of the norm is frozen.
    loop, _, learner = make(tmp_path / "part", recipe(freeze=["1.weight"]), norm=True)
    loop.run()
    assert not torch.equal(learner.model[1].running_mean, before["1.running_mean"])


def test_ranks_judge_by_the_figure_of_the_first(tmp_path: Path) -> None:
    """What they measure may differ, by rounding or a norm's statistics; to stop or not they must decide alike."""

    class Second(Alone):
        rank, ranks = 1, 2

        def sum(self, values: Iterable[float]) -> list[float]:
            return [value + 0.25 for value in values]

    loop, _, _ = make(tmp_path, recipe(target=0.3), measured=lambda step: {"loss": 9.0})
    loop.plan = Second()
    assert loop.evaluate() == {"loss": 9.0}
    assert loop.progress.best == 0.25 and loop.progress.stopped_early


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
