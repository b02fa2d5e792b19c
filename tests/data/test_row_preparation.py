"""Rows on their way to a folder: the bad ones are counted and named, who is held out depends on the row alone."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.row_files import Layout
from luban.data.row_preparation import prepare_rows, row_fingerprint
from luban.data.row_sets import BadValue, Fitted, PreparedRows, Row, read_tokenizers
from luban.durable import write_json
from luban.errors import CheckpointError, DataError, InputError, LubanError, RecipeError, Stopped
from luban.row_recipe import RowData


class Texts:
    """The least that reads texts with labels: it learns the words and labels of the training rows."""

    layout: ClassVar[Layout] = "table"
    targets: ClassVar[frozenset[str]] = frozenset({"label"})
    ragged: ClassVar[frozenset[str]] = frozenset({"words"})

    def __init__(self) -> None:
        self.learned_from: list[Row] = []

    def asked_columns(self) -> Sequence[str] | None:
        return None

    def roles(self, columns: Sequence[str]) -> Mapping[str, Any]:
        if "label" not in columns:
            raise DataError("there is no label", received=list(columns))
        return {"text": "text", "label": "label"}

    def clean(self, values: Mapping[str, Any], roles: Mapping[str, Any]) -> Row:
        if not (text := str(values.get(roles["text"]) or "").strip()):
            raise BadValue("empty_row", "the text is empty")
        label = values.get(roles["label"])
        return {"text": text} if label in (None, "") else {"text": text, "label": label}

    def fit(self, rows: Callable[[], Iterator[Row]], roles: Mapping[str, Any]) -> Fitted:
        self.learned_from = list(rows())
        words = sorted({word for row in rows() for word in row["text"].split()})
        return Fitted(
            {"roles": dict(roles), "words": words, "labels": sorted({row["label"] for row in rows()})}
        )

    def encode_all(self, rows: Iterator[Row], fitted: Fitted) -> Iterator[dict[str, Any] | BadValue]:
        for row in rows:
            if row["label"] not in fitted.state["labels"]:
                yield BadValue("unknown_label", f"no training row has the label {row['label']!r}")
                continue
            words = [word in fitted.state["words"] for word in row["text"].split()]
            yield {
                "words": np.array(words, np.int32),
                "label": np.array(fitted.state["labels"].index(row["label"])),
            }

    def kept(self, row: Row) -> Row:
        return row


class Pictures(Texts):
    """Rows that hold a picture, and where it lay."""

    def clean(self, values: Mapping[str, Any], roles: Mapping[str, Any]) -> Row:
        row = super().clean(values, roles)
        return {**row, "image": np.full((2, 2, 3), int(row.pop("text")), np.uint8), "path": values["path"]}

    def encode_all(self, rows: Iterator[Row], fitted: Fitted) -> Iterator[dict[str, Any] | BadValue]:
        del fitted
        for row in rows:
            yield {"words": np.zeros(1, np.int32), "image": row["image"]}

    def fit(self, rows: Callable[[], Iterator[Row]], roles: Mapping[str, Any]) -> Fitted:
        return Fitted({"seen": [row["image"].tolist() for row in rows()]})

    def kept(self, row: Row) -> Row:
        return {name: value for name, value in row.items() if name != "image"}


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., PreparedRows]:
    made = iter(range(10_000))

    def prepared(
        rows: bytes | Sequence[Mapping[str, Any]], reading: Texts | None = None, **data: Any
    ) -> PreparedRows:
        folder = tmp_path / f"{next(made)}"
        folder.mkdir()
        for name, content in {"train": rows, **data}.items():
            if isinstance(content, list):
                content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content).encode()
            if isinstance(content, bytes):
                suffix = "jsonl" if content.lstrip(b"\xef\xbb\xbf").startswith(b"{") else "csv"
                (folder / f"{name}.{suffix}").write_bytes(content)
                data[name] = str(folder / f"{name}.{suffix}")
        return prepare_rows(reading or Texts(), RowData(**data), {}, folder / "data")

    return prepared


def labelled(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"text": f"text {n}", "label": "even" if n % 2 else "odd"} for n in range(first, first + count)]


def sides(data: PreparedRows) -> dict[str, str]:
    """Return by text where each row is."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test or []}
    return {
        row["values"]["text"]: split
        for split, rows in splits.items()
        for row in (rows.rows() if len(rows) else [])
    }


# Bad rows.

CSV = b"text,label\n" + b"".join(b"good %d,a\nbad %d,b\n" % (n, n) for n in range(20))


@pytest.mark.parametrize(
    ("line", "kind", "detail"),
    [
        (b"one,two,three\n", "wrong_columns", "3 columns, there should be 2"),
        (b"no end\n", "wrong_columns", "1 columns, there should be 2"),
        (b"no label,\n", "missing_value", "the row has no label"),
        (b",a\n", "empty_row", "the text is empty"),
        (b"  ,a\n", "empty_row", "the text is empty"),
        (b"ze\0ro,a\n", "nul", "a NUL character"),
        (b"caf\xe9,a\n", "invalid_utf8", "character 4 of a value is not UTF-8"),
        (b"x" * 2000 + b",a\n", "too_long", "the line is longer than 1,000 bytes"),
    ],
)
def test_a_bad_row_is_counted_with_its_line_and_the_rest_is_used(
    prepare: Callable[..., PreparedRows], line: bytes, kind: str, detail: str
) -> None:
    content = CSV + line + b"last,a\n"
    data = prepare(content, max_row_bytes=1000)
    bad = data.report["bad_rows"]
    assert bad["total"] == 1
    assert bad["kinds"][kind]["examples"] == [{"file": "train.csv", "line": 42, "detail": detail}]
    assert data.report["rows"] == 41
    assert "last" in sides(data)
    kept = [json.loads(one) for one in (data.folder / "quarantine.jsonl").read_text("utf-8").splitlines()]
    assert [(row["kind"], row["line"]) for row in kept] == [(kind, 42)]
    left_out = prepare(content, max_row_bytes=1000, on_bad_row="skip")
    assert left_out.report["bad_rows"] == bad
    assert (left_out.folder / "quarantine.jsonl").read_bytes() == b""
    with pytest.raises(DataError, match=f"a bad row \\({kind}\\): {detail}") as stopped:
        prepare(content, max_row_bytes=1000, on_bad_row="error")
    assert str(stopped.value.where).endswith("train.csv:42")
    assert "data.on_bad_row=quarantine" in str(stopped.value.fix)


def test_a_field_of_ten_megabytes_is_a_bad_row_by_default(prepare: Callable[..., PreparedRows]) -> None:
    data = prepare(CSV + b'"' + b"long " * 2_100_000 + b'",a\n')
    assert data.report["bad_rows"]["kinds"]["too_long"]["count"] == 1
    assert data.report["rows"] == 40


def test_a_byte_order_mark_and_windows_line_ends_change_nothing_and_are_told(
    prepare: Callable[..., PreparedRows],
) -> None:
    plain, mended = prepare(CSV), prepare(b"\xef\xbb\xbf" + CSV.replace(b"\n", b"\r\n"))
    assert sides(mended) == sides(plain)
    bad = mended.report["bad_rows"]
    assert (bad["total"], bad["kinds"]["bom"]["count"], bad["kinds"]["crlf"]["left_out"]) == (0, 1, False)


def test_the_first_row_of_json_may_lack_what_others_have(prepare: Callable[..., PreparedRows]) -> None:
    data = prepare([{"text": "no label here"}, *labelled(20)])
    assert data.report["bad_rows"]["kinds"]["missing_value"]["examples"][0]["line"] == 1
    assert data.report["rows"] == 20


def test_a_label_that_only_held_out_rows_have_is_a_bad_row_of_them(
    prepare: Callable[..., PreparedRows],
) -> None:
    test = [*labelled(3, 100), {"text": "other", "label": "neither"}]
    data = prepare(labelled(20), test=test)
    assert data.report["split"]["test"]["rows"] == 3
    (example,) = data.report["bad_rows"]["kinds"]["unknown_label"]["examples"]
    assert (example["file"], example["line"]) == ("test.jsonl", 4)
    assert {file["name"]: file["rows"] for file in data.report["files"]} == {
        "train.jsonl": 20,
        "test.jsonl": 3,
    }
    with pytest.raises(DataError, match="no row is left of test") as none:
        prepare(labelled(20), test=test[3:])
    first = "1, first test.jsonl:1: no training row has the label 'neither'"
    assert none.value.received == {"unknown_label": first}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_file_of_bad_rows_alone_is_named(prepare: Callable[..., PreparedRows], split: str) -> None:
    content = {"train": labelled(20), split: [{"text": "", "label": "a"}]}
    with pytest.raises(DataError, match=rf"data\.{split} has no row that can be used"):
        prepare(content.pop("train"), **content)


def test_where_no_row_can_be_used_it_is_said_what_is_wrong_with_them(
    prepare: Callable[..., PreparedRows],
) -> None:
    rows = [{"text": "", "label": "x"}, {"text": "a"}, {"text": "", "label": "x"}]
    with pytest.raises(DataError, match=r"data\.train has no row that can be used") as none:
        prepare(rows)
    assert none.value.received["empty_row"].startswith("2, first train.jsonl:1: ")
    assert none.value.received["missing_value"].startswith("1, first train.jsonl:2: ")
    assert none.value.fix == "remove the row or fill it"


# Who is held out.


@settings(max_examples=6)
@given(
    count=st.integers(40, 60),
    more=st.integers(1, 40),
    seed=st.integers(0, 99),
    folds=st.sampled_from([None, 2]),
)
def test_adding_rows_moves_none(
    tmp_path_factory: pytest.TempPathFactory, count: int, more: int, seed: int, folds: int | None
) -> None:
    found = []
    for rows in (labelled(count), labelled(more, count) + labelled(count)[::-1]):
        folder = tmp_path_factory.mktemp("rows")
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = RowData(train=str(folder / "rows.jsonl"), seed=seed, folds=folds, validation_fraction=0.3)
        found.append(sides(prepare_rows(Texts(), data, {}, folder / "data")))
    before, after = found
    alone = Counter(before.values())
    moved = [text for text in before if after[text] != before[text]]
    # A side that no row drew was given one, which is alone there: it goes back once another row draws that side.
    assert all(alone[before[text]] == 1 for text in moved)


def test_the_shares_are_those_asked_for_and_another_seed_takes_others(
    prepare: Callable[..., PreparedRows],
) -> None:
    rows = labelled(2000)
    data = prepare(rows, validation_fraction=0.2, test_fraction=0.3)
    shares = Counter(sides(data).values())
    assert abs(shares["validation"] / 2000 - 0.2) < 0.03
    assert abs(shares["test"] / 2000 - 0.3) < 0.03
    assert sides(prepare(rows, validation_fraction=0.2, test_fraction=0.3)) == sides(data)
    assert sides(prepare(rows, validation_fraction=0.2, test_fraction=0.3, seed=1)) != sides(data)


def test_shares_that_leave_nothing_are_refused(prepare: Callable[..., PreparedRows]) -> None:
    with pytest.raises(RecipeError, match="take all rows") as refused:
        prepare(labelled(20), validation_fraction=0.5, test_fraction=0.5)
    assert refused.value.received == "validation_fraction 0.5, test_fraction 0.5"


def test_equal_rows_are_on_one_side_whatever_their_labels(prepare: Callable[..., PreparedRows]) -> None:
    twice = labelled(60) + [{**row, "label": "odd"} for row in labelled(60)]
    data = prepare(twice, validation_fraction=0.3, test_fraction=0.3)
    for rows in (data.train, data.validation, data.test):
        assert rows is not None
        assert set(Counter(row["values"]["text"] for row in rows.rows()).values()) == {2}
    assert data.report["split"]["overlap"]["exact"] == 0


def test_equal_pictures_are_on_one_side_wherever_they_lie(prepare: Callable[..., PreparedRows]) -> None:
    rows = [{"text": n, "label": "a", "path": f"{copy}/{n}.png"} for n in range(1, 40) for copy in "xy"]
    data = prepare(rows, Pictures(), validation_fraction=0.3, test_fraction=0.3)
    for split in (data.train, data.validation, data.test):
        assert split is not None
        pictures = Counter(split.column("image")[:, 0, 0, 0].tolist())
        assert set(pictures.values()) == {2}


@settings(max_examples=12)
@given(
    count=st.integers(3, 7),
    seed=st.integers(0, 999),
    copies=st.integers(1, 2),
    test_fraction=st.sampled_from([0.1, 0.8]),
)
def test_of_few_rows_every_side_has_one(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, copies: int, test_fraction: float
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": str(n), "label": "a"}) + "\n" for n in range(count)) * copies)
    data = RowData(train=str(path), seed=seed, test_fraction=test_fraction)
    prepared = prepare_rows(Texts(), data, {}, path.parent / "data")
    sizes = [len(rows) for rows in (prepared.train, prepared.validation, prepared.test or [])]
    assert all(size and size % copies == 0 for size in sizes)
    assert sum(sizes) == count * copies


def test_too_few_different_rows_are_refused_with_their_number(prepare: Callable[..., PreparedRows]) -> None:
    constant = [{"text": "the same", "label": label} for label in "ab" * 10]
    with pytest.raises(DataError, match="too few different rows") as few:
        prepare(constant)
    assert few.value.received == "rows: 20, different ones to choose from: 1"
    two = [{"text": text, "label": "a"} for text in ("one", "other")]
    with pytest.raises(DataError, match="too few different rows"):
        prepare(two)
    assert len(prepare(two, test_fraction=0.0).train) == 1


def test_folds_partition_the_rows_and_none_is_tested_where_it_was_chosen_by(
    prepare: Callable[..., PreparedRows],
) -> None:
    rows = labelled(60) + labelled(10)
    found = [sides(prepare(rows, folds=4, fold=fold, validation_fraction=0.2)) for fold in range(4)]
    tested = Counter(text for one in found for text, side in one.items() if side == "test")
    assert tested == Counter({row["text"]: 1 for row in labelled(60)})
    assert all(set(one.values()) == {"train", "validation", "test"} for one in found)


def test_a_fold_without_rows_is_told_before_any_is_trained(prepare: Callable[..., PreparedRows]) -> None:
    for fold in (0, 1):
        with pytest.raises(DataError, match="of 40 folds have no row to test on") as empty:
            prepare(labelled(30), folds=40, fold=fold)
        assert empty.value.received == "different rows: 30"


def test_files_of_their_own_stay_whole(prepare: Callable[..., PreparedRows]) -> None:
    data = prepare(labelled(20), validation=labelled(5, 100), test=labelled(5, 200))
    assert data.report["split"]["rule"] == "files"
    assert Counter(sides(data).values()) == {"train": 20, "validation": 5, "test": 5}


def test_rows_of_test_files_that_stand_in_training_are_counted_shown_and_noted(
    prepare: Callable[..., PreparedRows],
) -> None:
    data = prepare(labelled(20), validation=labelled(4, 100), test=labelled(5, 18))
    overlap = data.report["split"]["overlap"]
    assert overlap["exact"] == 2
    shown = overlap["examples"][1]
    assert (shown["validation"]["file"], shown["validation"]["line"]) == ("test.jsonl", 2)
    assert (shown["train"]["file"], shown["train"]["line"]) == ("train.jsonl", 20)
    assert "text 19" in shown["train"]["text"]
    (note,) = data.report["notes"]
    assert note == {
        "kind": "overlap",
        "detail": "2 of 9 held-out rows stand in training too: figures flatter",
    }


def test_training_rows_that_repeat_an_earlier_one_are_counted_shown_and_stay(
    prepare: Callable[..., PreparedRows],
) -> None:
    again = [{"text": "  TEXT\u3000 3 ", "label": "a"}, {"text": "text ３", "label": "b"}, *labelled(1, 5)]
    data = prepare([*labelled(20), *again], validation=labelled(4, 100), test=labelled(1, 200))
    assert data.report["split"]["train"]["rows"] == 23
    found = data.report["duplicates"]
    labels = {row["text"]: row["label"] for row in labelled(20)}
    assert found["rows"] == 3
    assert found["other_target"] == sum(row["label"] != labels["text 3"] for row in again[:2])
    example = found["examples"][0]
    assert (example["first"]["line"], example["again"]["file"]) == (4, "train.jsonl")
    assert data.report["notes"][0]["kind"] == "duplicates"
    assert data.report["notes"][0]["detail"].startswith("3 of 23 training rows repeat an earlier one")
    assert prepare(labelled(20)).report["duplicates"] == {"rows": 0, "other_target": 0, "examples": []}


# What is learned, and what is kept.


def test_only_training_rows_are_learned_from(prepare: Callable[..., PreparedRows]) -> None:
    reading = Texts()
    data = prepare(
        labelled(60), reading, test=[*labelled(5, 100), {"text": "word that is new", "label": "odd"}]
    )
    training = {text for text, side in sides(data).items() if side == "train"}
    assert {row["text"] for row in reading.learned_from} == training
    assert "new" not in data.fitted.state["words"]
    assert set(data.fitted.state["words"]) == {word for text in training for word in text.split()}


def test_encoded_rows_stand_beside_the_rows_they_come_from(prepare: Callable[..., PreparedRows]) -> None:
    data = prepare(labelled(30))
    for rows in (data.train, data.validation, data.test):
        assert rows is not None
        labels = [data.fitted.state["labels"][n] for n in rows.column("label")]
        assert labels == [row["values"]["label"] for row in rows.rows()]
        for number in range(len(rows)):
            assert rows.row(number)["line"] == int(rows.row(number)["values"]["text"].split()[1]) + 1


def test_what_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled(30)))
    asked = iter(range(1000))

    def stop() -> None:
        if next(asked) == 40:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        prepare_rows(Texts(), RowData(train=str(path)), {}, tmp_path / "data", stop=stop)
    assert [one.name for one in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_fingerprint_follows_content_and_settings_and_no_path(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(json.dumps({"text": "x", "label": "y"}) + "\n")
    one, other = (row_fingerprint(RowData(train=str(tmp_path / n / "rows.jsonl")), "table", {}) for n in "ab")
    assert one.sha256 == other.sha256
    place = str(tmp_path / "a" / "rows.jsonl")
    changed = [
        row_fingerprint(RowData(train=place, seed=1), "table", {}),
        row_fingerprint(RowData(train=place), "table", {"task": "x"}),
        row_fingerprint(RowData(train=place, test=place), "table", {}),
    ]
    assert len({print_.sha256 for print_ in (one, *changed)}) == 4
    assert row_fingerprint(RowData(train=place, workers=3), "table", {}).sha256 == one.sha256


def test_a_folder_that_was_altered_is_no_prepared_data(prepare: Callable[..., PreparedRows]) -> None:
    folder = prepare(labelled(30)).folder
    (folder / "train" / "words.bin").write_bytes(b"")
    with pytest.raises(CheckpointError):
        PreparedRows(folder)


def test_tokenizers_lie_within_the_folder(tmp_path: Path) -> None:
    for names in (["../elsewhere"], ["/etc"], [3]):
        with pytest.raises(CheckpointError, match="names tokenizers that it cannot have"):
            read_tokenizers(tmp_path, names)  # type: ignore[arg-type]
    write_json(tmp_path / "tokenizer.json", {})
    with pytest.raises(LubanError):
        read_tokenizers(tmp_path, [""])


def test_a_source_that_is_absent_is_named(prepare: Callable[..., PreparedRows], tmp_path: Path) -> None:
    with pytest.raises(InputError) as absent:
        prepare(labelled(20), test=str(tmp_path / "nothing.jsonl"))
    assert "nothing.jsonl" in str(absent.value)


def test_a_row_whose_name_came_before_is_a_bad_row_whatever_its_split(
    prepare: Callable[..., PreparedRows], tmp_path: Path
) -> None:
    rows = [{**row, "id": str(number)} for number, row in enumerate(labelled(20))]
    held = [
        {**row, "id": number} for number, row in enumerate(labelled(4, 100), 18)
    ]  # 18 and 19 stand in train too
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held), "utf-8")
    twice = {"text": "once more", "label": "a", "id": " 3 "}
    data = prepare(
        [*rows, twice, {"text": "of no name", "label": "a"}], test=str(tmp_path / "held.jsonl"), id="id"
    )
    kinds = data.report["bad_rows"]["kinds"]
    assert {kind: entry["count"] for kind, entry in kinds.items()} == {"repeated_id": 3, "missing_value": 1}
    first, *others = kinds["repeated_id"]["examples"]
    assert (first["line"], first["detail"]) == (21, "a row with the id '3' came before")
    assert [(one["file"], one["line"]) for one in others] == [("held.jsonl", 1), ("held.jsonl", 2)]
    assert kinds["missing_value"]["examples"][0]["detail"] == "the row has no id"
    assert data.report["rows"] == 22


def test_a_column_of_names_that_is_not_there_is_refused(prepare: Callable[..., PreparedRows]) -> None:
    with pytest.raises(DataError, match="the rows have no such column") as error:
        prepare(labelled(20), id="labl")
    assert (error.value.where, error.value.fix) == (
        "data.id",
        "did you mean data.id=label? there are: text, label",
    )
