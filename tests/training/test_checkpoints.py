"""Checkpoints: what is kept, what is needed, what is passed over. tests/reliability damages them in every way."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luban.errors import CheckpointError, StorageError
from luban.recipe import TrainRecipe
from luban.training.checkpoints import Checkpoint, Checkpoints, bytes_needed, check_space
from luban.training.optimizers import build_optimizer


def checkpoints(folder: Path, said: list[str] | None = None, **options: Any) -> Checkpoints:
    return Checkpoints(folder, keep=2, warn=(said if said is not None else []).append, **options)


def at(step: int) -> Checkpoint:
    state = {"progress": {"step": step, "logs": {"metrics": 0}}, "optimizer": {}, "compile": {}}
    return Checkpoint(step, {"w": torch.full((3,), step)}, {"w.m": torch.ones(3)}, state)


def test_the_newest_two_and_the_best_stay(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path / "checkpoints")
    for step in (2, 10, 9, 100_000_000, 100_000_001):
        kept.save(at(step), best=9 if step >= 9 else None)
    assert kept.steps() == [9, 100_000_000, 100_000_001]
    assert [int(kept.load(step).model["w"][0]) for step in kept.steps()] == [9, 100_000_000, 100_000_001]


def test_a_new_one_that_is_not_whole_costs_no_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        kept.save(at(step))

    def torn(folder: Path) -> None:
        raise CheckpointError(f"{folder} is torn")

    monkeypatch.setattr("luban.training.checkpoints.verify_folder", torn)
    with pytest.raises(CheckpointError):
        kept.save(at(3))
    monkeypatch.undo()
    assert {1, 2} <= set(kept.steps())


def test_of_several_processes_one_sets_damaged_ones_aside(tmp_path: Path) -> None:
    said = list[str]()
    kept = checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        kept.save(at(step))
    (kept.path(2) / "state.json").write_text("{}")
    for first in (False, True):
        found = checkpoints(kept.folder, said, sets_aside=first).newest()
        assert found is not None and found.step == 1
        assert kept.path(2).exists() != first
    assert (kept.folder / "damaged-step-00000002").is_dir()
    assert len(said) == 2 and "step 2" in said[0]


def test_a_best_one_that_is_gone_is_said(tmp_path: Path) -> None:
    said = list[str]()
    kept = checkpoints(tmp_path / "checkpoints", said)
    kept.save(at(1))
    best = kept.best(1)
    assert best is not None and best.step == 1 and not said
    shutil.rmtree(kept.path(1))
    assert kept.best(1) is None
    assert "of step 1" in said[0]


@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam", "adamw", "muon"])
def test_the_bytes_of_an_optimizer_are_known_before_its_first_step(kind: str) -> None:
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.LayerNorm(5))
    recipe = TrainRecipe(steps=1, optimizer=kind, learning_rate=1e-3)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, recipe)
    expected = optimizer.state_bytes()
    model(torch.arange(7)).sum().backward()
    optimizer.step()
    held = optimizer.state()[0].values()
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == expected


def test_room_is_checked_with_what_will_be_written_anew(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    folder = tmp_path / "runs" / "new" / "checkpoints"
    check_space(folder, free // 2)
    with pytest.raises(StorageError, match=r"about [\d,]+ bytes are needed, [\d,]+ are free") as caught:
        check_space(folder, free * 2)
    assert str(folder) in str(caught.value)
    assert not folder.exists()
    folder.mkdir(parents=True)
    with (folder / "old").open("wb") as file:
        file.truncate(free * 2)  # a file of holes: its size counts, and it takes no room
    check_space(folder, free * 2)


def test_one_more_than_are_kept_is_needed_while_a_new_one_is_written() -> None:
    one = bytes_needed(10**9, 10**9, keep=3, best=False) - bytes_needed(10**9, 10**9, keep=2, best=False)
    assert one == bytes_needed(10**9, 10**9, keep=2, best=True) - bytes_needed(
        10**9, 10**9, keep=2, best=False
    )
    assert 2 * 10**9 < one < 2.01 * 10**9
