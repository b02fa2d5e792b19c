"""What a run counts, and whether its model continues text, is what its task says of itself, wherever it is told."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from click.testing import CliRunner

from luban import tasks
from luban.cli import luban
from luban.conformance import write_rows
from luban.evaluation.report import write_report
from luban.evaluation.standing import as_json, standing_of
from luban.tasks.base import Usage
from luban.tasks.tabular import Tabular
from luban.tasks.text_classification import TextClassification, TextClassificationRecipe
from luban.verbs.compare import compare
from luban.verbs.train import train

RELEASED = Path(__file__).parents[1] / "fixtures" / "released" / "0.1.0" / "finished"


class SpeechRecipe(TextClassificationRecipe):
    task: Literal["speech"] = "speech"  # type: ignore[assignment]


class Speech(TextClassification):
    """A task of somebody else's that counts tokens and continues no text."""

    name: ClassVar[str] = "speech"
    recipe: ClassVar[type[SpeechRecipe]] = SpeechRecipe

    def usage(self) -> Usage:
        return replace(super().usage(), unit="tokens")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `speech` be found by its name, as an entry point would be."""
    find = tasks.find
    monkeypatch.setattr(tasks, "find", lambda name: Speech if name == Speech.name else find(name))


def recipe(task: Any, folder: Path) -> dict[str, Any]:
    rows = write_rows(folder / "rows", task.sample(60, random.Random(1)))
    made = {**task.example(rows), "task": task.name, "evaluate": {"bootstrap": 10}}
    return {**made, "train": {"steps": 3, "batch": 8, "compile": "off"}}


def called(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(luban, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def shown(page: Path) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page.read_text("utf-8")).split())


def told(run: Path, unit: str) -> list[str]:
    """Return what `luban runs RUN` says the run took."""
    took = [line for line in called("runs", str(run))[0].splitlines() if line.strip().startswith("took")]
    assert re.search(rf"took +[\d,.]+ ?[kM]? {unit}, ", took[0]), took
    assert as_json(standing_of(run), 0.0)["unit"] == unit
    return took


@pytest.mark.parametrize(("task", "unit", "other"), [(Tabular, "rows", "tokens"), (Speech, "tokens", "rows")])
def test_a_task_is_told_in_its_own_unit(task: Any, unit: str, other: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(task, tmp_path)), "utf-8")
    run = tmp_path / "run"
    _, said = called("train", str(tmp_path / "recipe.yaml"), "--out", str(run))
    assert re.search(rf"after 3 steps, [\d,.]+ {unit}, ", said), said
    assert re.search(rf"expected: 3 steps, [\d,.]+ {unit}, ", said), said
    assert "--input FILE" in said and "'Once" not in said
    for name in ("plan.json", "result.json"):
        written = json.loads((run / name).read_text("utf-8"))
        assert (written["unit"], written["continues_text"]) == (unit, False)
    assert f" {unit} in " in (run / "model" / "README.md").read_text("utf-8")
    told(run, unit)
    assert called("runs", str(run))[0].splitlines()[-1].endswith("--input FILE")
    page = shown(run / "report.html")
    assert f"{unit.capitalize()} seen" in page and f"{other.capitalize()} seen" not in page
    assert "predict run/model --input FILE" in page and "Once upon a time" not in page
    assert "nats per token" not in page
    # Its data is rows, whatever is counted of the run.
    assert re.search(r"60 rows, [\d.,]+ .?i?B ?; files: ?1", page) and " characters, " not in page
    compared, _ = called("compare", str(run), str(shutil.copytree(run, tmp_path / "again")))
    assert f"\n{unit} per second" in compared and f"\n{other} " not in compared
    plan, _ = called("plan", str(tmp_path / "recipe.yaml"), "--out", str(run))
    facts = {line.split()[0]: line for line in plan.splitlines() if line.strip()}
    assert f" {unit}, " in facts["step"] and f" {unit}, " in facts["run"] and "training rows" in facts["data"]


def test_a_language_model_counts_tokens_and_continues_text(finished: Path) -> None:
    for name in ("plan.json", "result.json"):
        written = json.loads((finished / name).read_text("utf-8"))
        assert (written["unit"], written["continues_text"]) == ("tokens", True)
    told(finished, "tokens")
    assert "'Once upon a time'" in called("runs", str(finished))[0]


def without(run: Path, *keys: str) -> None:
    """Make a run one of before its files had these keys."""
    for name in ("plan.json", "result.json"):
        written = json.loads((run / name).read_text("utf-8"))
        (run / name).write_text(json.dumps({k: v for k, v in written.items() if k not in keys}), "utf-8")


def test_older_runs_are_told_by_their_tasks(tmp_path: Path) -> None:
    released = tmp_path / "released"
    shutil.copytree(RELEASED, released)
    assert "unit" not in json.loads((released / "plan.json").read_text("utf-8"))
    told(released, "tokens")
    assert "'Once upon a time'" in called("runs", str(released))[0]
    assert train(resume=released).prompt is not None
    assert "Tokens seen" in shown(write_report(released))
    table = train(recipe(Tabular, tmp_path), out=tmp_path / "table").folder
    without(table, "unit", "continues_text")
    told(table, "rows")
    assert train(resume=table).prompt is None
    assert "3 steps, 24 rows, " in called("train", "--resume", str(table))[1]
    assert "Rows seen" in shown(write_report(table))
    assert compare([table, released]).sides[0].records.unit == "rows"


def test_a_run_over_folds_says_what_its_folds_say(tmp_path: Path) -> None:
    made = recipe(Speech, tmp_path)
    made["data"]["folds"] = 2
    run = train(made, out=tmp_path / "run").folder
    result = json.loads((run / "result.json").read_text("utf-8"))
    assert (result["unit"], result["continues_text"]) == ("tokens", False)
    told(run, "tokens")


def test_what_a_damaged_plan_says_of_units_is_not_believed(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for unit in ("furlongs", 3, ["rows"], None):
        for name in ("plan.json", "result.json"):
            written = json.loads((run / name).read_text("utf-8"))
            (run / name).write_text(json.dumps({**written, "unit": unit}), "utf-8")
        told(run, "tokens")
        assert "Tokens seen" in shown(write_report(run))
