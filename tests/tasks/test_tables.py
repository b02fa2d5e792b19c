"""Tables: what columns are taken for, what is learned from training rows alone, what the loss and the answers are."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from luban.console import Show
from luban.data.row_sets import PreparedRows
from luban.data.statistics import quantile_bins
from luban.data.table_columns import mean_numbers
from luban.errors import DataError, InputError, LubanError, RecipeError
from luban.metrics.calibration import temperature
from luban.signals import StopRequest
from luban.tasks.row_learner import RowLearner
from luban.tasks.tabular import Tabular
from luban.verbs.evaluate import evaluate
from luban.verbs.load import load
from luban.verbs.train import Outcome, Tools, train

Cells = Mapping[str, Any]
SMALL = {"width": 16, "members": 3, "bins": 4, "embedding": 4, "dropout": 0.0}
STEPS = {"steps": 2, "batch": 8, "learning_rate": 0.01, "compile": "off", "dtype": "float32"}


def write(path: Path, rows: Sequence[Cells] | str) -> str:
    """Write rows as JSON lines, or a text as it stands."""
    if isinstance(rows, str):
        path.write_text(rows, "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def recipe_of(data: Mapping[str, Any], **sections: Mapping[str, Any]) -> Any:
    written = {"task": "tabular", "data": data, "model": SMALL, "train": STEPS, **sections}
    return Tabular.recipe.model_validate(written)


def prepared(folder: Path, recipe: Any) -> PreparedRows:
    return Tabular.prepare(recipe, folder / "data", stop=lambda: None, progress=lambda stage, share: None)


def split(folder: Path, train_rows: Any, test_rows: Any, suffix: str = "jsonl", **data: Any) -> PreparedRows:
    """Prepare a table whose validation rows are its training rows, and whose test rows stand apart."""
    place = write(folder / f"train.{suffix}", train_rows)
    held = write(folder / f"test.{suffix}", test_rows)
    return prepared(folder, recipe_of({"train": place, "validation": place, "test": held, **data}))


def houses(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Houses with a size, a place, a day, and a price in the currency's own unit."""
    draws = random.Random(seed)
    rows = []
    for _ in range(count):
        size, place = draws.randint(20, 200), draws.choice(["river", "hill", "old town"])
        price = 50_000 + 1_000 * size + (30_000 if place == "river" else 0)
        day = f"20{draws.randint(10, 20)}-0{draws.randint(1, 9)}-11"
        rows.append({"size": size, "place": place, "since": day, "price": price})
    return rows


def flats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Flats that are rented or not, most by their size."""
    draws = random.Random(seed)
    rows = []
    for _ in range(count):
        size, place = draws.randint(20, 160), draws.choice(["river", "hill"])
        rented = size + draws.gauss(0, 20) + 20 * (place == "river") > 90
        rows.append({"size": size, "place": place, "rented": "yes" if rented else "no"})
    return rows


# What the target is.


def test_a_class_called_none_is_a_class_and_no_missing_number(tmp_path: Path) -> None:
    kinds = ["None", "Insomnia", "Apnea"]
    rows = [{"x": n, "y": kinds[n % 3]} for n in range(30)]
    data = split(tmp_path, rows, rows)
    assert data.fitted.state["labels"] == ["Apnea", "Insomnia", "None"] and len(data.train) == 30
    (tmp_path / "numbers").mkdir()
    numbers = [{"x": n, "y": n / 3} for n in range(60)]
    numbered = split(tmp_path / "numbers", [*numbers, {"x": 1, "y": "none"}, {"x": 1, "y": "NA"}], numbers)
    assert len(numbered.train) == 60 and "labels" not in numbered.fitted.state
    assert (
        numbered.report["bad_rows"]["kinds"]["missing_value"]["count"] == 4
    )  # in training and in validation


def test_statistics_are_of_rows_from_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luban.tasks.tabular._LOOKED_AT", 100)
    # Sorted by day; `late` is empty in the first half.
    rows = [{"x": n, "late": "" if n < 500 else n, "y": "ab"[n % 2]} for n in range(1_000)]
    first, late = split(tmp_path, rows, rows).fitted.state["numbers"]
    assert first["mean"] + first["origin"] == pytest.approx(499.5, abs=10)
    assert len(late["bins"]) > 2 and late["mean"] + late["origin"] == pytest.approx(749.5, abs=10)


@pytest.mark.parametrize(
    ("targets", "kind", "labels"),
    [
        (["yes", "no"], "auto", ["no", "yes"]),
        ([True, False], "auto", ["False", "True"]),
        ([0, 1, 2], "auto", ["0", "1", "2"]),
        (["10", "9", "1"], "auto", ["1", "9", "10"]),
        (list(range(30)), "auto", None),
        (list(range(30)), "classes", [str(n) for n in range(30)]),
        ([0.5, 1.5], "auto", None),
        ([0, 1], "number", None),
        ([f"class {n}" for n in range(40)], "auto", [f"class {n}" for n in range(40)]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_target_is_classes_or_a_number(
    tmp_path: Path, targets: list[Any], kind: str, labels: list[str] | None
) -> None:
    rows = [{"x": n, "y": targets[n % len(targets)]} for n in range(4 * len(targets))]
    data = split(tmp_path, rows, rows, kind=kind)
    task = Tabular(recipe_of({"train": "-", "kind": kind}), data.fitted)
    assert task.is_number == (labels is None)
    if labels is None:
        numbers = np.array([float(row["y"]) for row in rows])
        assert data.fitted.state["target_mean"] == pytest.approx(numbers.mean())
        assert data.fitted.state["target_spread"] == pytest.approx(numbers.std())
        assert (task.primary, task.minimise) == ("rmse", True)
    else:
        assert sorted(task.labels) == sorted(labels)
        assert [task.labels[n] for n in data.train.column("label")] == [str(row["y"]) for row in rows]
        assert task.primary == ("roc_auc" if len(labels) == 2 else "accuracy") and not task.minimise


def test_labels_stand_in_the_order_of_numbers() -> None:
    rows = [{"label": text} for text in ("10", "9", "b", "1", "a")]
    state, _ = Tabular(recipe_of({"train": "-"})).learn_labels(row["label"] for row in rows)
    assert state["labels"] == ["1", "9", "10", "a", "b"]


@given(st.permutations(["n/k", *map(str, range(60))]))
def test_whether_a_target_is_a_number_does_not_hang_on_the_order_of_rows(targets: list[str]) -> None:
    assert mean_numbers(targets, 20)
    assert not mean_numbers([*targets, "a", "b"], 20)


def test_a_target_of_numbers_and_a_few_names_is_classes_and_noted(tmp_path: Path) -> None:
    cells = [*[str(n % 25) for n in range(97)], "inf", "inf", "sold"]
    data = split(
        tmp_path, [{"size": n, "price": cell} for n, cell in enumerate(cells)], [{"size": 1, "price": "7"}]
    )
    (note,) = [note["detail"] for note in data.report["notes"] if note["kind"] == "target"]
    assert note.startswith("the target is taken for 27 classes: 3 of ") and "such as 'inf'" in note
    assert "data.kind=number" in note


def test_a_target_that_should_be_a_number_and_is_none_is_a_bad_row(tmp_path: Path) -> None:
    rows = houses(80)
    rows[7]["price"] = "on request"
    data = split(tmp_path, rows, houses(5), suffix="jsonl")
    kinds = data.report["bad_rows"]["kinds"]
    assert kinds["not_a_number"]["count"] == 2  # once in training, once in validation: the same file
    assert kinds["not_a_number"]["examples"][0] == {
        "file": "train.jsonl",
        "line": 8,
        "detail": "the target is 'on request', and a number is wanted",
    }
    assert len(data.train) == 79


# What is learned comes from training rows.


def test_what_only_test_rows_hold_is_not_in_the_state(tmp_path: Path) -> None:
    train_rows, test_rows = houses(60), houses(5, seed=1)
    test_rows[0] |= {"place": "Atlantis", "size": 77_777, "since": "2199-01-01"}
    data = split(tmp_path, train_rows, test_rows)
    state = data.fitted.state
    assert not any(held in json.dumps(state) for held in ("Atlantis", "77777", "2199"))
    sizes = np.array([row["size"] for row in train_rows], np.float64)
    learned = state["numbers"][0]
    assert learned["mean"] == pytest.approx(sizes.mean())
    assert learned["spread"] == pytest.approx(sizes.std())
    assert learned["bins"] == quantile_bins(sizes, SMALL["bins"]).tolist()
    assert data.test is not None
    assert data.test.column("categories")[0].tolist() == [-1]  # unknown
    assert data.test.column("numbers")[0, 0] == 77_777


def test_an_unknown_label_is_a_bad_row_with_the_nearest(tmp_path: Path) -> None:
    test_rows = [*flats(4), {"size": 50, "place": "hill", "rented": "yess"}]
    data = split(tmp_path, flats(30), test_rows)
    (found,) = data.report["bad_rows"]["kinds"]["unknown_label"]["examples"]
    detail = "no training row has the label 'yess'; did you mean 'yes'?"
    assert found == {"file": "test.jsonl", "line": 5, "detail": detail}


# What a cell may be.


def test_missing_numbers_are_nan_and_missing_categories_zero(tmp_path: Path) -> None:
    holes = [None, "", "?", "NA", "n/a", "null", "-"]
    rows = flats(40) + [{"size": hole, "place": hole, "rented": "yes"} for hole in holes]
    data = split(tmp_path, rows, rows)
    assert np.isnan(data.train.column("numbers")[40:, 0]).all()
    assert not np.isnan(data.train.column("numbers")[:40]).any()
    assert (data.train.column("categories")[40:] == 0).all()
    assert (data.train.column("categories")[:40] >= 1).all()


def test_a_date_becomes_its_parts(tmp_path: Path) -> None:
    rows = [{"when": f"2024-02-{day:02d}T06:30", "y": day % 2} for day in range(1, 29)]
    data = split(tmp_path, rows, rows)
    days = (np.datetime64("2024-02-01") - np.datetime64("1970-01-01")).astype(int) + 6.5 / 24
    origin = data.fitted.state["numbers"][0]["origin"]
    # The first of February 2024 was a Thursday: 3, counted from Monday.
    assert data.train.column("numbers")[0] == pytest.approx([days - origin, 2024, 2, 3, 6.5])


def test_moments_a_second_apart_stay_apart(tmp_path: Path) -> None:
    seconds = range(40)
    rows = [
        {"when": f"2024-02-0{1 + n % 2}T06:30:{n:02d}", "epoch": 1_706_769_000 + n, "y": n % 2}
        for n in seconds
    ]
    data = split(tmp_path, rows, rows)
    epoch, days, *_, hour = data.train.column("numbers").T.astype(np.float64)
    assert np.diff(epoch) == pytest.approx(np.ones(39))
    moments = np.array([1 + n % 2 + (6.5 + n / 3600) / 24 for n in seconds])
    assert (days - days[0]) * 86_400 == pytest.approx((moments - moments[0]) * 86_400, abs=0.05)
    hour += data.fitted.state["numbers"][-1]["origin"]
    assert hour == pytest.approx(6.5 + np.array(seconds) / 3600, abs=1e-6)
    assert data.fitted.state["numbers"][0]["mean"] == pytest.approx(epoch.mean(), abs=1e-3)


def test_commas_part_thousands_and_are_never_decimal(tmp_path: Path) -> None:
    text = "price,weight,y\n" + "".join(
        f'"{1000 * n:,}","{n},5",{"ab"[n % 2]}\n' for n in [1, 10, 200, 3000] * 6
    )
    data = split(tmp_path, text, text, suffix="csv")
    assert data.train.column("numbers")[:4, 0].tolist() == [1_000, 10_000, 200_000, 3_000_000]
    assert data.fitted.state["columns"]["categories"]["weight"] == ["1,5", "10,5", "200,5", "3000,5"]
    assert {
        "kind": "decimal_comma",
        "detail": "weight holds numbers with a decimal comma, which are read as names: write a point",
    } in data.report["notes"]


def test_truth_is_the_same_in_json_and_in_csv(tmp_path: Path) -> None:
    lines = [{"old": n % 3 == 0, "size": n, "y": "ab"[n % 2]} for n in range(12)]
    text = "old,size,y\n" + "".join(f"{str(row['old']).upper()},{row['size']},{row['y']}\n" for row in lines)
    (tmp_path / "json").mkdir()
    (tmp_path / "csv").mkdir()
    these, those = split(tmp_path / "json", lines, lines), split(tmp_path / "csv", text, text, "csv")
    assert these.fitted.state == those.fitted.state
    assert these.train.column("numbers").tolist() == those.train.column("numbers").tolist()
    assert these.train.column("numbers")[:4, 0].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_number_that_float32_cannot_hold_is_missing(tmp_path: Path) -> None:
    rows = [*houses(80), {**houses(1)[0], "size": 1e39}, {**houses(1)[0], "price": 1e39}]
    data = split(tmp_path, rows, houses(3))
    assert np.isnan(data.train.column("numbers")[80, 0])
    assert data.report["bad_rows"]["kinds"]["not_a_number"]["examples"][0]["line"] == 82


# Which columns are used.


def test_what_says_nothing_is_left_out_and_noted(tmp_path: Path) -> None:
    rows = [
        {**row, "country": "FR", "empty": None, "id": f"flat-{number}"}
        for number, row in enumerate(flats(60))
    ]
    data = split(tmp_path, rows, rows, target="rented")
    columns = data.fitted.state["columns"]
    assert [*columns["numbers"], *columns["categories"]] == ["size", "place"]
    assert [note for note in data.report["notes"] if note["kind"] in ("constant", "identifier")] == [
        {"kind": "constant", "detail": "country is 'FR' in every training row: left out"},
        {"kind": "constant", "detail": "empty is 'nothing' in every training row: left out"},
        {"kind": "identifier", "detail": "id differs in nearly every row (60 values): left out"},
    ]


def test_a_number_can_be_declared_a_name_and_a_column_ignored(tmp_path: Path) -> None:
    rows = [{**row, "postcode": 75_000 + n % 5, "note": n} for n, row in enumerate(flats(60))]
    data = split(tmp_path, rows, rows, target="rented", categories=["postcode"], ignore=["note"])
    columns = data.fitted.state["columns"]
    assert columns["numbers"] == ["size"]
    assert columns["categories"]["postcode"] == [str(75_000 + n) for n in range(5)]
    assert "note" not in json.dumps(data.fitted.state) and "note" not in data.train.row(0)["values"]


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a target of another name": (
        "size,place,rented\n1,a,yes\n2,b,no\n",
        {"target": "rentd"},
        "the rows have no such column",
        "did you mean data.target=rented? there are: size, place, rented",
    ),
    "an ignored column of another name": (
        "size,rented\n1,yes\n2,no\n",
        {"ignore": ["sise"]},
        "the rows have no such column",
        "did you mean data.ignore=size? there are: size, rented",
    ),
    "one column": ("a\n1\n2\n", {}, "there is no column besides the target", "['a']"),
    "all ignored": ("a,b\n1,2\n", {"ignore": ["a"]}, "there is no column besides the target", "data.target"),
    "a header alone": ("a,b\n", {}, "data.train has no row that can be used", "rows.csv"),
    "nothing": ("", {}, "data.train has no row that can be used", "rows.csv"),
    "a column twice": ("a,b,a\n1,2,3\n", {}, "the header names a column twice", "rows.csv:1"),
    "one class": ("a,b\n1,x\n2,x\n3,x\n4,x\n", {}, "there is one class only", "'x'"),
    "one number": ("a,b\n1,2\n2,2\n", {"kind": "number"}, "the target is the same number", "data.target"),
    "constants": (
        "a,b,y\n1,x,p\n1,x,q\n1,x,p\n",
        {},
        "no column tells anything of the target",
        "a is '1' in every training row",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_learned_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    text, data, message, told = REFUSED[name]
    place = write(tmp_path / "rows.csv", text)
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, recipe_of({"train": place, "validation": place, "test": place, **data}))
    assert message in caught.value.message and told in str(caught.value)


def test_slices_name_a_column_that_is_used(tmp_path: Path) -> None:
    place = write(tmp_path / "rows.jsonl", flats(20))
    with pytest.raises(DataError, match=r"did you mean evaluate\.slices=place"):
        prepared(tmp_path, recipe_of({"train": place}, evaluate={"slices": ["plase"]}))


def test_figures_by_a_column_that_the_network_does_not_see(tmp_path: Path) -> None:
    place = write(tmp_path / "rows.jsonl", flats(60))
    recipe = recipe_of(
        {"train": place, "ignore": ["place"]},
        evaluate={"slices": ["place"], "bootstrap": 0},
        train={"steps": 2},
    )
    run = train(recipe.model_dump(mode="json", exclude_unset=True), out=tmp_path / "run").folder
    evaluation = json.loads((run / "evaluation.json").read_text("utf-8"))
    assert {entry["column"] for entry in evaluation["slices"]} == {"place"}
    assert {entry["value"] for entry in evaluation["slices"]} <= {row["place"] for row in flats(60)}
    assert PreparedRows(run / "data").fitted.state["roles"]["used"] == ["size"]


def test_the_column_that_names_rows_is_not_learned_from(tmp_path: Path) -> None:
    rows = [{"customer": number, **row} for number, row in enumerate(flats(40))]
    data = prepared(
        tmp_path / "data", recipe_of({"train": write(tmp_path / "rows.jsonl", rows), "id": "customer"})
    )
    assert "customer" not in data.fitted.state["roles"]["used"]
    assert data.report["bad_rows"]["total"] == 0


@pytest.mark.parametrize(
    "objective",
    [{"focal": 1.0}, {"label_smoothing": 0.1}, {"class_weights": "balanced"}, {"sampling": "balanced"}],
)
def test_what_is_said_of_classes_is_refused_where_the_target_is_a_number(
    tmp_path: Path, objective: dict[str, Any]
) -> None:
    place = write(tmp_path / "rows.jsonl", houses(40))
    recipe = recipe_of({"train": place}, objective=objective)
    with pytest.raises(RecipeError, match="the target is a number") as refused:
        Tabular.learner(recipe, prepared(tmp_path / "data", recipe))
    ((name, value),) = objective.items()
    assert refused.value.received == [f"{name}={value}"]


@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh", "sigmoid"])
def test_the_perceptrons_activation_is_the_recipes(tmp_path: Path, activation: str) -> None:
    found = learner(
        tmp_path, flats(40), flats(8), model={"network": "mlp", "activation": activation, "layers": 2}
    )
    assert found.model.mlp.config.activation == activation  # type: ignore[union-attr]


def test_a_row_of_other_columns_and_one_without_target_are_counted_with_their_lines(tmp_path: Path) -> None:
    good = "".join(f"{row['size']},{row['place']},{row['rented']}\n" for row in flats(40))
    place = write(tmp_path / "rows.csv", f"size,place,rented\n{good}1,hill\n1,hill,yes,7\n5,hill,?\n")
    kinds = prepared(tmp_path, recipe_of({"train": place})).report["bad_rows"]["kinds"]
    assert [found["line"] for found in kinds["wrong_columns"]["examples"]] == [42, 43]
    (missing,) = kinds["missing_value"]["examples"]
    assert missing == {"file": "rows.csv", "line": 44, "detail": "the row has no target"}


def test_a_file_without_header_gets_its_columns_from_the_recipe(tmp_path: Path) -> None:
    text = "".join(f"{row['size']},{row['place']},{row['rented']}\n" for row in flats(40))
    data = split(tmp_path, text, text, suffix="csv", columns=["size", "place", "rented"])
    assert data.fitted.state["roles"] == {"target": "rented", "used": ["size", "place"]}
    assert len(data.train) == 40


# The loss and the answers.


def learner(
    folder: Path, rows: list[dict[str, Any]], test_rows: list[dict[str, Any]], **sections: Any
) -> RowLearner:
    place, held = write(folder / "train.jsonl", rows), write(folder / "test.jsonl", test_rows)
    recipe = recipe_of({"train": place, "validation": place, "test": held}, **sections)
    return Tabular.learner(recipe, prepared(folder, recipe))


def test_the_loss_of_classes_is_the_mean_of_the_members_losses(tmp_path: Path) -> None:
    found = learner(tmp_path, flats(40), flats(8, seed=1))
    (batch,) = found.batches(0, 0, 1)
    outputs = found.task.outputs(found.model, batch.tensors).double()  # (rows, members, classes)
    members = [F.cross_entropy(outputs[:, m], batch.tensors["label"], reduction="sum") for m in range(3)]
    expected = torch.stack(members).mean()
    torch.testing.assert_close(found.loss(batch).double(), expected, rtol=1e-6, atol=1e-6)
    assert batch.count == 8 and outputs.shape == (8, 3, 2)


def test_the_loss_of_a_number_is_on_the_standardised_target(tmp_path: Path) -> None:
    rows = houses(60)
    found = learner(tmp_path, rows, houses(8, seed=1))
    (batch,) = found.batches(0, 0, 1)
    outputs = found.task.outputs(found.model, batch.tensors).double()  # (rows, members, 1)
    prices = np.array([row["price"] for row in rows], np.float64)
    wanted = (batch.tensors["label"].double() - prices.mean()) / prices.std()
    expected = sum(((outputs[:, m, 0] - wanted) ** 2).sum() for m in range(3)) / 3
    torch.testing.assert_close(found.loss(batch).double(), expected, rtol=1e-5, atol=1e-5)
    said = found.answers(found.data.train, np.arange(5, dtype=np.int64))
    places = {
        name: torch.from_numpy(array) for name, array in found.data.train.gather(np.arange(5))[0].items()
    }
    mean = found.task.outputs(found.model, places).double().mean((1, 2)) * prices.std() + prices.mean()
    np.testing.assert_allclose(said, mean.detach().numpy(), rtol=1e-12)


def test_answers_of_classes_are_the_mean_of_the_members_probabilities(tmp_path: Path) -> None:
    found = learner(tmp_path, flats(40), flats(8, seed=1))
    (batch,) = found.batches(0, 0, 1)
    with torch.no_grad():
        expected = (
            found.model(batch.tensors["numbers"], batch.tensors["categories"].long()).double().softmax(-1)
        )
        said = found.task.answers(found.model, batch.tensors)
    np.testing.assert_allclose(np.exp(np.stack(said)), expected.mean(1).numpy(), rtol=1e-12)


def test_answers_stay_finite_where_a_probability_is_too_small_for_a_number(tmp_path: Path) -> None:
    """A cell far from all others makes a linear model surer than a probability can say."""
    test_rows = [{**row, "size": 1e9 * row["size"]} for row in flats(8, seed=1)]
    found = learner(tmp_path, flats(40), test_rows, model={**SMALL, "network": "linear"})
    for parameter in found.model.parameters():
        torch.nn.init.normal_(parameter)
    answers = np.stack(found.answers(found.data.held_out, np.arange(8, dtype=np.int64)))
    assert np.isfinite(answers).all() and answers.min() < -1e4
    assert found.task.probabilities(list(answers)).sum(1) == pytest.approx(1.0)


@pytest.mark.parametrize("network", ["tabm", "mlp", "linear"])
def test_every_network_takes_a_step_that_lowers_its_loss(tmp_path: Path, network: str) -> None:
    found = learner(tmp_path, flats(40), flats(8, seed=1), model={**SMALL, "network": network})
    (batch,) = found.batches(0, 0, 1)
    found.model.train()
    before = found.loss(batch)
    before.backward()
    with torch.no_grad():
        for parameter in found.model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert found.loss(batch).item() < before.item()
    assert network != "linear" or sum(p.numel() for p in found.model.parameters()) == (2 + 3) * 2 + 2


# Whole runs.


def run(
    folder: Path, rows: Any, test_rows: Any = None, data: Cells | None = None, **sections: Any
) -> Outcome:
    place = write(folder / "rows.jsonl", rows)
    given = {"train": place, **(data or {})}
    if test_rows is not None:
        given |= {"test": write(folder / "test.jsonl", test_rows)}
    recipe = {"task": "tabular", "data": given, "model": SMALL, "train": STEPS, "evaluate": {"bootstrap": 0}}
    return train({**recipe, **sections}, out=folder / "run")


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model of prices, trained until it is right."""
    linear = {"model": {**SMALL, "network": "linear"}}
    rate = {**STEPS, "steps": 400, "batch": 64, "learning_rate": 0.05, "weight_decay": 0.0}
    folder = tmp_path_factory.mktemp("priced")
    return run(folder, houses(160), houses(40, seed=1), **linear, train=rate).folder


def test_numbers_are_answered_in_the_targets_own_unit(priced: Path) -> None:
    rows = houses(30, seed=2)
    said = [answer["value"] for answer in load(priced).predict(rows)]
    off = np.array(said) - [row["price"] for row in rows]
    assert np.abs(off).max() < 3_000  # of prices from 70,000 to 280,000
    held = houses(40, seed=1)
    off = np.array([answer["value"] for answer in load(priced).predict(held)]) - [
        row["price"] for row in held
    ]
    figures = json.loads((priced / "evaluation.json").read_text())["metrics"]
    assert figures["rmse"]["value"] == pytest.approx(math.sqrt((off**2).mean()), rel=1e-5)
    assert figures["mae"]["value"] == pytest.approx(np.abs(off).mean(), rel=1e-5)


def test_a_row_may_have_its_columns_in_any_order_and_more_of_them(priced: Path) -> None:
    model, row = load(priced), houses(1, seed=3)[0]
    (plain,) = model.predict([row])
    turned = {"colour": "red", **dict(reversed(row.items())), "price": None}
    del row["price"]
    assert model.predict([turned, row]) == [plain, plain]


def test_a_row_that_cannot_be_answered_says_why(priced: Path) -> None:
    row = houses(1)[0]
    answers = load(priced).predict(
        [{"size": 30}, {**row, "place": ["a"]}, "a text", {**row, "place": "Mars"}]
    )
    assert [answer.get("error") for answer in answers] == [
        "the row has no place, since",
        "place is a list, not a cell of a table",
        "a row is an object with columns; received 'a text'; "
        "give a table as a file (--input FILE), or each row as JSON",
        None,
    ]
    assert math.isfinite(answers[3]["value"])  # an unknown category is no error


def test_a_column_that_the_network_does_not_see_may_be_absent(tmp_path: Path) -> None:
    """One that never changes, and one that differs in every row, are left out of the network; rows to be answered or
    measured need not have them."""
    rows = [{"ward": 7, "code": f"no {n}", **row} for n, row in enumerate(houses(60))]
    model = load(run(tmp_path, rows, train={**STEPS, "steps": 2}).folder)
    whole = rows[3]
    short = {name: cell for name, cell in whole.items() if name not in ("ward", "code")}
    first, second, third = model.predict([whole, short, {"ward": 7}])
    assert second == first and "error" not in first
    assert third["error"] == "the row has no size, place, since"
    few = [{name: cell for name, cell in row.items() if name not in ("ward", "code")} for row in rows]
    path = write(tmp_path / "few.jsonl", few)
    assert evaluate(tmp_path / "run", path, bootstrap=0).counts["rows"] == 60


def test_columns_in_another_order_measure_the_same(priced: Path, tmp_path: Path) -> None:
    """The last column of this file is not the target, though the recipe names none."""
    rows = houses(25, seed=4)
    straight = evaluate(priced, write(tmp_path / "a.jsonl", rows), bootstrap=0)
    turned = [{"extra": 1, **dict(reversed(row.items()))} for row in rows]
    other = evaluate(priced, write(tmp_path / "b.jsonl", turned), bootstrap=0)
    assert other.figures == straight.figures
    short = [{name: value for name, value in row.items() if name != "since"} for row in rows]
    with pytest.raises(LubanError, match="since"):
        evaluate(priced, write(tmp_path / "c.jsonl", short), bootstrap=0)


def test_a_leaking_column_is_noted_and_stays(tmp_path: Path) -> None:
    rows = [
        {
            "contract": "signed" if row["rented"] == "yes" else "open",
            "days": n % 7 + 100 * (row["rented"] == "yes"),
            **row,
        }
        for n, row in enumerate(flats(80))
    ]
    outcome = run(tmp_path, rows, train={**STEPS, "steps": 1})
    notes = json.loads((outcome.folder / "evaluation.json").read_text())["notes"]
    asks = "; will it be known when the model is asked?"
    assert [note["detail"] for note in notes if note["kind"] == "leak"] == [
        f"contract gives the target away: each of its values goes with one class{asks}",
        f"days gives the target away: its order is that of the target{asks}",
    ]
    columns = PreparedRows(outcome.folder / "data").fitted.state["columns"]
    assert "days" in columns["numbers"] and "contract" in columns["categories"]


def test_a_split_of_one_class_has_no_area_and_the_run_goes_on(tmp_path: Path) -> None:
    rows = flats(60)
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r["rented"] == "yes"))
    settings = {**STEPS, "steps": 4, "evaluate_every": 2, "keep_best": True}
    test_rows = [row for row in flats(40, seed=1) if row["rented"] == "yes"]
    data = {"validation": str(tmp_path / "v.jsonl")}
    outcome = run(tmp_path, rows, test_rows, data, train=settings)
    assert outcome.result["status"] == "done" and outcome.result["steps"] == 4
    assert outcome.result["primary"] == {"name": "roc_auc", "value": None, "direction": "max"}
    assert outcome.result["metrics"]["accuracy"] is not None
    lines = map(json.loads, (outcome.folder / "metrics.jsonl").read_text().splitlines())
    assert [line["roc_auc"] for line in lines if line["kind"] == "evaluation"] == [None, None]
    assert (outcome.folder / "report.html").is_file()


def test_the_temperature_is_that_of_validation_rows(tmp_path: Path) -> None:
    """Learned on validation rows, kept with the model, and used in its answers; not used where validation judges."""
    settings = {**STEPS, "steps": 60, "batch": 32}
    outcome = run(tmp_path, flats(160), flats(30, seed=1), {"validation_fraction": 0.4}, train=settings)
    data = PreparedRows(outcome.folder / "data")
    model = load(outcome.folder)

    def logits(rows: Any) -> np.ndarray:
        tensors = {n: torch.from_numpy(a) for n, a in rows.gather(np.arange(len(rows)))[0].items()}
        with torch.no_grad():
            said = model.module(tensors["numbers"], tensors["categories"].long())
        return said.double().softmax(-1).mean(1).log().numpy()

    found = model.kind.fitted.state["temperature"]
    assert found == pytest.approx(
        temperature(logits(data.validation), data.validation.column("label")), rel=1e-6
    )
    assert abs(found - 1.0) > 0.05, "a temperature that changes answers"
    asked = flats(3, seed=1)
    assert data.test is not None
    scaled = logits(data.test)[:3] / found
    expected = np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)
    for answer, row in zip(model.predict(asked), expected, strict=True):
        shown = [answer["probabilities"][label] for label in ("no", "yes")]
        np.testing.assert_allclose(shown, row, atol=1e-6)


def test_no_temperature_is_learned_where_validation_judges(tmp_path: Path) -> None:
    outcome = run(tmp_path, flats(60), data={"test_fraction": 0.0}, train={**STEPS, "steps": 1})
    assert "temperature" not in load(outcome.folder).kind.fitted.state


def test_the_gallery_shows_rows_by_their_columns(priced: Path) -> None:
    errors = json.loads((priced / "evaluation.json").read_text())["errors"]
    assert errors[0]["parts"][0]["cells"].keys() == {"size", "place", "since", "price"}
    assert errors[0]["where"].startswith("test.jsonl:")
    assert float(errors[0]["expected"]) == pytest.approx(errors[0]["parts"][0]["cells"]["price"], rel=1e-5)


def test_what_is_to_be_known_of_the_rows_is_said_before_training(tmp_path: Path) -> None:
    """Whoever reads the console alone learns of a leak too, and of rows that were left out."""
    rows = [*({**row, "known": row["rented"]} for row in flats(60)), {"size": 1}]
    place, said = write(tmp_path / "rows.jsonl", rows), io.StringIO()
    given = {
        "task": "tabular",
        "data": {"train": place, "target": "rented"},
        "model": SMALL,
        "train": {"steps": 1},
    }
    train(
        {**given, "evaluate": {"bootstrap": 0}}, out=tmp_path / "run", tools=Tools(Show(said), StopRequest())
    )
    lines = said.getvalue().splitlines()
    assert any(line.startswith("left out: 1 missing value, the first rows.jsonl:61: ") for line in lines)
    assert any(line.startswith("leak: known gives the target away") for line in lines)


def test_an_error_of_a_number_shows_the_number_and_no_probability(priced: Path) -> None:
    errors = json.loads((priced / "evaluation.json").read_text())["errors"]
    ((name, value),) = errors[0]["answers"]
    price = errors[0]["parts"][0]["cells"]["price"]
    assert name == "" and value == pytest.approx(price, rel=0.5) and value != 1.0
