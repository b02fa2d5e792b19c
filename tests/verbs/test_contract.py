"""What programs may rely on, by the names of the shipped recipes: three splits in, result.json and answers out."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from luban import tasks
from luban.cli import luban
from luban.conformance import write_rows
from luban.verbs.evaluate import evaluate

FIGURES = {
    "text-classification": ("accuracy", {"macro_f1", "roc_auc", "log_loss", "ece"}),
    "image-classification": ("accuracy", {"macro_f1", "roc_auc", "log_loss", "ece"}),
    "tabular": ("roc_auc", {"accuracy", "macro_f1", "log_loss", "ece"}),
    "translation": ("bleu", {"chrf"}),
    "sequence-labelling": ("entity_f1", {"entity_precision", "entity_recall", "token_accuracy"}),
}
ANSWERS = {
    "text-classification": {"label", "probabilities"},
    "image-classification": {"label", "probabilities"},
    "tabular": {"label", "probabilities"},
    "translation": {"text", "score"},
    "sequence-labelling": {"tags", "probabilities", "entities"},
}
QUICK = (
    "train.minutes=null",
    "train.steps=2",
    "train.compile=off",
    "train.batch=16",
    "evaluate.bootstrap=20",
)


def called(*arguments: str, given: bytes | None = None) -> list[dict[str, Any]]:
    result = CliRunner().invoke(luban, [*arguments, "--json"], input=given)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each recipe; beside it `train`, `validation` and `test`, a file or folder each."""
    pytest.importorskip("PIL")
    found = {}
    for name in FIGURES:
        folder, splits = tmp_path_factory.mktemp(name), []
        for number, (split, count) in enumerate((("train", 60), ("validation", 16), ("test", 24))):
            rows = tasks.find(name).sample(count, random.Random(number))
            splits.append(f"data.{split}={write_rows(folder / split, rows)}")
        (result,) = called("train", name, *splits, *QUICK, "--out", str(folder / "run"))
        kept = json.loads((folder / "run" / "result.json").read_text("utf-8"))
        assert result == {**kept, "run": str(folder / "run")}
        found[name] = folder / "run"
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_the_primary_figure_is_that_of_the_test_split(runs: dict[str, Path], name: str) -> None:
    result = json.loads((runs[name] / "result.json").read_text("utf-8"))
    primary, others = FIGURES[name]
    assert result["status"] == "done" and result["primary"]["name"] == primary
    assert others | {primary} <= result["metrics"].keys()
    test = runs[name].parent / "test"
    again = evaluate(runs[name], str(test if test.is_dir() else test.with_suffix(".jsonl")), bootstrap=0)
    assert again.counts["rows"] == 24
    assert result["primary"]["value"] == pytest.approx(again.figures[primary], abs=1e-5)
    assert result["metrics"][primary] == result["primary"]["value"]


@pytest.mark.parametrize("name", FIGURES)
def test_a_line_of_json_for_each_row_in_order_and_a_bad_one_by_name(runs: dict[str, Path], name: str) -> None:
    test = runs[name].parent / "test"
    if test.is_dir():
        folder = runs[name].parent / "asked"
        shutil.copytree(test, folder, dirs_exist_ok=True)
        first = sorted(folder.glob("*/*"))[0]
        (first.parent / "0000a.png").write_bytes(b"")
        given = folder
    else:
        lines = test.with_suffix(".jsonl").read_bytes().splitlines()
        given = runs[name].parent / "asked.jsonl"
        given.write_bytes(b"\n".join([lines[0], b'{"broken": ', *lines[1:]]) + b"\n")
    answers = called("predict", str(runs[name]), "--input", str(given))
    assert [answer["row"] for answer in answers] == list(range(25))
    bad = [answer for answer in answers if "error" in answer]
    assert len(bad) == 1 and set(bad[0]) == {"row", "error"}
    assert all(ANSWERS[name] <= answer.keys() for answer in answers if answer not in bad)


def asked(name: str, runs: dict[str, Path]) -> list[dict[str, Any]]:
    """Return the first rows of the test split without what is asked for."""
    path = runs[name].parent / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()[:3]]
    return [{n: v for n, v in row.items() if n not in ("label", "target", "tags")} for row in rows]


def own_format(name: str, rows: list[dict[str, Any]], folder: Path) -> Path:
    """Write rows in a format of the task's own that says nothing of what is asked for."""
    if name == "text-classification":
        (folder / "texts").mkdir()
        for number, row in enumerate(rows):
            (folder / "texts" / f"{number}.txt").write_text(row["text"], "utf-8")
        return folder / "texts"
    if name == "tabular":
        path = folder / "rows.csv"
        lines = [",".join(rows[0]), *(",".join(str(cell) for cell in row.values()) for row in rows)]
    elif name == "translation":
        path, lines = folder / "asked.eo", [row["source"] for row in rows]
    else:
        path = folder / "asked.conll"
        lines = [line for row in rows for line in (*row["tokens"], "")]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "image-classification"])
def test_rows_come_from_arguments_files_and_standard_input_alike(
    runs: dict[str, Path], name: str, tmp_path: Path
) -> None:
    run, rows = str(runs[name]), asked(name, runs)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    expected = called("predict", run, *lines)
    assert not [answer for answer in expected if "error" in answer]
    assert called("predict", run, "--input", str(own_format(name, rows, tmp_path))) == expected
    # Bytes that are no UTF-8, and JSON that ends before its end, are two bad rows and not the end.
    given = "\n".join([lines[0], "\udcff", lines[1], '{"text": ', lines[2]]).encode(
        "utf-8", "surrogateescape"
    )
    answers = called("predict", run, "--input", "-", given=given)
    assert [answer.get("error") for answer in answers] == [
        None,
        "-:2: byte 1 of the row is not UTF-8 (0xff)",
        None,
        "not JSON",
        None,
    ]
    good = [{**answer, "row": number} for number, answer in enumerate(a for a in answers if "error" not in a)]
    assert good == expected


def test_tokens_are_typed_as_a_list(runs: dict[str, Path]) -> None:
    (answer,) = called("predict", str(runs["sequence-labelling"]), '["Ann", "left", "Rome"]')
    assert len(answer["tags"]) == 3
    (text,) = called("predict", str(runs["text-classification"]), '["a text", "in brackets"]')
    assert "label" in text
