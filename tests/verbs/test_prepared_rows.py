"""Rows prepared once: what they were made with holds in every run on them, and cannot be said otherwise."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from luban.durable import read_json, sha256
from luban.errors import InputError, RecipeError
from luban.tasks.sequence_labelling import SequenceLabelling
from luban.tasks.tabular import Tabular
from luban.verbs.beginning import with_what_is_given
from luban.verbs.prepare import prepare
from luban.verbs.train import train

STEPS = {"steps": 3, "batch": 8, "learning_rate": 0.01, "compile": "off", "dtype": "float32"}


def rows_of(task: Any, folder: Path) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in task.sample(60, random.Random(0))), "utf-8")
    return str(path)


def recipe_of(task: Any, rows: str, **data: Any) -> dict[str, Any]:
    example = task.example(rows)
    return {**example, "data": {**example["data"], **data}, "train": STEPS}


def test_a_run_on_prepared_rows_is_the_run_on_their_file(tmp_path: Path) -> None:
    rows = rows_of(SequenceLabelling, tmp_path)
    made = {"characters": 3, "lowercase": False}
    prepare(recipe_of(SequenceLabelling, rows, **made), out=tmp_path / "prepared")
    # Neither says how the rows were prepared, as one does who shares a folder.
    first = train(recipe_of(SequenceLabelling, rows, **made), out=tmp_path / "file").folder
    shared = {**recipe_of(SequenceLabelling, rows), "data": {"train": str(tmp_path / "prepared")}}
    second = train(shared, out=tmp_path / "folder").folder
    assert sha256(first / "model" / "model.safetensors") == sha256(second / "model" / "model.safetensors")
    written = read_json(second / "recipe.json")["data"]
    assert (written["characters"], written["lowercase"]) == (3, False)


def test_another_setting_than_the_rows_were_prepared_with_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "prepared"
    prepare(recipe_of(SequenceLabelling, rows_of(SequenceLabelling, tmp_path), characters=3), out=place)
    with pytest.raises(RecipeError, match=r"prepared with another data\.characters") as refused:
        train(recipe_of(SequenceLabelling, str(place), characters=7), out=tmp_path / "run")
    assert refused.value.received == "data.characters=7" and refused.value.where == place
    assert refused.value.fix == "it has data.characters=3: say so or leave it out, or prepare it anew"
    same = recipe_of(SequenceLabelling, str(place), characters=3)
    given = with_what_is_given(SequenceLabelling.recipe.model_validate(same))
    assert given.data.characters == 3  # type: ignore[attr-defined]


def test_a_key_of_the_network_that_preparing_reads_is_held_to_as_well(tmp_path: Path) -> None:
    place, example = tmp_path / "prepared", recipe_of(Tabular, rows_of(Tabular, tmp_path))
    prepare({**example, "model": {"bins": 5}}, out=place)
    shared = {**example, "data": {**example["data"], "train": str(place)}}
    run = train({**shared, "model": {"width": 8, "members": 2}}, out=tmp_path / "run").folder
    assert read_json(run / "recipe.json")["model"]["bins"] == 5
    with pytest.raises(RecipeError, match=r"prepared with another model\.bins"):
        train({**shared, "model": {"bins": 6}}, out=tmp_path / "other")


def test_folds_of_prepared_rows_are_refused(tmp_path: Path) -> None:
    place, rows = tmp_path / "prepared", rows_of(Tabular, tmp_path)
    prepare(recipe_of(Tabular, rows), out=place)
    with pytest.raises(RecipeError, match="folds split the data anew") as refused:
        train(recipe_of(Tabular, str(place), folds=3), out=tmp_path / "run")
    assert refused.value.fix == "give the files themselves, not the folder they were prepared into"
    assert not (tmp_path / "run").exists()
    prepare(recipe_of(Tabular, rows, folds=3, fold=1), out=tmp_path / "one")  # one of them may be prepared
    assert train(recipe_of(Tabular, str(tmp_path / "one")), out=tmp_path / "run").result["status"] == "done"


def test_prepared_data_of_another_task_is_refused_by_name(tmp_path: Path, small: dict[str, Any]) -> None:
    rows, texts = tmp_path / "rows", tmp_path / "texts"
    prepare(recipe_of(Tabular, rows_of(Tabular, tmp_path)), out=rows)
    prepare(small, out=texts)
    for recipe, received in (
        (recipe_of(SequenceLabelling, str(rows)), "tabular"),
        (recipe_of(Tabular, str(texts)), "language-model"),
        ({**small, "data": {**small["data"], "source": str(rows)}}, "tabular"),
    ):
        with pytest.raises(InputError, match="the prepared data is not of the task") as refused:
            train(recipe, out=tmp_path / "run")
        assert refused.value.received == received


def test_a_start_that_failed_after_rows_were_prepared_leaves_the_folder_free(tmp_path: Path) -> None:
    rows = [{"x": n, "y": n / 2 + 0.25} for n in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    recipe = {"task": "tabular", "data": {"train": str(path)}, "model": {"width": 8}, "train": STEPS}
    with pytest.raises(RecipeError, match="what the recipe says of the loss is of classes"):
        train({**recipe, "objective": {"focal": 2.0}}, out=tmp_path / "run")
    assert train(recipe, out=tmp_path / "run").result["status"] == "done"
