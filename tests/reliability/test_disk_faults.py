"""A failing disk loses nothing that was saved, and says what is wrong."""

import contextlib
import itertools
import json
import re
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import disk_faults
import pytest
import toy

from faulty_disk import watching
from luban import cli, durable, tasks
from luban.errors import StorageError
from luban.verbs import train as verb


def test_no_fault_of_the_disk_loses_a_checkpoint_or_changes_a_run(tmp_path: Path) -> None:
    outcomes = disk_faults.sweep(tmp_path, count=40, seed=0)
    assert [key for key in outcomes if key.startswith("BROKEN")] == []
    assert outcomes.total() == 40


def test_a_fault_that_is_swallowed_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = durable.write_file

    def careless(*arguments: object, **options: object) -> None:
        try:
            write(*arguments, **options)  # type: ignore[arg-type]
        except StorageError:
            return

    monkeypatch.setattr(durable, "write_file", careless)
    outcomes = disk_faults.sweep(tmp_path, count=40, seed=0)
    assert any(key.startswith("BROKEN") for key in outcomes)


def test_the_command_ends_with_one_and_names_file_and_bytes(tmp_path: Path) -> None:
    """A true limit of the system: no file may grow beyond 20,000 bytes, and then it may."""
    recipe, run, said = toy.recipe_file(tmp_path, learning_rate=0.01), tmp_path / "run", tmp_path / "said"

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        sys.argv = ["luban", "train", str(recipe), "--out", str(run)]
        with said.open("w") as sys.stderr:
            try:
                cli.main()
            except SystemExit as ended:
                if ended.code == 1:
                    return
            raise AssertionError

    assert toy.in_child(limited) == 0
    assert re.search(rf"cannot write {run}/\S+: File too large", said.read_text("utf-8"))
    assert not (run / "result.json").exists()
    toy.train(recipe, run)
    assert (run / "result.json").is_file()


def test_a_disk_too_small_for_the_checkpoints_is_refused_before_step_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = toy.recipe_file(tmp_path), tmp_path / "run"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(StorageError, match=r"about [\d,]+ bytes are needed, 100,000 are free") as caught:
        toy.train(recipe, run)
    assert caught.value.fix is not None and re.search(r"free [\d,]+ bytes", caught.value.fix)
    assert caught.value.exit_code == 1
    assert not toy.kept(run) and not (run / "metrics.jsonl").exists()
    monkeypatch.undo()
    toy.train(recipe, run)
    assert (run / "result.json").is_file()


@contextlib.contextmanager
def the_first_is_the_best() -> Iterator[None]:
    """Let every evaluation find the model worse than the one before."""
    task, figure = tasks.find("language-model"), itertools.count()
    plain = task.quick

    def worse(self: Any) -> dict[str, float]:
        return {name: 9.0 + next(figure) for name in plain(self)}

    with mock.patch.object(task, "quick", worse):
        yield


def test_the_disk_fills_to_no_more_than_was_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no operation do checkpoints and model take more than the check before step 1 asked for."""
    asked, most = list[int](), 0
    monkeypatch.setattr(verb, "check_space", lambda folder, needed: asked.append(needed))
    run = tmp_path / "run"

    def hook(when: str, operation: str, arguments: tuple[object, ...]) -> None:
        nonlocal most
        parts = [p for name in ("checkpoints", "model", ".model.*") for p in run.glob(name)]
        most = max(most, sum(p.stat().st_size for part in parts for p in part.rglob("*") if p.is_file()))

    with watching(hook), the_first_is_the_best():
        toy.train(toy.recipe_file(tmp_path), run)
    besides = 4 * (1 << 20)  # what is small, by the estimate: in three checkpoints and the best
    assert asked[0] - besides <= most < asked[0]


def test_a_run_goes_on_and_ends_when_the_best_checkpoint_is_gone(tmp_path: Path) -> None:
    recipe, run, best = toy.recipe_file(tmp_path), tmp_path / "run", 4
    with the_first_is_the_best():
        toy.train(recipe, run)
    assert toy.kept(run) == {best, 9, 10}
    (run / "result.json").unlink()
    shutil.move(run / "checkpoints" / f"step-{best:08d}", tmp_path / "elsewhere")
    toy.train(recipe, run)
    warned = [record["message"] for record in toy.lines(run / "events.jsonl") if record["event"] == "warning"]
    assert any(f"the best checkpoint, of step {best}" in message for message in warned)
    assert json.loads((run / "result.json").read_text())["status"] == "done"
