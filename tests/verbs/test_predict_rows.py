"""`luban predict` on models of rows: from files, folders, standard input and arguments; in order, a bad row by name."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from luban.cli import luban
from luban.data.pictures import encode_png
from luban.errors import DataError, InputError
from luban.tasks.image_classification import ImageClassification
from luban.tasks.tabular import Tabular
from luban.verbs.predict import predict
from luban.verbs.train import train

STEPS = {"steps": 2, "batch": 8, "learning_rate": 0.01, "compile": "off", "dtype": "float32"}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table: size, place, since; its target is `label`."""
    folder = tmp_path_factory.mktemp("table")
    rows = Tabular.sample(60, random.Random(0))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {**Tabular.example(str(folder / "rows.jsonl")), "train": STEPS, "evaluate": {"bootstrap": 0}}
    return train(recipe, out=folder / "run").folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures; beside it `pictures`, a folder of each class."""
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("pictures")
    for number, row in enumerate(ImageClassification.sample(24, random.Random(0))):
        place = folder / "pictures" / row["label"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02d}.png").write_bytes(encode_png(row["image"]))
    recipe = {**ImageClassification.example(str(folder / "pictures")), "train": STEPS}
    return train({**recipe, "evaluate": {"bootstrap": 0}}, out=folder / "run").folder


def called(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(luban, ["predict", *arguments], input=given)


def answers(*arguments: str, given: str | None = None) -> list[dict[str, Any]]:
    result = called(*arguments, "--json", given=given)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


ROWS: list[dict[str, Any]] = [
    {"size": 30, "place": "river", "since": "2024-05-01"},
    {"size": None, "place": "hill", "since": "2024-01-01"},
    {"size": 150, "place": "moon", "since": ""},
]


def test_a_row_has_one_answer_wherever_it_comes_from(table: Path, tmp_path: Path) -> None:
    wanted = [{"row": number, **answer} for number, answer in enumerate(_plain(table, ROWS))]
    lines = [json.dumps(row) for row in ROWS]
    text = "\n".join(lines) + "\n"
    (tmp_path / "rows.jsonl").write_text(text)
    cells = [f"{row['since']},{'' if row['size'] is None else row['size']},{row['place']}" for row in ROWS]
    csv = "since,size,place\n" + "\n".join(cells) + "\n"
    (tmp_path / "rows.csv").write_text(csv)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(csv.encode()))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.csv").write_text("\n".join(csv.splitlines()[:2]) + "\n")
    (tmp_path / "parts" / "b.csv").write_text("\n".join(csv.splitlines()[::2]) + "\n")
    run = str(table)
    assert answers(run, *lines) == wanted
    assert answers(run, "--input", "-", given=text) == wanted
    assert answers(run, given=text) == wanted
    for name in ("rows.jsonl", "rows.csv", "rows.csv.gz"):
        assert answers(run, "--input", str(tmp_path / name)) == wanted, name
    found = answers(run, "--input", str(tmp_path / "parts"))
    assert [answer["label"] for answer in found] == [wanted[n]["label"] for n in (0, 1)]
    first = answers(run, lines[0], "--input", str(tmp_path / "rows.csv"))  # arguments come first
    assert [answer["probabilities"] for answer in first] == [wanted[n]["probabilities"] for n in (0, 0, 1, 2)]
    assert list(predict(table, source=io.StringIO(text))) == wanted
    assert answers(str(table / "model"), *lines) == wanted


def _plain(run: Path, rows: list[Any]) -> list[dict[str, Any]]:
    from luban.verbs.load import load

    found: list[dict[str, Any]] = load(run).predict(rows)
    return found


def test_bad_rows_are_named_and_the_others_answered_in_order(table: Path, tmp_path: Path) -> None:
    good = json.dumps(ROWS[0])
    (tmp_path / "rows.jsonl").write_text(f'{good}\n{{"size": \n\n{good}\n7\n{{"size": 3}}\n{good}\n')
    found = answers(str(table), "--input", str(tmp_path / "rows.jsonl"))
    assert [answer["row"] for answer in found] == list(range(6))
    assert [answer.get("error") for answer in found] == [
        None,
        "rows.jsonl:2: not JSON",
        None,
        "a row is an object with columns; received '7'",
        "the row has no place, since",
        None,
    ]
    assert found[0]["probabilities"] == found[2]["probabilities"] == found[5]["probabilities"]


def test_a_csv_with_other_columns_and_broken_rows(table: Path, tmp_path: Path) -> None:
    head = "note,place,label,size,since\n"
    (tmp_path / "more.csv").write_text(f"{head}a,river,yes,30,2024-05-01\nb,hill\nc,river,,30,2024-05-01\n")
    found = answers(str(table), "--input", str(tmp_path / "more.csv"))
    assert found[1] == {"row": 1, "error": "more.csv:3: 2 columns, there should be 5"}
    assert found[0]["probabilities"] == found[2]["probabilities"]
    (tmp_path / "fewer.csv").write_text("place,size\nriver,30\n")
    (alone,) = answers(str(table), "--input", str(tmp_path / "fewer.csv"))
    assert alone == {"row": 0, "error": "the row has no since"}
    (tmp_path / "twice.csv").write_text("place,size,since,size\nriver,30,2024-05-01,3\n")
    with pytest.raises(DataError, match="the header names a column twice"):
        list(predict(table, source=tmp_path / "twice.csv"))


def test_more_rows_than_are_answered_at_once_are_numbered_through(table: Path, tmp_path: Path) -> None:
    lines = [json.dumps(ROWS[0])] * 260 + ["no object"] + [json.dumps(ROWS[0])]
    found = list(predict(table, source=io.StringIO("\n".join(lines))))
    assert [answer["row"] for answer in found] == list(range(262))
    assert [answer["row"] for answer in found if "error" in answer] == [260]
    assert found[261]["probabilities"] == found[0]["probabilities"]


def test_a_person_reads_answers_on_stdout_and_errors_on_stderr(table: Path) -> None:
    result = called(str(table), json.dumps(ROWS[0]), "{}")
    (answer,) = result.stdout.splitlines()
    label = _plain(table, ROWS[:1])[0]["label"]
    assert answer.startswith(f"{label}   {label} 0.")
    assert "row 1: the row has no size, place, since" in result.stderr and result.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--input", "none.csv"], "no such file of rows"),
        (["{}", "--top-k", "3"], "a model of tabular has no such setting"),
        (["--input", "-"], "there is no row"),
    ],
)
def test_what_cannot_be_asked_ends_with_code_two(table: Path, arguments: list[str], told: str) -> None:
    result = called(str(table), *arguments, "--json", given="")
    assert result.exit_code == 2
    assert told in json.loads(result.stdout.splitlines()[-1])["error"]


def test_no_folder_of_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run nor a model folder"):
        list(predict(tmp_path, ["a"]))


def test_pictures_of_a_folder_a_table_and_lines_have_the_same_answers(pictures: Path, tmp_path: Path) -> None:
    source = pictures.parent / "pictures"
    paths = sorted(source.glob("*/*.png"))
    names = [path.relative_to(source).as_posix() for path in paths]
    wanted = [answer["probabilities"] for answer in _plain(pictures, [str(path) for path in paths])]
    run = str(pictures)

    def said(*arguments: str, given: str | None = None) -> list[Any]:
        return [answer["probabilities"] for answer in answers(run, *arguments, given=given)]

    assert said("--input", str(source)) == wanted
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(paths):
        (flat / f"{number:02d}.png").write_bytes(path.read_bytes())
    assert said("--input", str(flat)) == wanted
    assert said("--input", str(paths[3])) == wanted[3:4]
    assert said(*map(str, paths[:2])) == wanted[:2]
    assert said(given="".join(f"{path}\n" for path in paths)) == wanted
    tables = {
        "rows.csv": ["path", *names],
        "rows.jsonl": [json.dumps({"image": name}) for name in names],
        "paths.jsonl": [json.dumps({"path": name, "note": "a"}) for name in names],
        "lines.jsonl": [json.dumps(name) for name in names],
        "rows.txt": names,
    }
    for name, lines in tables.items():
        file = source / name  # paths count from where it lies
        file.write_text("\n".join(lines) + "\n")
        assert said("--input", str(file)) == wanted, name
        file.unlink()


def test_bad_pictures_are_named_and_paths_do_not_lead_out(pictures: Path, tmp_path: Path) -> None:
    good = sorted((pictures.parent / "pictures").glob("*/*.png"))[0].read_bytes()
    place = tmp_path / "asked"
    place.mkdir()
    (tmp_path / "secret.png").write_bytes(good)
    for name, content in (("a.png", good), ("b.png", good[:60]), ("c.png", b""), ("d.png", b"<svg/>")):
        (place / name).write_bytes(content)
    found = answers(str(pictures), "--input", str(place))
    errors = [answer.get("error", "") for answer in found]
    assert errors[0] == "" and [answer["row"] for answer in found] == [0, 1, 2, 3]
    assert errors[1].startswith("b.png: a PNG file, cut or damaged")
    assert errors[2] == "c.png:1: the file is empty" and "SVG" in errors[3]
    named = ["a.png", "../secret.png", str(tmp_path / "secret.png"), "none.png"]
    (place / "rows.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in named))
    (place / "rows.txt").write_text("\n".join(named) + "\n")
    (place / "rows.csv").write_text("path\n" + "\n".join(named) + "\n")
    for name in ("rows.jsonl", "rows.txt", "rows.csv"):
        answered = answers(str(pictures), "--input", str(place / name))
        assert ["error" in answer for answer in answered] == [False, True, True, True], name
        assert "leads out" in answered[1]["error"] and "leads out" in answered[2]["error"]
        assert "no such file" in answered[3]["error"].lower()


def test_arrays_are_pictures_in_python(pictures: Path) -> None:
    (row,) = ImageClassification.sample(1, random.Random(3))
    flat, colour = row["image"][:, :, 0], np.repeat(row["image"], 3, axis=2)
    first, second, third = predict(pictures, [row["image"], {"image": flat}, colour])
    assert first["probabilities"] == second["probabilities"] == third["probabilities"]
