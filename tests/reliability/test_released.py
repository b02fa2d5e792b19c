"""What every released version wrote still loads, goes on, evaluates and reports; a later format says so in one line.

The fixtures come from tools/make_released.py and are never written again.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luban
from luban.console import Show
from luban.data.prepare import Prepared
from luban.durable import MANIFEST, verify_folder
from luban.errors import LubanError
from luban.evaluation.report import write_report
from luban.signals import StopRequest
from luban.training.checkpoints import Checkpoints
from luban.verbs.evaluate import evaluate
from luban.verbs.predict import predict
from luban.verbs.train import Tools, train

RELEASED = Path(__file__).parents[1] / "fixtures" / "released"
VERSIONS = sorted(path.name for path in RELEASED.iterdir() if not path.name.startswith("."))
# Nats per token. Other processors and other versions of torch add up in another order; a dozen tiny steps stay this
# close, while a wrong optimizer state, batch or rate is a hundred times as far.
CLOSE = 2e-4


@pytest.fixture
def runs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a version's runs, as the working folder: their sources are named relative."""
    shutil.copytree(RELEASED / request.param, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


every_version = pytest.mark.parametrize("runs", VERSIONS, indirect=True)


def losses(run: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {(line["kind"], line["step"]): line["loss"] for line in lines}


def test_this_version_has_its_fixtures() -> None:
    assert luban.__version__ in VERSIONS, "python tools/make_released.py"


@pytest.mark.parametrize("version", VERSIONS)
def test_fixtures_are_whole_and_name_no_machine(version: str) -> None:
    for run in ("finished", "stopped"):
        folder = RELEASED / version / run
        for manifest in folder.rglob(MANIFEST):
            verify_folder(manifest.parent)
        assert not (folder / ".lock").exists()
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 150_000
        for settings in folder.rglob("*.json"):
            assert str(Path.home()) not in settings.read_text("utf-8")
            assert (
                '"/' not in settings.read_text("utf-8").replace('"/": ', "")
                or settings.name == "tokenizer.json"
            )


@every_version
def test_a_finished_run_answers_and_is_measured_as_it_was(runs: Path) -> None:
    then = json.loads((runs / "finished" / "evaluation.json").read_text("utf-8"))
    now = evaluate("finished", bootstrap=0).as_json()
    assert now["counts"] == then["counts"]
    for name, figure in then["metrics"].items():
        assert now["metrics"][name]["value"] == pytest.approx(figure["value"], rel=CLOSE)
    answers = list(predict("finished", ["the king", "春"], max_tokens=4, temperature=0))
    assert [set(answer) for answer in answers] == [{"row", "prompt", "text"}] * 2
    assert train(resume="finished").result["status"] == "done"
    page = write_report(runs / "finished").read_text("utf-8")
    assert "could not be read" not in page


@every_version
def test_a_stopped_run_goes_on_to_the_end_the_finished_one_came_to(runs: Path) -> None:
    before = losses(runs / "stopped")
    outcome = train(resume="stopped")
    assert outcome.result["status"] == "done" and outcome.result["steps"] == 12
    found, expected = losses(runs / "stopped"), losses(runs / "finished")
    assert found.keys() == expected.keys() and before.keys() < found.keys()
    for place, loss in expected.items():
        assert found[place] == pytest.approx(loss, abs=CLOSE), place
    assert evaluate("stopped", bootstrap=0).as_json()["metrics"]["loss"]["value"] == pytest.approx(
        json.loads((runs / "finished" / "evaluation.json").read_text("utf-8"))["metrics"]["loss"]["value"],
        abs=CLOSE,
    )
    assert (runs / "stopped" / "report.html").is_file()


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file, and the manifest beside it, as a later version would have written both."""
    import hashlib

    value = json.loads(path.read_text("utf-8"))
    data = json.dumps(change(value)).encode("utf-8")
    path.write_bytes(data)
    manifest = path.parent / MANIFEST
    if path != manifest and manifest.is_file():
        described = json.loads(manifest.read_text("utf-8"))
        described["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest.write_text(json.dumps(described))


def resume() -> object:
    return train(resume="stopped", tools=Tools(Show(quiet=True), StopRequest()))


LATER: dict[str, tuple[str, Callable[[Any], Any], Callable[[], object], str]] = {
    "a checkpoint": (
        "stopped/checkpoints/step-00000007/manifest.json",
        lambda value: {**value, "format": 2},
        lambda: Checkpoints(Path("stopped/checkpoints"), keep=2, warn=lambda _: None).load(7),
        "format",
    ),
    "a model folder": (
        "finished/model/luban.json",
        lambda value: {**value, "format": 2},
        lambda: luban.load("finished"),
        "format 2",
    ),
    "a model family": (
        "finished/model/config.json",
        lambda value: {**value, "model_type": "qwen9"},
        lambda: luban.load("finished"),
        "model_type",
    ),
    "prepared data": (
        "finished/data/train.json",
        lambda value: {**value, "dtype": "uint64"},
        lambda: Prepared("finished/data"),
        "dtype",
    ),
    "a recipe": (
        "stopped/recipe.json",
        lambda value: {**value, "train": {**value["train"], "telepathy": True}},
        resume,
        "train.telepathy",
    ),
    "a task": ("stopped/recipe.json", lambda value: {**value, "task": "poetry"}, resume, "task"),
}


@every_version
@pytest.mark.parametrize("name", LATER)
def test_a_later_format_is_one_line(name: str, runs: Path) -> None:
    file, change, use, reason = LATER[name]
    edit(runs / file, change)
    with pytest.raises(LubanError) as caught:
        use()
    assert reason in str(caught.value) and "\n" not in caught.value.message
