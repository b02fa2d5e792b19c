"""Every shipped recipe on rows: it trains as it stands on rows that its task makes up."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from luban import tasks
from luban.conformance import write_rows
from luban.errors import RecipeError
from luban.recipe_reader import shipped
from luban.tasks.base import Task
from luban.tasks.rows import RowTask
from luban.verbs.train import train


def task_of(name: str) -> type[Task]:
    """Return the task of a recipe, without looking for what it would read."""
    text = (files("luban") / "recipes" / f"{name}.yaml").read_text("utf-8")
    return tasks.find(yaml.safe_load(text)["task"])


ON_ROWS = [name for name in shipped() if issubclass(task_of(name), RowTask)]


@pytest.mark.parametrize("name", ON_ROWS)
def test_a_shipped_recipe_trains(name: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", task_of(name).sample(60, random.Random(0)))
    short = (
        "train.minutes=null",
        "train.epochs=null",
        "train.steps=2",
        "train.compile=off",
        "evaluate.bootstrap=0",
    )
    if name.startswith("bert"):
        with pytest.raises(RecipeError) as error:
            train(name, f"data.train={rows}", *short, out=tmp_path / "run")
        assert error.value.fix == "a bert starts from a folder: give model.start=FOLDER"
        return  # starts from a BERT: tests/tasks/test_hub_folders.py
    folder = train(name, f"data.train={rows}", *short, out=tmp_path / "run").folder
    assert json.loads((folder / "result.json").read_text("utf-8"))["status"] == "done"
