"""What a report shows of a task on rows: right, whole, in both languages, and safe whatever the file says."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_reader import Page
from row_runs import KINDS, classification, make_row_run, metrics, png, write_json

from luban import catalogue
from luban.evaluation.answer_charts import predicted_against_true, reliability, residuals, roc
from luban.evaluation.baselines import baselines, verdict
from luban.evaluation.compare_page import render_comparison
from luban.evaluation.comparing import compare
from luban.evaluation.error_gallery import gallery
from luban.evaluation.heat import attention, confusion_matrix
from luban.evaluation.records import EVALUATION, RunRecords, Table, read_run
from luban.evaluation.report import write_report
from luban.evaluation.standing import next_command, reached, standing_of
from luban.evaluation.task_sections import task_sections
from luban.metrics.row_scores import RowScores, digests_of
from luban.run import Run

EVIL = "</script></td></title><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}\"'`"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of every task; tests read them and do not change them."""
    folder = tmp_path_factory.mktemp("rows")
    return {task: make_row_run(folder / task, task) for task in KINDS}


def _shown(page: str) -> str:
    """Return the English text of a page, without scripts and styles."""
    kept = (
        text
        for path, text in Page(page).texts
        if not any(tag in ("script", "style") or "zh" in a.get("class", "").split() for tag, a in path)
    )
    return " ".join(" ".join(kept).split())


def _report(run: Path) -> str:
    return write_report(run).read_text("utf-8")


@pytest.mark.parametrize("task", KINDS)
def test_the_legend_of_the_loss_names_what_is_drawn(runs: dict[str, Path], task: str) -> None:
    """Neither a regression nor a tagger has a loss on validation rows."""
    classifies = task in ("image-classification", "text-classification")
    assert ('class="dot c-validation"' in _report(runs[task])) == classifies


def _attributes(svg: str, tag: str, names: tuple[str, ...], **wanted: str) -> list[tuple[float, ...]]:
    """Return places of elements whose class has the words wanted, in percent."""
    found = []
    for element, attributes in Page(svg).elements:
        if element == tag and wanted.get("word", "") in attributes.get("class", "").split():
            found.append(tuple(float(attributes[name].rstrip("%")) for name in names))
    return found


# The whole page.


@pytest.mark.parametrize("task", KINDS)
def test_a_page_loads_nothing_and_is_the_same_every_time(runs: dict[str, Path], task: str) -> None:
    first = _report(runs[task])
    assert _report(runs[task]) == first
    assert len(first) < 400_000
    for tag, attributes in Page(first).elements:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)


NOTATION = re.compile(
    r"[0-9.,:%−–—·…→↓()\s-]|\b[kMBT]\b|万亿|[万亿]|e-?\d|[kMGTPE]?FLOP(?:/s)?|[KMGT]iB|\b[kMGT]?B(?:/s)?\b|UTC"
)


@pytest.mark.parametrize("task", KINDS)
def test_no_word_of_a_page_bypasses_the_catalogue(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    marked = {
        key: {language: f"⟦{text}⟧" for language, text in texts.items()}
        for key, texts in catalogue.entries().items()
    }
    monkeypatch.setattr(catalogue, "entries", lambda: marked)
    parsed = Page(_report(runs[task]))
    free = {"bdi", "code", "script", "style"}  # text of users and of programs
    rest = "\n".join(t if not any(tag in free for tag, _ in path) else "" for path, t in parsed.texts)
    depth, kept = 0, []
    for character in rest:
        depth += (character == "⟦") - (character == "⟧")
        if depth == 0 and character != "⟧":
            kept.append(character)
    left = NOTATION.sub("", "".join(kept)).replace("luban", "", 1).replace("SHA", "", 1)
    assert left.strip("› ") == ""
    for _, attributes in parsed.elements:
        for name in ("aria-label", "data-label-en", "data-label-zh", "alt", "placeholder"):
            assert attributes.get(name, "⟦").startswith("⟦")


@pytest.mark.parametrize("task", KINDS)
def test_nothing_of_a_language_model_is_said_of_rows(runs: dict[str, Path], task: str) -> None:
    shown = _shown(_report(runs[task]))
    for word in (
        "token/s",
        "tokens/s",
        "Tokens seen",
        "per token",
        "nats per token",
        "perplexity",
        "Once upon",
    ):
        assert word not in shown, word
    assert "No text was written" not in shown
    assert "Rows seen 25.6 k In 400 steps; rows seen again count again." in shown
    assert "rows/s" in shown
    assert "3.10 MFLOP per row" in shown
    assert "Training 54.0 k Validation 6,000 Test 10.0 k" in shown
    assert f"luban predict {task}/model --input FILE" in shown
    assert next_command(standing_of(runs[task]), "r") == "luban predict r --input FILE"


def test_the_head_of_a_page_has_the_tasks_own_figures(runs: dict[str, Path]) -> None:
    shown = _shown(_report(runs["text-classification"]))
    assert "A text classifier of 94.2 k parameters, trained on reviews.csv" in shown
    assert "Accuracy 0.8891 share 95% interval 0.8713 – 0.9051" in shown
    assert "On 2,500 held-out rows that training never saw." in shown
    notes = shown[
        : shown.index("Key figures 0") if "Key figures 0" in shown else shown.index("Accuracy 0.8891")
    ]
    assert "Overlap 12 of 2,500 held-out rows stand in training too: figures flatter" in notes
    assert shown.count("stand in training too") == 1  # data report and evaluation both say it
    assert "new_kind <b>anything</b>" in notes


def test_the_curve_of_the_primary_figure_and_its_values_are_there(runs: dict[str, Path]) -> None:
    page = Page(_report(runs["image-classification"]))
    tables = json.loads(page.within("script", id="read-out")[0])
    logged = [json.loads(line) for line in (runs["image-classification"] / "metrics.jsonl").open()]
    values = [row["accuracy"] for row in logged if row["kind"] == "evaluation"]
    assert tables["tables"]["evaluations"]["primary"] == [float(f"{v:.6g}") for v in values]
    assert tables["tables"]["evaluations"]["tokens"] == [64.0 * 50 * n for n in range(1, 9)]
    assert tables["names"]["primary"]["en"] == "Accuracy"
    assert tables["names"]["tokens"]["en"] == "rows"
    assert tables["names"]["validation"]["en"] == "validation log loss"


def test_a_run_that_goes_on_names_the_figure_its_task_logs_first(tmp_path: Path) -> None:
    run = make_row_run(tmp_path / "run", "sequence-labelling", end="running")
    assert read_run(run).primary == "entity_f1"
    assert reached(standing_of(run)).primary["name"] == "entity_f1"
    shown = _shown(_report(run))
    assert "Entity F1" in shown
    assert "at step 400, during training" in shown
    assert "The final evaluation has not been made." in shown


def test_a_table_takes_in_figures_as_they_come_and_not_more_than_it_may() -> None:
    table = Table(EVALUATION, room=2)
    table.add({"step": 1, "tokens": 8, "kind": "evaluation", "accuracy": 0.5})
    table.add({"step": 2, "tokens": 16, "accuracy": 0.6, "f1": 0.4, "third": 3.0})
    assert table.names == ("step", "tokens", "accuracy", "f1")
    assert np.isnan(table["f1"][0])
    assert table["f1"][1] == 0.4
    assert np.isnan(table["third"]).all()
    assert len(table["third"]) == 2


# Classes.


def test_the_confusion_matrix_has_counts_shares_and_the_commonest_mistakes() -> None:
    table = confusion_matrix({"labels": ["a", "b", "c"], "confusion": [[8, 2, 0], [5, 5, 0], [0, 0, 0]]})
    assert table is not None
    assert [[cell["written"] for cell in row["cells"]] for row in table["rows"]] == [
        ["8", "2", "·"],
        ["5", "5", "·"],
        ["·", "·", "·"],
    ]
    assert table["rows"][1]["cells"][0]["says"] == "b → a: 5 (50%)"
    assert table["rows"][0]["cells"][0]["shade"] == "right s9"  # the root of 0.8
    assert table["rows"][1]["cells"][0]["shade"] == "wrong s8"  # the root of 0.5
    assert [row["total"]["en"] for row in table["rows"]] == ["10", "10", "0"]
    assert [(p["true"], p["answered"], p["count"]["en"]) for p in table["pairs"]] == [
        ("b", "a", "5"),
        ("a", "b", "2"),
    ]


def test_of_many_classes_those_with_most_errors_are_shown_in_their_order() -> None:
    size = 60
    counts = np.diag(np.full(size, 9))
    counts[55, 3] = 4
    table = confusion_matrix({"labels": [f"class {n}" for n in range(size)], "confusion": counts.tolist()})
    assert table is not None
    assert len(table["columns"]) == len(table["rows"]) == 50
    assert {"class 55", "class 3"} <= set(table["columns"])
    assert table["columns"] == sorted(table["columns"], key=lambda name: int(name.split()[1]))
    assert table["left_out"]["en"] == "10"


@pytest.mark.parametrize(
    "confusion",
    [None, 3, [], [[1]], [[1, 2], [3]], [[1, -2], [3, 4]], [[1, "2"], [3, 4]], [[1, 10**400], [3, 4]]],
)
def test_a_confusion_matrix_that_is_none_is_left_out(confusion: object) -> None:
    assert confusion_matrix({"labels": ["a", "b"], "confusion": confusion}) is None


def test_of_many_curves_the_lowest_are_drawn_with_their_areas() -> None:
    entries = [
        {"label": f"c{n}", "points": [[0, 0], [0, 1], [1, 1]], "auc": (n * 7 % 20) / 20} for n in range(20)
    ]
    found = roc({"roc": [*entries, {"label": "empty", "points": []}]})
    assert found is not None
    assert found["shown"]["en"] == "8"
    assert found["classes"]["en"] == "20"
    assert [re.search(r"<b>(.*?)</b>", str(name))[1] for _, name in found["legend"][:3]] == [
        "0",
        "0.05000",
        "0.1000",
    ]  # type: ignore[index]
    assert found["svg"].count("<path") == 9  # and chance


def test_reliability_bars_stand_as_high_as_answers_are_right() -> None:
    bins = [
        {"low": 0.0, "high": 0.5, "confidence": None, "accuracy": None, "count": 0},
        {"low": 0.5, "high": 1.0, "confidence": 0.8, "accuracy": 0.6, "count": 30},
    ]
    found = reliability({"reliability": {"bins": bins, "ece": 0.2}})
    assert found is not None
    assert _attributes(found["svg"], "rect", ("x", "y", "width", "height"), word="bin") == [
        (50.0, 40.0, 50.0, 60.0)
    ]
    assert _attributes(found["svg"], "circle", ("cx", "cy"), word="point") == [(80.0, 40.0)]
    assert "0.5 – 1: 60% · 30" in found["svg"]
    assert found["error"]["en"] == "0.200"
    assert found["temperature"] is None
    assert reliability({"reliability": {"bins": [{**bins[0]}]}}) is None


# Regression.


def test_predictions_lie_where_their_values_say_and_the_line_of_equality_is_the_diagonal() -> None:
    svg = predicted_against_true({"points": [[0, 10], [10, 0], [5, 5]]})
    assert svg is not None
    places = _attributes(svg, "circle", ("cx", "cy"), word="point")
    (left, top), (right, bottom), middle = places
    assert left == pytest.approx(100 - right)
    assert (top, bottom) == (pytest.approx(left), pytest.approx(right))
    assert middle == (50.0, 50.0)
    assert 'd="M0 1000L1000 0"' in svg


def test_residual_bars_are_as_wide_as_their_bins_and_in_proportion() -> None:
    svg = residuals({"residuals": {"edges": [-2, 0, 1], "counts": [10, 5]}})
    assert svg is not None
    (x0, w0, h0), (x1, w1, h1) = _attributes(svg, "rect", ("x", "width", "height"), word="bin")
    assert (x0, w0, x1, w1) == (0.0, pytest.approx(66.67), pytest.approx(66.67), pytest.approx(33.33))
    assert h0 == pytest.approx(2 * h1, abs=0.02)
    for edges in ([-2, 0], [0, 0, 1], [1, 0, 2], ["a", 1, 2]):
        assert residuals({"residuals": {"edges": edges, "counts": [10, 5]}}) is None


# Baselines, slices, folds.


@pytest.mark.parametrize(
    ("best", "lower", "said"),
    [
        (0.70, False, "better"),
        (0.79, False, "open"),
        (0.82, False, "open"),
        (0.90, False, "worse"),
        (0.70, True, "worse"),
        (0.90, True, "better"),
    ],
)
def test_a_baseline_within_the_interval_decides_nothing(best: float, lower: bool, said: str) -> None:
    assert verdict({"value": 0.8, "low": 0.78, "high": 0.82}, best, lower=lower) == said


def test_the_best_baseline_is_held_against_the_model_by_the_primary_figure(runs: dict[str, Path]) -> None:
    table = _shown(_report(runs["table"]))
    assert (
        "Root mean squared error: a simpler model is better, 27.00 ( gradient boosting ) against 31.20"
        in table
    )
    assert re.search(r"gradient boosting 27.00 .*This model 31.20 .*Always the mean 78.90", table)
    assert "the model is better than every simpler one, 0.8713 against 0.8402" in _shown(
        _report(runs["image-classification"])
    )
    assert "no difference to the best simpler model is shown; its 0.8821" in _shown(
        _report(runs["text-classification"])
    )


def test_baselines_without_the_primary_figure_decide_nothing() -> None:
    told = baselines(
        {"metrics": metrics(f1=0.5), "baselines": [{"name": "x", "metrics": {"accuracy": 1.0}}]}, "f1"
    )
    assert told is not None
    assert told["verdict"] is None


def _slices(primary: str, direction: str, slices: list[tuple[float, float, float]]) -> list[Any]:
    records = RunRecords(
        evaluation={
            "primary": {"name": primary, "direction": direction},
            "metrics": {primary: {"value": 0.5}},
            "slices": [
                {
                    "column": "c",
                    "value": n,
                    "rows": 9,
                    "metrics": {primary: {"value": v, "low": low, "high": high}},
                }
                for n, (v, low, high) in enumerate(slices)
            ],
        }
    )
    found = task_sections(records)["slices"]
    return [row["verdict"]["en"] if row["verdict"] else None for row in found["rows"]]


def test_a_part_is_marked_only_where_its_interval_leaves_the_whole_out() -> None:
    parts = [(0.4, 0.35, 0.45), (0.45, 0.4, 0.51), (0.6, 0.55, 0.65), (0.1, 0.1, 0.1)]
    assert _slices("accuracy", "max", parts) == ["worse than all", None, "better than all", None]
    assert _slices("accuracy", "min", parts) == ["better than all", None, "worse than all", None]


def test_folds_have_their_mean_and_standard_deviation(runs: dict[str, Path]) -> None:
    shown = _shown(_report(runs["table"]))
    assert "1 30.00 22.00 0.8400 2 30.70 22.30 0.8350" in shown
    assert "Mean 31.40 22.60 0.8300" in shown
    spread = np.std([30.0, 30.7, 31.4, 32.1, 32.8], ddof=1)
    assert f"Standard deviation {spread:.1f} 0.47 0.0079" in shown


# Errors.


def test_errors_are_shown_as_what_they_are(runs: dict[str, Path]) -> None:
    pictures = Page(_report(runs["image-classification"]))
    images = [attributes for tag, attributes in pictures.elements if tag == "img"]
    assert len(images) == 6
    assert images[0]["src"] == f"data:image/png;base64,{png(28, 28, 0)}"
    assert (images[0]["width"], images[0]["height"]) == (
        "140",
        "140",
    )  # five times, so that pixels stay squares
    tagged = _shown(_report(runs["sequence-labelling"]))
    assert "Baden B-ORG B-LOC met" in tagged  # the right tag, then the answer
    assert "… word135" in tagged
    assert "word194 O B-PER …" in tagged
    assert "word134" not in tagged
    translated = _shown(_report(runs["translation"]))
    assert "Reference He missed the train. Answer He has the train the past." in translated
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1" in translated
    cells = _shown(_report(runs["table"]))
    assert "coast true town Wörgl built —" in cells
    assert "and 24 more columns" in cells
    assert "Answer 207.3" in cells


def test_the_same_type_of_entity_has_the_same_colour() -> None:
    part = {
        "kind": "tokens",
        "tokens": ["a", "b", "c"],
        "expected": ["B-X", "I-X", "O"],
        "answer": ["B-Y", "I-X", "O"],
    }
    (error,) = gallery({"errors": [{"parts": [part]}]})
    first, second, third = error["parts"][0]["tokens"]
    assert first["expected"]["colour"] == second["expected"]["colour"] != first["answer"]["colour"]
    assert third["expected"]["colour"] == "none"


def _header(width: int, height: int) -> str:
    data = bytearray(base64.b64decode(png(2, 2, 0)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "coded",
    [
        None,
        5,
        "",
        'not base64 "><script>',
        base64.b64encode(b"<svg onload='alert(1)'/>").decode(),
        base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
        _header(50_000, 50_000),
        _header(0, 3),
        "A" * 600_000,
    ],
)
def test_what_is_no_picture_for_a_page_is_left_out(coded: object) -> None:
    assert gallery({"errors": [{"parts": [{"kind": "picture", "png": coded}]}]}) == []


def test_pictures_keep_their_shape(tmp_path: Path) -> None:
    for size, shown in [
        ((8, 4), (160, 80)),
        ((300, 200), (300, 200)),
        ((1000, 500), (320, 160)),
        ((4000, 1), (320, 1)),
    ]:
        (error,) = gallery({"errors": [{"parts": [{"kind": "picture", "png": _header(*size)}]}]})
        picture = error["parts"][0]
        assert (picture["width"], picture["height"]) == shown


def test_attention_is_shaded_by_its_share_of_the_largest_weight() -> None:
    table = attention({"rows": ["x"], "columns": ["a", "b", "c"], "weights": [[0.8, 0.4, 0.0]]})
    assert table is not None
    assert [cell["shade"] for cell in table["rows"][0]["cells"]] == ["right s10", "right s5", ""]
    assert attention({"rows": ["x"], "columns": ["a"], "weights": [[1, 2]]}) is None


def test_attention_of_one_answer_shades_the_words_of_the_text() -> None:
    part = {"kind": "attention", "method": "rollout", "rows": ["good"], "columns": ["a", "b"]}
    (error,) = gallery({"errors": [{"parts": [{**part, "weights": [[0.25, 0.75]]}]}]})
    (shown,) = error["parts"]
    assert (shown["kind"], shown["method"], shown["cut"]) == ("looked_at", "rollout", False)
    assert [one["shade"] for one in shown["tokens"]] == ["right s3", "right s8"]
    (error,) = gallery({"errors": [{"parts": [{**part, "method": "<b>", "weights": [[0.1, 0.2]]}]}]})
    assert (error["parts"][0]["kind"], error["parts"][0]["method"]) == ("attention", "")


# Whatever the file says.


def _evil(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _evil(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_evil(item, key) for item in value]
    return (
        EVIL + value if isinstance(value, str) and key not in ("kind", "png", "direction", "task") else value
    )


@pytest.mark.parametrize("task", KINDS)
def test_text_of_users_is_shown_and_never_run(tmp_path: Path, task: str) -> None:
    run = make_row_run(tmp_path / "run", task)
    for name in ("evaluation", "recipe"):
        value = _evil(json.loads((run / f"{name}.json").read_text()))
        write_json(run / f"{name}.json", value)
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["slices"] = [{"column": EVIL, "value": EVIL, "rows": 1, "metrics": {EVIL: {"value": 1}}}]
    evaluation["baselines"] = [{"name": EVIL, "metrics": {EVIL: 1.0}}]
    evaluation["metrics"][EVIL] = {"value": 1, "low": 0, "high": 2}
    write_json(run / "evaluation.json", evaluation)
    parsed = Page(_report(run))
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
    assert sum(EVIL in text for text in parsed.within("bdi")) >= 4


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to everything within a JSON value, one entry of each list standing for all."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list) and value:
        found += _places(value[0], (*path, 0))
    return found


MADE = {task: made() for task, (_, made) in KINDS.items()}
PLACES = [(task, path) for task, value in MADE.items() for path in _places(value)]
NAMES = st.sampled_from(sorted({key for _, path in PLACES for key in path if isinstance(key, str)}))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["text", "picture", "cells", "tokens", "pair", "attention", "accuracy", "min", "\ud800", "a\0b"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=20,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), VALUES, st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_value_in_any_place_gives_a_page(
    tmp_path: Path, place: tuple[str, tuple[Any, ...]], value: Any, whole: dict[str, Any]
) -> None:
    task, path = place
    changed = json.loads(json.dumps(MADE[task]))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    write_json(run / "recipe.json", {"task": task})
    for evaluation in (changed, {"metrics": {"accuracy": {"value": 1}}, **whole}):
        (run / "evaluation.json").write_text(json.dumps(evaluation))
        page = _report(run)
        assert Page(page).open == []
        assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', page)


def test_a_page_of_very_much_is_of_bounded_size(tmp_path: Path) -> None:
    run = make_row_run(tmp_path / "run", "image-classification")
    evaluation = json.loads((run / "evaluation.json").read_text())
    labels = [f"class number {n}" for n in range(300)]
    evaluation["classification"] = classification(labels, curves=300)
    evaluation["errors"] = [{"parts": [{"kind": "text", "text": "word " * 900}]}] * 500
    evaluation["slices"] = [
        {"column": "c", "value": str(n), "rows": 1, "metrics": metrics(accuracy=0.5)} for n in range(9000)
    ]
    evaluation["notes"] = [{"kind": "leak", "detail": str(n) * 400} for n in range(1000)]
    evaluation["folds"] = [{"fold": n, "metrics": {"accuracy": n / 900}} for n in range(900)]
    write_json(run / "evaluation.json", evaluation)
    page = _report(run)
    assert len(page) < 1_000_000
    assert "250 classes with fewer errors are left out" in _shown(page)
    assert "The 30 of 300 with the lowest F1." in _shown(page)


# Two runs.


def test_a_comparison_of_classifiers_says_that_higher_is_better(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    rows = [{"text": str(n)} for n in range(200)]
    for name, better in (("a", 0.6), ("b", 0.95)):
        run = make_row_run(tmp_path / name, "text-classification")
        right = (draws.random(200) < better).astype(np.float64)
        RowScores(digests_of(rows), {"accuracy": right, "log_loss": 1.2 - right}).write(Run(run).rows)
    page = render_comparison(compare([tmp_path / "a", tmp_path / "b"]))
    shown = _shown(page)
    assert "the same 200 held-out rows" in shown
    assert re.search(r"Accuracy \+0\.\d+ \[.*?\] higher: better", shown)
    assert re.search(r"Log loss −0\.\d+ \[.*?\] lower: better", shown)
    assert "tokens" not in shown.lower()
    assert "Rows/s, median" in shown


# In a browser.

FRAMES = """<!doctype html><meta charset="utf-8"><body><script>
for (const width of [360, 390, 1100]) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `flex: none; width: ${width}px; height: 800px; border: 0`;
  frame.srcdoc = PAGE;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    for (const details of page.querySelectorAll("details")) details.open = true;
    const told = { width, english: root.scrollWidth };
    page.getElementById("language").click();
    told.chinese = root.scrollWidth;
    told.pictures = [...page.images].map((image) => image.naturalWidth);
    told.squares = [...page.querySelectorAll("svg.plot.square")].map((svg) => {
      const box = svg.getBoundingClientRect();
      return Math.abs(box.width - box.height);
    });
    const out = document.createElement("output");
    out.textContent = JSON.stringify(told);
    document.body.append(out);
  };
  document.body.append(frame);
}
</script>"""


@pytest.mark.parametrize("task", ["image-classification", "table"])
def test_in_a_browser(runs: dict[str, Path], tmp_path: Path, task: str) -> None:
    program: Callable[[str], str | None] = shutil.which
    found = program("chromium") or program("chromium-browser") or program("google-chrome")
    if found is None:
        pytest.skip("no Chromium here to load the page in")
    source = tmp_path / "page.html"
    source.write_text(FRAMES.replace("PAGE", json.dumps(_report(runs[task])).replace("</", "<\\/")), "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    more = [
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [found, *flags.split(), *more, "--window-size=1200,900", source.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr.decode("utf-8", "replace")
    told = [json.loads(one) for one in re.findall(r"<output>(.*?)</output>", done.stdout.decode("utf-8"))]
    assert sorted(one["width"] for one in told) == [360, 390, 1100]
    for one in told:
        assert one["english"] <= one["width"]
        assert one["chinese"] <= one["width"]
        assert set(one["pictures"]) <= {28}
        assert one["squares"]
        assert all(off < 1 for off in one["squares"])
