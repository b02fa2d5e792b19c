"""`luban plan` says what `luban train` will do, keeps nothing, and what it chose is what a run takes and keeps."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from luban import tasks
from luban.cli import luban
from luban.cli_plan import lines
from luban.console import Show
from luban.data.prepare import Prepared
from luban.durable import sha256
from luban.errors import InputError, Stopped
from luban.recipe_reader import read_recipe
from luban.signals import StopRequest
from luban.tasks.base import Machine
from luban.tasks.text_classification import TextClassification
from luban.training.faults import Faults
from luban.verbs.decisions import with_values
from luban.verbs.plan import plan
from luban.verbs.train import Tools, train

SAME = ("model/model.safetensors", "metrics.jsonl", "evaluation.json", "recipe.json")
FIXED = (
    "parameters",
    "step_flops",
    "step_tokens",
    "dtype",
    "kernels",
    "compile",
    "evaluations",
    "model",
    "fingerprint",
)


@pytest.fixture(scope="module")
def open_recipe(small: dict[str, Any]) -> dict[str, Any]:
    """The small recipe with nothing said about shape, batch and rate; the ladder's smallest rung is tiny."""
    recipe = copy.deepcopy(small)
    recipe["model"] = {"layers": 1, "dropout": 0.1}
    recipe["train"] = {"steps": 6, "checkpoint_every": 2}
    return recipe


def test_a_plan_is_what_the_run_then_decides(small: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    found = plan(small, out=tmp_path / "runs" / "next")
    decided = json.loads((finished / "plan.json").read_text())
    assert {name: found["plan"][name] for name in FIXED} == {name: decided[name] for name in FIXED}
    predicted, measured = (
        found["plan"]["predicted"],
        json.loads((finished / "result.json").read_text())["measured"],
    )
    for name in ("steps", "tokens", "flops"):
        assert predicted[name] == measured[name]
    assert predicted["disk_bytes"] == pytest.approx(measured["disk_bytes"], rel=0.3)
    assert len(found["views"]) == 3 and all("|" in view for view in found["views"])
    assert list(tmp_path.iterdir()) == []
    # The memory is that of this process, which other tests may have grown since that run.
    now = train(small, out=tmp_path / "run").result["measured"]
    assert predicted["peak_bytes"] == pytest.approx(now["peak_bytes"], rel=0.3)


def test_the_screen_names_every_cost(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(json.dumps(small))
    answer = CliRunner().invoke(luban, ["plan", "recipe.yaml"])
    assert answer.exit_code == 0, answer.output
    for name in ("data", "model", "step", "run", "time", "memory", "disk", "sees 3"):
        assert f"\n  {name}" in "\n" + answer.stdout
    assert max(map(len, answer.stdout.splitlines())) <= 100
    as_json = CliRunner().invoke(luban, ["plan", "recipe.yaml", "--json"])
    assert json.loads(as_json.stdout)["plan"]["step_tokens"] == 4 * 32
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_what_cannot_run_cannot_be_planned(small: dict[str, Any], tmp_path: Path) -> None:
    recipe = copy.deepcopy(small)
    recipe["data"]["source"] = str(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="absent"):
        plan(recipe, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_open_keys_are_chosen_once_and_a_resumed_run_ends_with_the_same_bytes(
    open_recipe: dict[str, Any], tmp_path: Path
) -> None:
    whole = train(open_recipe, out=tmp_path / "whole").folder
    chosen = json.loads((whole / "plan.json").read_text())["chosen"]
    recipe = json.loads((whole / "recipe.json").read_text())
    assert {"model.width", "model.heads", "train.batch", "train.learning_rate"} <= set(chosen)
    assert "model.layers" not in chosen and "data.length" not in chosen
    for key, choice in chosen.items():
        section, name = key.split(".")
        assert recipe[section][name] == choice["value"]
        assert len(choice["why"]) > 20

    def stop() -> None:
        request.ask("a test")

    request = StopRequest()
    tools = Tools(Show(quiet=True), request, faults=Faults({("step", 3, 0): stop}))
    with pytest.raises(Stopped):
        train(recipe_as_chosen(open_recipe, chosen), out=tmp_path / "stopped", tools=tools)
    resumed = train(resume=tmp_path / "stopped").folder
    assert all(sha256(whole / name) == sha256(resumed / name) for name in SAME)


def recipe_as_chosen(recipe: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """The choice may differ with the machine's mood; the same shape is what is compared here."""
    settled = copy.deepcopy(recipe)
    for key, choice in chosen.items():
        section, name = key.split(".")
        settled.setdefault(section, {})[name] = choice["value"]
    return settled


def test_a_run_killed_before_its_recipe_was_settled_takes_the_choice_from_the_plan(
    open_recipe: dict[str, Any], tmp_path: Path
) -> None:
    request = StopRequest()
    tools = Tools(Show(quiet=True), request, faults=Faults({("step", 0, 0): lambda: request.ask("a test")}))
    with pytest.raises(Stopped):
        train(open_recipe, out=tmp_path / "run", tools=tools)
    path = tmp_path / "run" / "recipe.json"
    settled = json.loads(path.read_text())
    unsettled = copy.deepcopy(settled)
    unsettled["model"]["width"] = unsettled["train"]["batch"] = None
    path.write_text(json.dumps(unsettled))
    train(resume=tmp_path / "run")
    assert json.loads(path.read_text()) == settled


def test_a_text_that_is_read_often_enough_ends_the_run_early(
    finished: Path, open_recipe: dict[str, Any]
) -> None:
    recipe = read_recipe({**open_recipe, "train": {"minutes": 600}}, (), tasks.schema_of)
    laptop = Machine(peak_flops=134e9, memory_bytes=16 << 30)
    data = Prepared(finished / "data")
    chosen = tasks.find(recipe.task).choose(recipe, data, laptop)
    assert len(data.train) <= chosen["train.tokens"].value <= 40 * len(data.train)
    assert "more text" in chosen["train.tokens"].why
    settled = with_values(recipe, {key: choice.value for key, choice in chosen.items()})
    assert settled.train.tokens == chosen["train.tokens"].value
    assert settled.train.minutes is None


def test_of_a_run_over_folds_one_is_planned_and_the_time_of_all_is_said(tmp_path: Path) -> None:
    rows = TextClassification.sample(60, random.Random(1))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    made = TextClassification.example(str(tmp_path / "rows.jsonl"))
    found = plan(
        {**made, "data": {**made["data"], "folds": 3}, "train": {"steps": 4, "batch": 8}}, out=tmp_path
    )
    assert found["folds"] == 3
    assert sum(found["data"][split]["rows"] for split in ("train", "validation", "test")) == 60
    told = {line.split()[0]: line for line in lines(found, 100)}
    assert "one of 3 folds; together about" in told["folds"]


def test_what_compiling_is_not_known_to_help_is_compiled_only_where_it_is_asked_for(tmp_path: Path) -> None:
    rows = TextClassification.sample(60, random.Random(1))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    made = TextClassification.example(str(tmp_path / "rows.jsonl"))
    found = plan({**made, "train": {"minutes": 60, "batch": 8}}, out=tmp_path)["plan"]
    assert (found["compile"], found["compile_why"]) == (False, "only language models are known to gain by it")
