"""What a step does besides forward, backward and optimizer, counted: it depends on nothing that grows.

Every count is the difference between a run of many steps and one of few, so that what a run does once falls out.
"""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from luban.data import windows as windows_module
from luban.data.shards import ShardWriter, TokenShards
from luban.data.windows import Windows
from luban.durable import FileSystem
from luban.run import Run
from luban.training.gradients import Gradients
from luban.training.parallel import Alone
from luban.verbs.records import RunRecord
from toy_learner import Learner, make, recipe

FEW, MANY = 4, 14


class Operations(TorchDispatchMode):
    """Counts the operations of torch that run while nothing of `inside` does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.inside = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.inside:
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def leave_out(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        own = getattr(owner, name)

        def within(*arguments: Any, **named: Any) -> Any:
            self.inside += 1
            try:
                return own(*arguments, **named)
            finally:
                self.inside -= 1

        patch.setattr(owner, name, within)


def counted(tmp_path: Path, steps: int, what: Any, **changes: Any) -> Any:
    """Run the loop for so many steps with one evaluation and one checkpoint, and return what was counted."""
    how = recipe(steps=steps, evaluate_every=1000, checkpoint_every=1000, **changes)
    loop, _, learner = make(tmp_path / f"{steps}", how)
    return what(loop, learner)


@pytest.mark.parametrize("clip", [None, 1e-6])
def test_torch_does_little_for_the_loop(tmp_path: Path, clip: float | None) -> None:
    def operations(loop: Any, learner: Any) -> Counter[str]:
        with Operations() as found, pytest.MonkeyPatch.context() as patch:
            found.leave_out(patch, learner, "loss")
            found.leave_out(patch, learner, "batches")  # torch makes the toy's rows; luban's tasks use numpy
            found.leave_out(patch, torch.Tensor, "backward")
            found.leave_out(patch, loop.optimizer, "step")
            found.leave_out(patch, loop.optimizer, "zero_grad")
            loop.run()
        return found.seen

    few, many = (counted(tmp_path, steps, operations, clip=clip) for steps in (FEW, MANY))
    each = {name: (many[name] - few[name]) / (MANY - FEW) for name in many if many[name] != few[name]}
    norm = {"_foreach_norm", "stack", "linalg_vector_norm"}
    # The loss is divided by its terms; loss and norm become numbers. Nothing is done once for each parameter: a
    # gradient that is too long is shortened where the optimizer reads it.
    assert {name.split(".")[1] for name in each} == {"div", "detach", "_local_scalar_dense"} | norm
    assert sum(each.values()) == len(each) + 1


def test_no_step_walks_the_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[int] = []
    own = nn.Module.named_modules

    def named_modules(*arguments: Any, **named: Any) -> Any:
        walks.append(1)
        return own(*arguments, **named)

    def walked(loop: Any, _: Any) -> int:
        walks.clear()
        loop.run()
        return len(walks)

    monkeypatch.setattr(nn.Module, "named_modules", named_modules)
    few, many = (counted(tmp_path, steps, walked, clip=1e-6, l1=0.01) for steps in (FEW, MANY))
    assert few == many
    list(Learner(recipe()).model.parameters())
    assert len(walks) > many, "a walk would have been noticed"


def test_losses_are_read_once_all_of_a_step_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU waits for its next work whenever a number is read from it."""
    learner, order = Learner(recipe(batch=8, micro_batch=2)), list[str]()
    own = Gradients(learner, Alone(), seed=0, forward=contextlib.nullcontext)
    backward = torch.Tensor.backward

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                order.append("read")
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (order.append("backward"), backward(loss))[1])
    with Reads():
        own.add(0, own.batches(0, None))
        own.combine()
    assert order == ["backward"] * 4 + ["read"] * (4 + 1)


@pytest.mark.parametrize("layers", [1, 12])
def test_the_norm_is_torchs_whatever_the_depth(layers: int) -> None:
    torch.manual_seed(0)
    learner = Learner(recipe())
    learner.model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(layers)))
    own = Gradients(learner, Alone(), seed=0, forward=contextlib.nullcontext)
    learner.model(learner.x).square().sum().backward()
    with Operations() as found:
        norm = own.combine()
    assert found.seen.total() <= 4
    assert norm == float(nn.utils.get_total_norm([p.grad for p in learner.model.parameters()]))


def test_without_gradients_the_norm_is_zero() -> None:
    assert Gradients(Learner(recipe()), Alone(), seed=0, forward=contextlib.nullcontext).combine() == 0.0


class Counting(FileSystem):
    """The disk, with what was asked of it."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def open_append(self, path: Path) -> BinaryIO:
        self.asked[f"open {path.name}"] += 1
        return super().open_append(path)

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        self.asked["write"] += 1
        super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        self.asked["sync"] += 1
        super().sync(file)


def test_a_step_is_one_line_in_each_log_and_waits_for_no_disk(tmp_path: Path) -> None:
    def asked(loop: Any, _: Any) -> Counter[str]:
        disk = Counting()
        folder = tmp_path / f"run-{loop.recipe.steps}"
        folder.mkdir()
        loop._record = RunRecord(Run(folder, disk), (), 1e9)
        loop.run()
        return disk.asked

    few, many = (counted(tmp_path, steps, asked) for steps in (FEW, MANY))
    steps = MANY - FEW
    assert many - few == {"write": 2 * steps}  # the files stay open
    assert many["sync"] == few["sync"] > 0


def test_the_order_of_windows_is_computed_for_a_thousand_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ShardWriter(tmp_path, "train", vocab_size=50, end_id=0)
    writer.add(np.arange(1, 40_000) % 49 + 1, bytes=1, characters=1)
    writer.close()
    windows = Windows(TokenShards(tmp_path, "train"), length=8, seed=0)
    calls, own = [], windows_module.shuffled
    monkeypatch.setattr(windows_module, "shuffled", lambda *given: calls.append(1) or own(*given))
    for step in range(256):
        windows.batch(8 * step, 8)
    assert len(calls) == 2
