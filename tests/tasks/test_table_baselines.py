"""The baselines are scikit-learn's, as one would run them by hand on the same split, and are left out without it."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luban.data.row_sets import PreparedRows
from luban.tasks import table_baselines
from luban.tasks.tabular import Tabular

pytest.importorskip("sklearn")
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

Rows = list[dict[str, Any]]
LINEAR, BOOSTED = "linear model (scikit-learn)", "gradient boosting (scikit-learn)"


def rows_of(count: int, kind: str, seed: int) -> Rows:
    """Flats: one column of numbers with holes, two of names with holes, and a target of some kind."""
    draws = random.Random(seed)
    rows: Rows = []
    for _ in range(count):
        size, place = draws.randint(20, 160), draws.choice(["river", "hill", "old town", None])
        row = {"size": size if draws.random() < 0.9 else None, "age": draws.randint(0, 99), "place": place}
        row["owner"] = draws.choice("abcdef")
        value = size + 40 * (place == "river") + draws.gauss(0, 15)
        names = {"two": "large" if value > 95 else "small", "three": "SML"[min(2, int(max(value, 0) // 70))]}
        rows.append({**row, "target": value if kind == "number" else names[kind]})
    return rows


def task_with(folder: Path, kind: str) -> tuple[Tabular, PreparedRows, Rows, Rows]:
    train_rows, test_rows = rows_of(300, kind, 0), rows_of(80, kind, 1)
    test_rows[0]["owner"] = "zed"  # never seen in training
    data = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    data["validation"] = data["train"]
    for name, rows in (("train", train_rows), ("test", test_rows)):
        Path(data[name]).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    recipe = Tabular.recipe.model_validate({"task": "tabular", "data": data, "train": {"steps": 1}})
    found = Tabular.prepare(recipe, folder / "data", stop=lambda: None, progress=lambda stage, share: None)
    return Tabular(recipe, found.fitted), found, train_rows, test_rows


def by_hand(kind: str) -> dict[str, Any]:
    """The same two models from the columns of a table, written as its documentation writes them."""
    numbers, names = ["size", "age"], ["place", "owner"]
    imputed = make_pipeline(SimpleImputer(), StandardScaler())
    one_hot = make_column_transformer((imputed, numbers), (OneHotEncoder(handle_unknown="ignore"), names))
    coded = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    ordinal = make_column_transformer(("passthrough", numbers), (coded, names))
    if kind == "number":
        linear, trees = Ridge(), HistGradientBoostingRegressor(categorical_features=[2, 3], random_state=0)
    else:
        linear = LogisticRegression(max_iter=1000)
        trees = HistGradientBoostingClassifier(categorical_features=[2, 3], random_state=0)
    return {LINEAR: make_pipeline(one_hot, linear), BOOSTED: make_pipeline(ordinal, trees)}


def table(rows: Rows) -> Any:
    """Rows as a structure that scikit-learn takes by column names."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows).drop(columns="target")
    return frame.assign(place=frame["place"].fillna("missing"), size=frame["size"].astype(float))


@pytest.mark.parametrize("kind", ["two", "three", "number"])
def test_they_are_those_of_scikit_learn_run_by_hand(tmp_path: Path, kind: str) -> None:
    task, data, train_rows, test_rows = task_with(tmp_path, kind)
    found = {baseline["name"]: baseline["metrics"] for baseline in task.baselines(data)}
    assert list(found) == [LINEAR, BOOSTED]
    target, wanted = ([row["target"] for row in rows] for rows in (train_rows, test_rows))
    for name, model in by_hand(kind).items():
        fitted = model.fit(table(train_rows), target)
        said = fitted.predict(table(test_rows))
        if kind == "number":
            expected = {
                "rmse": root_mean_squared_error(wanted, said),
                "mae": mean_absolute_error(wanted, said),
                "r2": r2_score(wanted, said),
            }
        else:
            chances = fitted.predict_proba(table(test_rows))
            one = chances[:, 1] if kind == "two" else chances
            expected = {
                "accuracy": accuracy_score(wanted, said),
                "macro_f1": f1_score(wanted, said, average="macro"),
                "log_loss": log_loss(wanted, chances, labels=fitted.classes_),
                "roc_auc": roc_auc_score(wanted, one, multi_class="ovr"),
            }
        assert {figure: found[name][figure] for figure in expected} == pytest.approx(expected, rel=1e-4), name


def test_a_temperature_of_the_network_leaves_them_as_they_are(tmp_path: Path) -> None:
    task, data, _, _ = task_with(tmp_path, "two")
    # Too sure of itself: right in three rows of four.
    labels = data.validation.column("label")
    answers = [np.array([0.0, 3.0 if label == bool(n % 4) else -3.0]) for n, label in enumerate(labels)]
    scaled = task.calibrate(answers, data.validation)
    assert scaled.fitted.state["temperature"] != 1.0
    assert scaled.baselines(data) == task.baselines(data)


def test_they_are_left_out_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, data, _, _ = task_with(tmp_path, "two")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert task.baselines(data) == []


def test_they_are_left_out_where_they_would_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data, _, _ = task_with(tmp_path, "two")
    monkeypatch.setattr(table_baselines, "MOST_CELLS", 2 * len(data.train) - 1)
    assert task.baselines(data) == []
    monkeypatch.setattr(table_baselines, "MOST_CELLS", 2 * len(data.train))
    assert len(task.baselines(data)) == 2


def test_a_label_that_only_validation_knows_gets_no_chance(tmp_path: Path) -> None:
    """Of labels, some stand in no training row that could be encoded: their columns are there all the same."""
    task, data, _, _ = task_with(tmp_path, "three")
    kept = data.train.column("label") != 0

    class Some:
        """The training rows of two classes."""

        def column(self, name: str) -> np.ndarray:
            return data.train.column(name)[kept]

        def __len__(self) -> int:
            return int(kept.sum())

    cut = type("Cut", (), {"train": Some(), "held_out": data.held_out})()
    for baseline in table_baselines.baselines_of(task, cut):
        assert 0.0 < baseline["metrics"]["accuracy"] < 1.0
        assert baseline["metrics"]["log_loss"] > 1.0  # the class that never came is thought impossible
