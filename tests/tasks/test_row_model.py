"""A finished model: what comes from files, what goes wrong with a folder of it, what it measures."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luban.data.row_files import Layout
from luban.durable import DISK
from luban.errors import CheckpointError, DataError, InputError, LubanError
from luban.model_folder import LUBAN
from luban.tasks.asked_lines import lines_of_file, lines_of_open
from luban.tasks.base import Broken
from luban.tasks.row_learner import RowLearner
from luban.tasks.row_model import RowModel, load_row_model, measure_rows, rows_of_file
from luban.tasks.sequence_labelling import SequenceLabelling
from luban.tasks.text_classification import TextClassification
from luban.tasks.translation import Translation


def untrained(folder: Path, task: Any = TextClassification) -> tuple[RowModel, RowLearner]:
    """Return a model that has learned from rows what it tells apart, and nothing else."""
    rows = task.sample(40, random.Random(1))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    example = task.example(str(folder / "rows.jsonl"))
    recipe = task.recipe.model_validate({**example, "train": {"steps": 1, "batch": 4, "learning_rate": 1e-3}})
    data = task.prepare(recipe, folder / "data", stop=lambda: None, progress=lambda stage, share: None)
    learner = RowLearner(task(recipe, data.fitted), data)
    learner.model.eval()
    return RowModel(learner.task, learner.model, {}), learner


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RowModel:
    return untrained(tmp_path_factory.mktemp("model"))[0]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "label", "other"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows=st.lists(anything | st.just(Broken("torn")), max_size=6))
def test_whatever_is_asked_each_row_has_its_answer_in_its_place(model: RowModel, rows: list[Any]) -> None:
    answers = model.predict(rows)
    assert len(answers) == len(rows)
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        text = row if isinstance(row, str) else row.get("text") if isinstance(row, dict) else None
        if isinstance(text, str) and text.strip() and text.isprintable():
            assert "label" in answer, (row, answer)
            assert answer == model.predict([text])[0]
        elif "error" in answer:
            assert answer["row"] == number
            assert answer["error"]


@pytest.mark.parametrize("task", [SequenceLabelling, Translation])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(rows=st.lists(anything, min_size=1, max_size=4))
def test_no_row_can_break_a_model(
    task: Any, rows: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if task.name not in _made:
        _made[task.name] = untrained(tmp_path_factory.mktemp("model"), task)[0]
    answers = _made[task.name].predict(rows)
    assert all(("error" in answer) != bool({"tags", "text"} & answer.keys()) for answer in answers)


_made: dict[str, RowModel] = {}


def test_rows_that_json_cannot_hold_are_answered_by_name(model: RowModel) -> None:
    answers = model.predict(["half \ud800", {"text": "fine", 3: object()}, object(), "fine"])
    assert [answer.get("error", "")[:30] for answer in answers] == [
        "a text holds half of a surroga",
        "",
        "a row is an object with column",
        "",
    ]


# Files of rows.


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.txt", b"one\r\ntwo\n\n three \n", ["one", "two", " three "]),
        ("a.jsonl", b'\xef\xbb\xbf"one"\n{"text": 1}\n[2]\nnull\n', ["one", {"text": 1}, [2], None]),
        ("a.csv", b"text,n\none,1\n", [{"text": "one", "n": "1"}]),
        ("a.tsv", b"text\tn\none\t1\n", [{"text": "one", "n": "1"}]),
        ("empty.txt", b"\n\n", []),
    ],
)
def test_rows_are_what_the_lines_hold(tmp_path: Path, name: str, content: bytes, rows: list[Any]) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(rows_of_file("texts", tmp_path / name)) == rows


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"one\n\xff\ntwo\n", "a.txt:2: byte 1 of the row is not UTF-8 (0xff)"),
        ("a.txt", b"one\nz\0\ntwo\n", "a.txt:2: a NUL byte"),
        ("a.jsonl", b'"one"\n{\n"two"\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'"one"\n' + b"[" * 100_000 + b'\n"two"\n', "a.jsonl:2: not JSON"),
        ("a.csv", b"text,n\none,1\none\ntwo,2\n", "a.csv:3: 1 columns, there should be 2"),
    ],
)
def test_a_bad_row_stands_in_its_place(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    rows = list(rows_of_file("texts", tmp_path / name))
    assert [isinstance(row, Broken) for row in rows] == [False, True, False]
    assert rows[1] == Broken(why)


@pytest.mark.parametrize(("layout", "kept"), [("pairs", {"source": "a"}), ("texts", {"source": "a"})])
def test_a_table_of_rows_to_answer_may_lack_what_is_asked(
    tmp_path: Path, layout: Layout, kept: dict[str, str]
) -> None:
    (tmp_path / "a.csv").write_text("source\na\n")
    assert list(rows_of_file(layout, tmp_path / "a.csv")) == [kept]


def test_lines_of_an_open_file_are_those_of_the_file(tmp_path: Path) -> None:
    content = b"one\r\n\n\xff\nz\0\n two \nhalf \xed\xa0\x80"
    (tmp_path / "a.txt").write_bytes(content)
    rows = list(lines_of_file(tmp_path / "a.txt"))
    assert [row for row in rows if isinstance(row, str)] == ["one", " two "]
    told = [str(row.why).replace("a.txt:", "-:") for row in rows if isinstance(row, Broken)]
    assert [line.split()[0] for line in told] == ["-:3:", "-:4:", "-:6:"]
    text = content.decode("utf-8", "surrogateescape")
    for file in (io.BytesIO(content), io.StringIO(text, newline="")):
        found = list(lines_of_open(file, str))
        assert [row for row in found if isinstance(row, str)] == ["one", " two "]
        assert [row.why.split()[0] for row in found if isinstance(row, Broken)] == ["-:3:", "-:4:", "-:6:"]
    assert [row.why for row in lines_of_open(io.BytesIO(content), str) if isinstance(row, Broken)] == told


def test_a_line_of_an_open_file_that_is_too_long_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luban.tasks.asked_lines.MAX_ROW_BYTES", 10)
    for file in (io.BytesIO(b"one\n" + b"x" * 50 + b"\ntwo\n"), io.StringIO("one\n" + "x" * 50 + "\ntwo\n")):
        assert list(lines_of_open(file, str)) == [
            "one", Broken("-:2: the line is longer than 10 bytes"), "two",
        ]  # fmt: skip


def test_a_long_file_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n" * 1000 + b"\xff\n")
    rows: Iterator[Any] = rows_of_file("texts", tmp_path / "a.txt")
    assert next(rows) == "fine"
    assert sum(isinstance(row, Broken) for row in rows) == 1


# Folders.


def test_a_folder_gives_back_the_model(tmp_path: Path) -> None:
    model, learner = untrained(tmp_path)
    learner.save(tmp_path / "model", "", DISK)
    read = load_row_model(TextClassification, tmp_path / "model")
    assert read.predict(["lovely film"]) == model.predict(["lovely film"])
    assert read.task == "text-classification"
    assert read.state["primary"] == "accuracy"


@pytest.mark.parametrize(
    "change",
    [
        {"task": "translation"},
        {"fitted": None},
        {"fitted": {}},
        {"fitted": {"labels": ["a"] * 9}},
        {"fitted": {"labels": 3}},
        {"recipe": {"task": "text-classification"}},
        {"recipe": {"data": {"train": "x"}, "model": {"network": "none"}}},
        {"recipe": [1]},
        {"recipe": None},
        {"tokenizers": ["elsewhere"]},
        {"tokenizers": []},
    ],
    ids=str,
)
def test_a_folder_whose_state_says_something_else_is_an_error_of_ours(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    _, learner = untrained(tmp_path)
    learner.save(tmp_path / "model", "", DISK)
    path = tmp_path / "model" / LUBAN
    written = json.loads(path.read_text("utf-8"))
    written["task_state"] |= change
    path.write_text(json.dumps(written), "utf-8")
    with pytest.raises(LubanError):
        load_row_model(TextClassification, tmp_path / "model")


@pytest.mark.parametrize("missing", ["words", "tags", "scheme"])
def test_a_tagger_whose_state_lacks_something_is_no_model(tmp_path: Path, missing: str) -> None:
    _, learner = untrained(tmp_path, SequenceLabelling)
    learner.save(tmp_path / "model", "", DISK)
    path = tmp_path / "model" / LUBAN
    written = json.loads(path.read_text("utf-8"))
    del written["task_state"]["fitted"][missing]
    path.write_text(json.dumps(written), "utf-8")
    with pytest.raises(CheckpointError, match="does not say what the model is"):
        load_row_model(SequenceLabelling, tmp_path / "model")


# Measuring.


def measured(model: RowModel, path: Path, **options: Any) -> Any:
    return measure_rows(
        model, [str(path)], recipe=None, stop=lambda: None, progress=lambda stage, share: None, **options
    )


def test_a_file_is_measured_by_the_columns_the_model_has_learned_from(tmp_path: Path) -> None:
    rows = TextClassification.sample(40, random.Random(1))
    trained = [{"title": row["text"], "label": row["label"]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trained))
    recipe = TextClassification.recipe.model_validate(
        {"data": {"train": str(tmp_path / "rows.jsonl"), "text": "title"}, "train": {"steps": 1}}
    )
    data = TextClassification.prepare(
        recipe, tmp_path / "data", stop=lambda: None, progress=lambda stage, share: None
    )
    kind = TextClassification(
        recipe.model_copy(update={"data": recipe.data.model_copy(update={"text": None})}), data.fitted
    )
    model = RowModel(kind, kind.build().eval(), {})
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({**row, "text": "-"}) + "\n" for row in trained))
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measured(model, tmp_path / "more.jsonl", bootstrap=0).figures
    assert found == measured(model, tmp_path / "rows.jsonl", bootstrap=0).figures
    assert (
        found == measured(model, tmp_path / "other.jsonl", bootstrap=0).figures
    )  # has no `title`: by its name


def test_rows_left_out_of_a_measurement_are_counted(model: RowModel, tmp_path: Path) -> None:
    rows = TextClassification.sample(6, random.Random(2))
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [{"label": "good"}, *rows, {"text": "x"}])
    )
    found = measured(model, tmp_path / "a.jsonl", bootstrap=0)
    assert found.counts == {"rows": 6, "left_out": 2}
    examples = [one for kind in found.sections["bad_rows"]["kinds"].values() for one in kind["examples"]]
    assert sorted(one["line"] for one in examples) == [1, 8]


def test_a_file_of_bad_rows_alone_says_of_which_kinds(model: RowModel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "other"}\n{"text": "", "label": "good"}\n')
    with pytest.raises(InputError, match="there is no row to measure on") as none:
        measured(model, tmp_path / "a.jsonl")
    assert list(none.value.received) == ["empty_row", "unknown_label"]
    assert none.value.received["empty_row"].startswith("1, first a.jsonl:2: ")
    assert none.value.fix == "remove the row or fill it"


def test_under_the_policy_error_the_first_bad_row_ends_it(tmp_path: Path) -> None:
    model, _ = untrained(tmp_path)
    data = model.kind.settings.data.model_copy(update={"on_bad_row": "error"})
    model.kind.settings = model.kind.settings.model_copy(update={"data": data})
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "goood"}\n')
    with pytest.raises(DataError, match="did you mean 'good'"):
        measured(model, tmp_path / "a.jsonl")


def test_an_option_it_does_not_know_is_refused(model: RowModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no such option") as refused:
        measured(model, tmp_path / "a.jsonl", stride=3, length=None)
    assert refused.value.received == ["stride"]
