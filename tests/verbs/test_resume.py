"""`luban resume`: it says what it goes on with, and repeats the reason where going on cannot help."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luban import cli
from luban.console import Show
from luban.durable import sha256
from luban.errors import InputError, LubanError, NonFiniteError, Stopped
from luban.run import Run
from luban.signals import StopRequest
from luban.training.faults import Faults
from luban.verbs.resume import resume
from luban.verbs.train import Tools, train

SAME = ("model/model.safetensors", "metrics.jsonl", "samples.jsonl", "evaluation.json")


def tools(**changes: Any) -> Tools:
    return Tools(changes.pop("show", Show(quiet=True)), changes.pop("stop", StopRequest()), **changes)


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["luban", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


@pytest.fixture(scope="module")
def stopped_once(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    stop, folder = StopRequest(), tmp_path_factory.mktemp("stopped") / "run"
    faults = Faults({("step", 5, 0): lambda: stop.ask("SIGTERM")})
    with pytest.raises(Stopped):
        train(small, out=folder, tools=tools(stop=stop, faults=faults))
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A run that a signal stopped at step 6; a copy of it, which is as good."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def test_it_goes_on_from_the_newest_whole_checkpoint_to_the_same_bytes(
    stopped: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("resume", str(stopped), "--json", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr()
    assert f"{stopped}: was stopped; safe is the checkpoint of step 6, every byte verified" in shown.err
    told = json.loads(shown.out)
    assert (told["status"], told["steps"], told["run"]) == ("done", 12, str(stopped))
    assert all(sha256(stopped / name) == sha256(finished / name) for name in SAME)


def test_a_finished_run_says_so_and_is_left_as_it_is(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert call("resume", str(run), "--json", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr()
    assert f"{run} is finished; there is nothing left to do" in shown.err
    assert json.loads(shown.out)["steps"] == 12
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_live_run_names_who_holds_it(stopped: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with Run(stopped).lock():
            os.write(writing, b"x")
            time.sleep(60)  # the parent does not wait for it
        os._exit(0)
    try:
        assert os.read(reading, 1) == b"x"
        with pytest.raises(InputError, match=rf"is live at step 6: process {child} on .* holds it"):
            resume(stopped, tools=tools())
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_run_that_would_fail_the_same_way_repeats_the_reason_and_says_what_helps(
    small: dict[str, Any], tmp_path: Path
) -> None:
    """Found by doing it: a rate far too high, until the loss is not finite."""
    wild = {**small, "train": {**small["train"], "optimizer": "sgd", "learning_rate": 1e30, "clip": None}}
    with pytest.raises(NonFiniteError) as first:
        train(wild, out=tmp_path / "run")
    with pytest.raises(InputError) as again:
        resume(tmp_path / "run", tools=tools())
    assert first.value.message in again.value.message
    assert "end the same way" in again.value.message
    assert again.value.fix is not None
    command = again.value.fix.partition("for instance: ")[2].split()
    assert command[:2] == ["luban", "train"]
    # The command is one that works, where what it changes is the mending.
    run = train(
        command[2],
        *command[3:-2],
        "train.learning_rate=0.003",
        "train.optimizer=muon",
        out=command[-1],
    )
    assert run.result["steps"] == 12


def test_changed_data_is_told_with_what_changed(stopped: Path, small: dict[str, Any], tmp_path: Path) -> None:
    recipe = json.loads((stopped / "recipe.json").read_text("utf-8"))
    changed = tmp_path / "stories.jsonl"
    text = Path(small["data"]["source"]).read_text("utf-8")
    changed.write_text(text + '{"text": "one more of them"}\n', "utf-8")
    recipe["data"]["source"] = str(changed)
    (stopped / "recipe.json").write_text(json.dumps(recipe), "utf-8")
    for _ in range(2):
        with pytest.raises(InputError, match=r"the data changed since the run began: stories\.jsonl"):
            resume(stopped, tools=tools())
    changed.write_text(text, "utf-8")
    assert resume(stopped, tools=tools()).result["steps"] == 12


def test_a_damaged_run_says_what_is_damaged_and_a_folder_that_is_none(stopped: Path, tmp_path: Path) -> None:
    for step in (stopped / "checkpoints").iterdir():
        (step / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(LubanError, match="no checkpoint is whole") as damaged:
        resume(stopped, tools=tools())
    assert damaged.value.fix is not None and "backup" in damaged.value.fix
    with pytest.raises(InputError, match="no run to go on with"):
        resume(tmp_path / "nothing", tools=tools())
