"""`luban export`: the folder it makes answers and is measured as the model is, through the command line too."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from luban.cli import luban
from luban.errors import InputError
from luban.model_folder import load_model
from luban.tasks.tabular import Tabular
from luban.verbs.evaluate import evaluate
from luban.verbs.export import export
from luban.verbs.load import load
from luban.verbs.train import train

onnxruntime = pytest.importorskip("onnxruntime")

STEPS = {"steps": 4, "batch": 8, "learning_rate": 0.01, "compile": "off", "dtype": "float32"}


def ran(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(luban, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def table_run(folder: Path, rows: list[dict[str, Any]], **data: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Tabular.example(str(folder / "rows.jsonl"))
    recipe = {**recipe, "data": {**recipe["data"], **data}, "train": STEPS, "evaluate": {"bootstrap": 0}}
    return train(recipe, out=folder / "run").folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table_run(tmp_path_factory.mktemp("table"), Tabular.sample(80, random.Random(0)))


@pytest.fixture(scope="module")
def exported(table: Path) -> Path:
    out = table.parent / "graph"
    (made,) = ran("export", str(table), "--out", str(out))
    assert made["status"] == "done" and made["folder"] == str(out)
    assert made["parity"]["max_abs"] < 1e-5 and made["parity"]["rows"] == 12
    assert made["parity"] == json.loads((out / "parity.json").read_text())
    assert made["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    return out


def test_the_folder_answers_alone_as_the_run_does(table: Path, exported: Path, tmp_path: Path) -> None:
    """No weights are in it but those of the graph."""
    assert {path.name for path in exported.iterdir()} == {
        "config.json",
        "luban.json",
        "manifest.json",
        "model.onnx",
        "parity.json",
    }
    rows = [{k: v for k, v in row.items() if k != "label"} for row in Tabular.sample(20, random.Random(1))]
    rows[3] = {**rows[3], "place": "never seen", "size": None}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"size": 1}\n')
    said, same = (ran("predict", str(folder), "--input", str(file)) for folder in (table, exported))
    assert said[20] == same[20] == {"row": 20, "error": "the row has no place, since"}
    for one, other in zip(said[:20], same[:20], strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_the_folder_is_measured_as_the_run_is(table: Path, exported: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in Tabular.sample(40, random.Random(2))))
    (these,), (those,) = (
        ran("evaluate", str(folder), "--data", str(file), "--bootstrap", "0") for folder in (table, exported)
    )
    assert these["counts"] == those["counts"] and these["counts"]["rows"] == 40
    for name, figure in these["metrics"].items():
        assert those["metrics"][name]["value"] == pytest.approx(figure["value"], abs=1e-5), name
    with pytest.raises(InputError, match="a model folder has no held-out data of its own"):
        evaluate(exported)


def test_the_graph_gives_what_the_network_gives_to_whoever_runs_it(table: Path, exported: Path) -> None:
    """With onnxruntime alone, as another program would."""
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    numbers = np.array([[30.0, np.nan, 2024, 5, 2, 0], [np.nan] * 6], np.float32)
    categories = np.array([[1], [-1]], np.int64)
    (said,) = session.run(["outputs"], {"numbers": numbers, "categories": categories})
    with torch.no_grad():
        expected = load(table).module(torch.from_numpy(numbers), torch.from_numpy(categories))
    np.testing.assert_allclose(said, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("categories", [[], ["size", "place", "since"]])
def test_a_table_of_numbers_alone_and_one_of_categories_alone(tmp_path: Path, categories: list[str]) -> None:
    kept = categories or ["size", "since"]
    rows = [{name: row[name] for name in (*kept, "label")} for row in Tabular.sample(60, random.Random(0))]
    run = table_run(tmp_path, rows, categories=categories)
    columns = load(run).kind.fitted.state["columns"]
    assert bool(columns["categories"]) != bool(columns["numbers"])
    made = export(run, tmp_path / "graph")
    assert made["parity"]["max_abs"] < 1e-5
    asked = [{name: row[name] for name in kept} for row in rows[:4]]
    for one, other in zip(load(run).predict(asked), load(tmp_path / "graph").predict(asked), strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_a_number_is_answered_in_its_own_unit_by_the_graph_too(tmp_path: Path) -> None:
    rows = [{"size": n, "price": 1000.5 * n + 50_000} for n in range(60)]
    run = table_run(tmp_path, rows)
    export(run, tmp_path / "graph")
    one, other = (load(folder).predict([{"size": 7}])[0]["value"] for folder in (run, tmp_path / "graph"))
    assert other == pytest.approx(one, rel=1e-5) and 50_000 < one < 110_000


def test_a_folder_that_exists_is_left_as_it_is(table: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="the folder to export to exists already"):
        export(table, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_graph_is_not_exported_again(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a graph already") as caught:
        export(exported, tmp_path / "again")
    assert "luban export RUN --out DIR" in str(caught.value)
    assert not (tmp_path / "again").exists()


def test_what_is_no_model_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(
        luban, ["export", str(tmp_path / "empty"), "--out", str(tmp_path / "out"), "--json"]
    )
    assert result.exit_code == 2
    assert json.loads(result.stdout.splitlines()[-1])["error"] == "neither a run nor a model folder"
    assert not (tmp_path / "out").exists()


def test_a_language_models_graph_gives_its_logits_and_writes_what_it_writes(
    finished: Path, tmp_path: Path
) -> None:
    made = export(finished, tmp_path / "graph")
    assert made["parity"]["max_abs"] < 1e-3
    module = load_model(finished / "model").module
    session = onnxruntime.InferenceSession(
        tmp_path / "graph" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for rows, length in ((1, 5), (3, 17)):
        ids = np.random.default_rng(length).integers(0, 100, (rows, length))
        (said,) = session.run(["logits"], {"ids": ids})
        with torch.no_grad():
            np.testing.assert_allclose(said, module(torch.from_numpy(ids)).numpy(), atol=1e-3)
    prompts = ["the king", "to be, or", ""]
    for settings in ({"temperature": 0.0}, {"temperature": 0.8, "seed": 3, "repetition_penalty": 1.2}):
        said, same = (
            load(folder).generate(prompts, max_tokens=12, **settings)
            for folder in (finished, tmp_path / "graph")
        )
        assert said == same
    assert "".join(load(tmp_path / "graph").stream("the king", max_tokens=5, temperature=0.0))
    (one,) = ran("predict", str(tmp_path / "graph"), "the king", "--max-tokens", "5", "--temperature", "0")
    (other,) = ran("predict", str(finished), "the king", "--max-tokens", "5", "--temperature", "0")
    assert one["text"] == other["text"]
    (tmp_path / "held.txt").write_text("the king is dead\n")
    with pytest.raises(InputError, match="answers prompts and is not measured"):
        evaluate(tmp_path / "graph", str(tmp_path / "held.txt"))
