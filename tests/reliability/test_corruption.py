"""Damage is found, said and passed over; what was saved outlives a power cut; clocks change nothing."""

import shutil
from pathlib import Path

import corruption
import power
import pytest
import toy

from faulty_disk import watching
from luban import durable
from luban.errors import CheckpointError
from luban.run import Log, Run


def test_damage_power_cuts_and_wrong_clocks(tmp_path: Path) -> None:
    outcomes = corruption.sweep(tmp_path, count=100, seed=0)
    assert [key for key in outcomes if key.startswith("BROKEN")] == []
    assert outcomes.total() == 100
    assert {key.partition(":")[0] for key in outcomes} == set(corruption.SHARES)


@pytest.mark.parametrize("careless", [None, "names of logs", "new parents", "bytes"])
def test_a_missing_fsync_would_be_noticed(
    careless: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model of a disk loses what a careless writer does not fsync, and nothing that luban says is saved."""
    device, path, log = power.Device(tmp_path), tmp_path / "a" / "b" / "new", Log(tmp_path / "log")
    if careless == "names of logs":
        log._named = True
    if careless == "new parents":
        monkeypatch.setattr(durable, "make_folders", lambda new, fs: new.mkdir(parents=True))
    if careless == "bytes":
        monkeypatch.setattr(durable, "_seal", lambda *_: None)
    with watching(device):
        with durable.new_folder(path) as new:
            (new / "weights").write_bytes(b"weights")
        log.append({"step": 1})
        log.sync()
    image = device.cut(None)
    named = image.get("log") == b'{"step": 1}\n'
    whole = image.get("a/b/new/weights") == b"weights" and f"a/b/new/{durable.MANIFEST}" in image
    assert (named, whole) == (careless != "names of logs", careless not in ("new parents", "bytes"))


def test_checkpoints_that_are_gone_are_missed(tmp_path: Path) -> None:
    """A run that wrote checkpoints does not start over because somebody moved them, and its logs stay."""
    toy.go_on(tmp_path / "run", toy.settings())
    shutil.move(tmp_path / "run" / "checkpoints", tmp_path / "elsewhere")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="none is in"):
        toy.go_on(tmp_path / "run", toy.settings())
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    Run(tmp_path / "new").cut_logs({})
