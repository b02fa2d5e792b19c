"""A rehearsal changes nothing: not the weights, not the folder, not what the run then does."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from luban import tasks
from luban.durable import DISK
from luban.errors import Stopped, StorageError
from luban.planning.rehearsal import rehearse
from luban.recipe_reader import read_recipe
from luban.signals import StopRequest
from luban.tasks import language_model
from luban.tasks.base import Task


@pytest.fixture(scope="module")
def task(text_for_planning: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    recipe = read_recipe(
        {
            "data": {
                "source": str(text_for_planning),
                "vocab_size": 300,
                "length": 16,
                "validation_fraction": 0.2,
            },
            "model": {"layers": 1, "width": 16, "heads": 2, "dropout": 0.1},
            "train": {"steps": 9, "batch": 4, "learning_rate": 0.01},
            "evaluate": {"sample_tokens": 4},
        },
        (),
        tasks.schema_of,
    )
    kind = tasks.find(recipe.task)
    folder = tmp_path_factory.mktemp("prepared") / "data"
    return kind(recipe, kind.prepare(recipe, folder, stop=lambda: None, progress=lambda *_: None))


def run(task: Task, folder: Path, **more: Any) -> Any:
    settings = task.settings.train  # type: ignore[attr-defined]
    options = {"dtype": torch.float32, "stop": StopRequest(), "fs": DISK} | more
    return rehearse(task, settings, folder, **options)


def test_weights_and_folder_are_as_before_and_the_parts_are_priced(task: Task, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    found = run(task, tmp_path)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(before[name], tensor) for name, tensor in task.model.state_dict().items())
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert found.step_tokens == 4 * 16
    assert found.step_flops == sum(task.flops(batch) for batch in task.batches(0, 0, 1))
    assert (
        min(found.step_seconds, found.evaluation_seconds, found.final_seconds, found.checkpoint_seconds) > 0
    )
    weights = sum(p.numel() * 4 for p in task.model.parameters())
    assert 2 * weights < found.checkpoint_bytes < 4 * weights + 20_000
    assert found.peak_bytes > 10_000_000


def test_a_whole_step_is_rehearsed_and_not_one_of_the_short_ones(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(task, "short_steps", 6)
    whole = task.batches

    def batches(step: int, *share: int) -> Any:
        asked.append(step)
        return whole(step, *share)

    monkeypatch.setattr(task, "batches", batches)
    assert run(task, tmp_path).step_tokens == 4 * 16
    assert [step for step in asked if step < 6] == [0]  # one, whose operations are counted


def test_what_was_left_out_of_an_evaluation_is_priced_in(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "rehearse_quick", lambda: time.sleep(0.2) or 0.25)
    assert 0.8 <= run(task, tmp_path).evaluation_seconds < 1.6


@pytest.mark.parametrize("limit", [256, 1_000, 1 << 20])
def test_the_share_of_the_quick_evaluation_is_that_of_its_tokens(
    task: Any, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "QUICK_TOKENS", limit)
    part, whole = (
        sum(task._measure(limit=limit, stop=lambda: None, thinned=thinned).tokens.values())
        for thinned in (4, 1)
    )
    assert task.rehearse_quick() == pytest.approx(part / whole, rel=0.15)


def test_one_of_several_processes_rehearses_its_share(task: Task, tmp_path: Path) -> None:
    shares: list[tuple[int, int]] = []
    whole = task.batches

    def batches(step: int, rank: int, ranks: int, *size: int) -> Any:
        shares.append((rank, ranks))
        return whole(step, rank, ranks, *size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "batches", batches)
        run(task, tmp_path, ranks=2)
    assert (0, 2) in shares


def test_a_signal_ends_it_before_the_first_step(task: Task, tmp_path: Path) -> None:
    stop = StopRequest()
    stop.ask("SIGTERM")
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    with pytest.raises(Stopped, match="before step 1"):
        run(task, tmp_path, stop=stop)
    assert all(torch.equal(before[name], tensor) for name, tensor in task.model.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_shows_now(task: Task, tmp_path: Path) -> None:
    class Full(type(DISK)):  # type: ignore[misc]
        def write(self, file: Any, data: Any) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="bytes free"):
        run(task, tmp_path, fs=Full())
    assert not list(tmp_path.iterdir())
