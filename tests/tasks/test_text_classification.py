"""Text classification from files to answers: what it reads, what it learns from, what it says of bad rows."""

import gzip
import io
import json
import math
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from luban.console import Show
from luban.data.row_sets import PreparedRows
from luban.errors import CheckpointError, DataError, InputError
from luban.evaluation.comparing import compare
from luban.model_folder import LUBAN
from luban.signals import StopRequest
from luban.tasks.text_classification import TextClassification
from luban.verbs.evaluate import evaluate
from luban.verbs.load import load
from luban.verbs.predict import predict
from luban.verbs.train import Tools, train

Prepare = Callable[..., PreparedRows]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def reviews(count: int, seed: int = 1) -> list[dict[str, Any]]:
    return TextClassification.sample(count, random.Random(seed))


def recipe(rows: str, **changes: Any) -> dict[str, Any]:
    made = TextClassification.example(rows)
    settings = {
        "train": {"steps": 12, "batch": 16, "compile": "off"},
        "evaluate": {"bootstrap": 20},
        **changes,
    }
    for name, section in settings.items():
        made[name] = {**made.get(name, {}), **section}
    return made


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("rows") / "reviews.jsonl", reviews(120))


@pytest.fixture(scope="module")
def run(rows: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(rows), out=tmp_path_factory.mktemp("run") / "run").folder


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    made: Iterator[int] = iter(range(100))

    def prepared(content: list[dict[str, Any]] | bytes, suffix: str = "csv", **data: Any) -> PreparedRows:
        path = tmp_path / f"{next(made)}.{suffix}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path = path.with_suffix(".jsonl")
            write(path, content)
        settings = TextClassification.recipe.model_validate(recipe(str(path), data=data))
        return TextClassification.prepare(
            settings, path.with_suffix(""), stop=lambda: None, progress=lambda stage, share: None
        )

    return prepared


# What it reads.


@pytest.mark.parametrize(
    ("header", "asked", "roles"),
    [
        (b"text,label", {}, {"text": "text", "label": "label"}),
        (b"id,Review,Sentiment", {}, {"text": "Review", "label": "Sentiment"}),
        (b"what,which", {"text": "what"}, {"text": "what", "label": "which"}),
        (b"which,what", {"label": "which"}, {"text": "what", "label": "which"}),
        (b"label,headline", {}, {"text": "headline", "label": "label"}),
    ],
)
def test_columns_are_found_by_name_or_by_what_is_left(
    prepare: Prepare, header: bytes, asked: dict[str, str], roles: dict[str, str]
) -> None:
    names = header.decode().split(",")
    cells = [
        ",".join(f"word{n}" if name == roles["text"] else "ab"[n % 2] for name in names) for n in range(20)
    ]
    data = prepare(header + b"\n" + "\n".join(cells).encode(), **asked)
    assert data.report["columns"] == roles
    assert data.fitted.state["labels"] == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "asked", "message", "fix"),
    [
        (b"a,b,c", {}, "it cannot be told which column data.text is", "name it: data.text=COLUMN"),
        (b"text,b,c", {}, "it cannot be told which column data.label is", "name it: data.label=COLUMN"),
        (
            b"text,klass",
            {"label": "class"},
            "the rows have no such column",
            "did you mean data.label=klass? ",
        ),
    ],
)
def test_a_column_that_cannot_be_told_is_asked_for(
    prepare: Prepare, header: bytes, asked: dict[str, str], message: str, fix: str
) -> None:
    with pytest.raises(DataError) as unclear:
        prepare(header + b"\n" + b"x,y,z\n"[: 2 * header.count(b",") + 1] + b"\n", **asked)
    assert unclear.value.message == message
    assert str(unclear.value.fix).startswith(fix)


def test_numbers_as_labels_are_ordered_as_numbers(prepare: Prepare) -> None:
    content = [{"text": f"t{n}", "label": value} for n, value in enumerate([10, 9.0, 2, 10.0] * 8)]
    assert prepare(content, test_fraction=0.0).fitted.state["labels"] == ["2", "9", "10"]


def test_every_row_that_cannot_be_used_is_counted_by_its_kind(prepare: Prepare) -> None:
    bad = [
        ({"text": "", "label": "a"}, "empty_row"),
        ({"text": 7, "label": "a"}, "not_text"),
        ({"text": None, "label": "a"}, "missing_value"),
        ({"text": "x"}, "missing_value"),
        ({"text": "x", "label": None}, "missing_value"),
        ({"text": "x", "label": {"a": 1}}, "bad_value"),
        ({"text": "x", "label": ["a"]}, "bad_value"),
    ]
    data = prepare([*reviews(40), *(row for row, _ in bad)])
    kinds = data.report["bad_rows"]["kinds"]
    found = {kind: [example["line"] for example in kinds[kind]["examples"]] for kind in kinds}
    expected: dict[str, list[int]] = {}
    for line, (_, kind) in enumerate(bad, 41):
        expected.setdefault(kind, []).append(line)
    assert found == expected


def test_one_class_or_one_text_is_refused(prepare: Prepare) -> None:
    with pytest.raises(DataError, match="there is one class only") as one:
        prepare([{"text": f"t{n}", "label": "a"} for n in range(30)])
    assert "training rows have the label 'a'" in str(one.value.received)
    with pytest.raises(DataError, match="too few different rows"):
        prepare([{"text": "constant", "label": "ab"[n % 2]} for n in range(30)])


def test_words_and_labels_of_held_out_rows_are_not_learned(prepare: Prepare, tmp_path: Path) -> None:
    test = [*reviews(4, 5), {"text": "zebra", "label": "good"}, {"text": "film", "label": "goood"}]
    data = prepare(reviews(40), test=write(tmp_path / "test.jsonl", test))
    tokenizer = data.fitted.tokenizers[""]
    assert tokenizer.token(tokenizer.encode("zebra")[0]) == "<|unknown|>"
    assert data.fitted.state["labels"] == ["bad", "good"]
    (example,) = data.report["bad_rows"]["kinds"]["unknown_label"]["examples"]
    assert example == {
        "file": "test.jsonl",
        "line": 6,
        "detail": "no training row has the label 'goood'; did you mean 'good'?",
    }
    counts = np.bincount(data.train.column("label")).tolist()
    assert data.fitted.state["label_counts"] == counts


@pytest.mark.parametrize("tokenizer", ["word", "char", "bpe"])
def test_ids_are_those_of_the_tokenizer_cut_at_the_length(prepare: Prepare, tokenizer: str) -> None:
    data = prepare(reviews(60), tokenizer=tokenizer, vocab_size=300, length=3)
    trained = data.fitted.tokenizers[""]
    for number in range(5):
        ids, lengths = data.train.gather(np.array([number]))
        text = data.train.row(number)["values"]["text"]
        assert ids["ids"][0, : lengths["ids"][0]].tolist() == trained.encode(text)[:3]


# What it answers.


def test_the_temperature_of_validation_rows_stays_with_the_model(run: Path) -> None:
    state = json.loads((run / "model" / LUBAN).read_text("utf-8"))["task_state"]
    kept = state["fitted"]["temperature"]
    model = load(run)
    data = PreparedRows(run / "data")
    numbers = np.arange(len(data.validation))
    tensors = model.kind.collate(*data.validation.gather(numbers))
    with torch.no_grad():
        logits = model.kind.outputs(model.module, tensors)
    labels = torch.from_numpy(np.array(data.validation.column("label")))

    def loss(temperature: float) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.double() / temperature, labels)

    right = bool((logits.argmax(1) == labels).all())
    assert (kept == 1.0) if right else loss(kept) <= min(loss(kept * 1.05), loss(kept / 1.05))
    texts = [row["values"]["text"] for row in data.validation.rows()]
    for answer, row in zip(model.predict(texts), (logits.double() / kept).softmax(1), strict=True):
        chances = [answer["probabilities"][label] for label in state["fitted"]["labels"]]
        assert chances == pytest.approx(row.tolist(), abs=2e-6)


def test_a_text_an_object_and_a_row_with_its_label_are_answered_alike(run: Path) -> None:
    texts = ["lovely film", {"text": "lovely film"}, {"text": "lovely film", "label": ["odd"], "more": 1}]
    first, *others = load(run).predict(texts)
    assert all(other == first for other in others)
    assert first["label"] == "good"


def test_bad_rows_are_answered_in_their_place_and_the_rest_in_order(run: Path, tmp_path: Path) -> None:
    lines = [
        b'{"text": "lovely film"}',
        b'{"text": ',
        b'"dull film"',
        b"null",
        b'{"text": "caf\xe9"}',
        b'{"text": "   "}',
        b"",
        b'{"text": "half \\ud800"}',
        b'{"text": "great meal", "label": 3}',
        b"[1, 2]",
        b'{"other": "x"}',
    ]
    path = tmp_path / "asked.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    answers = list(predict(run, source=path))
    assert [answer["row"] for answer in answers] == list(range(10))
    labels = {number: answer["label"] for number, answer in enumerate(answers) if "label" in answer}
    assert labels == {0: "good", 2: "bad", 7: "good"}
    errors = {number: answer["error"] for number, answer in enumerate(answers) if "error" in answer}
    assert errors == {
        1: "asked.jsonl:2: not JSON",
        3: "a row is an object with columns; received 'None'",
        4: "asked.jsonl:5: byte 14 of the row is not UTF-8 (0xe9)",
        5: "the text is empty",
        6: "a text holds half of a surrogate pair, which is no character",
        8: "a row is an object with columns; received '[1, 2]'",
        9: "the row has no text",
    }


def test_a_text_on_each_line_of_a_file_or_of_standard_input(run: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_bytes(b"lovely film\r\n\n\xff\ndull film")
    answers = list(predict(run, source=tmp_path / "asked.txt"))
    assert [answer.get("label") for answer in answers] == ["good", None, "bad"]
    assert answers[1]["error"] == "asked.txt:3: byte 1 of the row is not UTF-8 (0xff)"
    lines = io.StringIO('lovely film\n{"text": "dull film"}\n{"text": broken\n\n{"text": ""}\n')
    answers = list(predict(run, ["great song"], source=lines))
    assert [answer.get("label") for answer in answers[:3]] == ["good", "good", "bad"]
    assert "error" in answers[4]


def test_a_packed_file_of_texts_is_read_as_one(run: Path, tmp_path: Path) -> None:
    for name, content in (("a.txt", b"lovely film\n"), ("a.jsonl", b'{"text": "lovely film"}\n')):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        assert [answer["label"] for answer in predict(run, source=tmp_path / f"{name}.gz")] == ["good"]
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(content)[:-6])
    assert "error" in list(predict(run, source=tmp_path / "cut.txt.gz"))[-1]


def test_a_table_of_rows_to_answer_needs_no_label(run: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_bytes(b"id,text\n1,lovely film\n2,dull\n3,a,b\n4,dull film\n")
    answers = list(predict(run, source=tmp_path / "asked.csv"))
    assert [answer.get("label") for answer in answers] == ["good", "bad", None, "bad"]
    assert "3 columns, there should be 2" in answers[2]["error"]


def test_a_setting_that_it_does_not_know_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match="has no such setting") as refused:
        load(run).predict(["x"], beam=3, temperature=None)
    assert refused.value.received == ["beam"]


def test_evaluation_on_a_file_leaves_bad_rows_out_and_says_so(run: Path, tmp_path: Path) -> None:
    good = reviews(10, 9)
    clean = evaluate(run, write(tmp_path / "clean.jsonl", good), bootstrap=0)
    bad = [{"text": "film", "label": "goood"}, {"text": "", "label": "good"}, {"text": "film"}]
    found = evaluate(run, write(tmp_path / "bad.jsonl", [bad[0], *good, *bad[1:]]), bootstrap=0)
    assert found.figures == pytest.approx(clean.figures)
    assert found.counts == {"rows": 10, "left_out": 3}
    assert clean.counts == {"rows": 10, "left_out": 0}
    kinds = found.as_json()["bad_rows"]["kinds"]
    assert {kind: entry["examples"][0]["line"] for kind, entry in kinds.items()} == {
        "unknown_label": 1,
        "empty_row": 12,
        "missing_value": 13,
    }
    with pytest.raises(InputError, match="there is no row to measure on") as none:
        evaluate(run, write(tmp_path / "none.jsonl", bad))
    assert "1, first none.jsonl:1: " in none.value.received["unknown_label"]


def test_the_figures_of_the_run_are_found_again(run: Path) -> None:
    result = json.loads((run / "result.json").read_text("utf-8"))
    again = evaluate(run, bootstrap=0).figures
    for name, value in result["metrics"].items():
        assert value is None or math.isclose(again[name], value, rel_tol=1e-6), name


@pytest.mark.parametrize(
    ("network", "method"), [("transformer", "rollout"), ("gru", "pooling"), ("cnn", None)]
)
def test_the_worst_answers_show_which_words_counted_where_the_network_attends(
    tmp_path: Path, network: str, method: str | None
) -> None:
    told = [{"text": f"{row['text']} {n}", "label": "ab"[n // 3 % 2]} for n, row in enumerate(reviews(60))]
    model = {"network": network, "pooling": "attention", "width": 8, "heads": 2, "pairs": 0}
    path = write(tmp_path / "rows.jsonl", told)
    made = recipe(path, model=model, train={"steps": 1, "batch": 4}, data={"test_fraction": 0.4})
    folder = train(made, out=tmp_path / "run").folder
    errors = json.loads((folder / "evaluation.json").read_text("utf-8"))["errors"]
    assert errors
    for error in errors:
        seen = error["parts"][1:]
        assert [part["method"] for part in seen] == ([method] if method else [])
        for part in seen:
            assert part["columns"] == [word.lower() for word in part["columns"]]
            assert len(part["rows"]) == len(part["weights"]) == 1
            assert sum(part["weights"][0]) == pytest.approx(1.0, abs=0.01)


def test_a_model_folder_that_is_torn_is_named(run: Path, tmp_path: Path) -> None:
    for change in (
        {"fitted": {}},
        {"fitted": {"labels": ["a", "b", "c"], "label_counts": [1, 1, 1], "roles": {}}},
        {"task": "translation"},
        {"tokenizers": ["../x"]},
        {"tokenizers": []},
    ):
        folder = tmp_path / "model"
        shutil.copytree(run / "model", folder, dirs_exist_ok=True)
        written = json.loads((folder / LUBAN).read_text("utf-8"))
        written["task_state"] |= change
        (folder / LUBAN).write_text(json.dumps(written), "utf-8")
        with pytest.raises((CheckpointError, InputError)):
            TextClassification.load(folder)


# Several labels, transfer, slices.


def test_several_labels_are_learned_and_answered(tmp_path: Path) -> None:
    draws = random.Random(3)
    content = []
    for number in range(160):
        told = [name for name in ("red", "green", "blue") if draws.random() < 0.5]
        wrong = [] if number % 8 else ["red"]  # so that nobody can be sure
        content.append({"text": " ".join(["it is", *told, str(number)]), "label": [*told, *wrong]})
    test = write(tmp_path / "test.jsonl", content[130:])
    settings = {"steps": 60, "batch": 32, "compile": "off", "evaluate_every": 60}
    data = {"multilabel": True, "test": test}
    made = recipe(write(tmp_path / "rows.jsonl", content[:130]), data=data, train=settings)
    outcome = train(made, out=tmp_path / "run")
    assert outcome.result["metrics"]["accuracy"] > 0.5
    (answer,) = load(outcome.folder).predict(["it is red and blue"])
    assert {"red", "blue"} <= set(answer["labels"])
    assert set(answer["probabilities"]) == {"red", "green", "blue"}
    told = json.loads((outcome.folder / "evaluation.json").read_text("utf-8"))["classification"]
    assert 0 < told["temperature"] != 1.0  # found on validation rows, for figures on test rows
    again = evaluate(outcome.folder, bootstrap=0).figures
    assert again["accuracy"] == pytest.approx(outcome.result["metrics"]["accuracy"])


def test_a_run_that_starts_from_another_takes_its_weights_and_freezes_what_is_told(
    run: Path, rows: str, tmp_path: Path
) -> None:
    smallest = TextClassification.smallest()["model"]
    made = recipe(
        rows,
        model={**smallest, "start": str(run)},
        train={"steps": 5, "batch": 16, "compile": "off", "freeze": ["*tokens.weight"], "learning_rate": 0.1},
    )
    heard: list[str] = []
    show = Show(quiet=True)
    show.line = heard.append  # type: ignore[method-assign]
    outcome = train(made, out=tmp_path / "run", tools=Tools(show, StopRequest()))
    count = len(load(run).module.state_dict())
    said = f"started from {run}: took {count} of {count} tensors"
    assert said in heard
    events = [json.loads(line) for line in (outcome.folder / "events.jsonl").read_text("utf-8").splitlines()]
    assert [event["message"] for event in events if event["event"] == "taken"] == [said]
    page = (outcome.folder / "report.html").read_text("utf-8")
    assert "Started from a model" in page and f"took {count} of {count} tensors" in page
    before, after = (load(folder).module.state_dict() for folder in (run, outcome.folder))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    learned = {name for name, _ in load(run).module.named_parameters()}
    assert moved == {name for name in learned if not name.endswith("tokens.weight")}
    plan = json.loads((outcome.folder / "plan.json").read_text("utf-8"))
    assert "train.learning_rate" not in plan["chosen"]


def test_what_begins_anew_is_told_with_the_reason(run: Path, tmp_path: Path) -> None:
    others = [{**row, "label": "ABC"[n % 3]} for n, row in enumerate(reviews(60))]
    made = recipe(write(tmp_path / "rows.jsonl", others), train={"steps": 1, "batch": 16})
    made["model"]["start"] = str(run)
    folder = train(made, out=tmp_path / "run").folder
    told = json.loads((folder / "plan.json").read_text("utf-8"))["started"]["told"]
    assert re.search(r"new: [^;(]*output\.weight[^;(]*\(the labels are others\)", told)
    assert load(folder).kind.fitted.tokenizers[""].text == load(run).kind.fitted.tokenizers[""].text


def test_asking_for_slices_moves_no_row_to_another_side(rows: str, tmp_path: Path) -> None:
    content = [{**row, "shop": "north" if n % 3 else "south"} for n, row in enumerate(reviews(90))]
    path = write(tmp_path / "rows.jsonl", content)
    # By a column that is not read, by the text, and by the label.
    slices: list[list[str]] = [[], ["shop", "text", "label"]]
    runs = [train(recipe(path, evaluate={"slices": s}), out=tmp_path / f"{len(s)}").folder for s in slices]
    plain, sliced = ([row["values"] for row in PreparedRows(run / "data").held_out.rows()] for run in runs)
    assert plain == sliced
    assert [pairing.why for pairing in compare(runs).pairings.values()] == [""]
    told = json.loads((runs[1] / "evaluation.json").read_text("utf-8"))["slices"]
    assert {one["column"] for one in told} == {"shop", "text", "label"}


def test_slices_are_the_figures_of_the_rows_of_each_value(rows: str, tmp_path: Path) -> None:
    content = [{**row, "shop": "north" if n % 3 else "south"} for n, row in enumerate(reviews(90))]
    made = recipe(
        write(tmp_path / "rows.jsonl", content),
        data={"test_fraction": 0.4},
        evaluate={"slices": ["shop"], "bootstrap": 20},
    )
    outcome = train(made, out=tmp_path / "run")
    told = json.loads((outcome.folder / "evaluation.json").read_text("utf-8"))
    slices = {one["value"]: one for one in told["slices"]}
    assert set(slices) == {"north", "south"}
    total = sum(one["rows"] for one in slices.values())
    assert total == told["counts"]["rows"]
    mean = sum(one["rows"] * one["metrics"]["accuracy"]["value"] for one in slices.values()) / total
    assert mean == pytest.approx(told["metrics"]["accuracy"]["value"])
