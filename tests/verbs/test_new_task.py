"""A new task is one file: written by a verb, found by its entry point, trained, asked and exported by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luban.errors import InputError
from luban.verbs.new_task import new_task


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a new package, with the metadata by which an installed one is found."""
    folder = new_task("star-rating", tmp_path_factory.mktemp("tasks")).folder
    about = folder / "star_rating-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: star-rating\nVersion: 0.1.0\n", "utf-8")
    (about / "entry_points.txt").write_text("[luban.tasks]\nstar-rating = star_rating:StarRating\n", "utf-8")
    return folder


def _luban(package: Path, *arguments: str) -> str:
    code = f"import sys; sys.path.insert(0, {str(package)!r}); from luban.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_task_is_trained_measured_asked_and_exported_by_name(package: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = _luban(package, "train", str(package / "example.yaml"), "--out", str(run), "--json")
    result = json.loads(told.splitlines()[-1])
    assert result["task"] == "star-rating" and result["primary"]["name"] == "accuracy"
    assert result["primary"]["value"] > 0.9
    measured = json.loads(_luban(package, "evaluate", str(run), "--json").splitlines()[-1])
    assert measured["metrics"]["accuracy"]["value"] == pytest.approx(result["metrics"]["accuracy"])
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"x": -1, "y": 1}\n{"x": "?", "y": 1}\n{"x": 1, "y": -1}\n', "utf-8")
    answers = [
        json.loads(line)
        for line in _luban(package, "predict", str(run), "--input", str(rows), "--json").splitlines()
    ]
    assert [answer.get("label") for answer in answers] == ["above", None, "below"]
    assert answers[1] == {"row": 1, "error": "x is '?'"}
    made = json.loads(
        _luban(package, "export", str(run), "--out", str(tmp_path / "graph"), "--json").splitlines()[-1]
    )
    assert made["parity"]["max_abs"] < 1e-4
    again = _luban(package, "predict", str(tmp_path / "graph"), '{"x": -1, "y": 1}', "--json")
    assert json.loads(again)["label"] == "above"


def test_a_new_task_passes_its_own_test(package: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=package, timeout=300, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Star", "star_rating", "-x", "9lives", "a/b", "class", "tabular"])
def test_names_that_no_task_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        new_task(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_word_of_python_is_refused_for_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a word of Python's own"):
        new_task("class", tmp_path)
