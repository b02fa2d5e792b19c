"""What simpler models make of the same table on the same split: a linear model and gradient boosting of scikit-learn.

They stand beside every result, so that a report can say plainly when a network was not worth its while.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luban.data.row_sets import Fitted, PreparedRows
from luban.data.row_store import RowSet

if TYPE_CHECKING:
    from luban.tasks.tabular import Tabular

Floats = NDArray[np.float64]

MOST_CELLS = 500_000
"""Rows x classes that are boosted unasked: about half a minute on one core."""
_MOST_CATEGORIES = 255
"""Of scikit-learn's histogram gradient boosting."""


def baselines_of(task: Tabular, data: PreparedRows) -> list[dict[str, Any]]:
    """Train both on the training rows and measure them on the held-out ones, as the network is measured.

    Returns:
        `{"name", "metrics"}` each.
    """
    train, held_out = (_arrays(rows) for rows in (data.train, data.held_out))
    target = data.train.column("label")
    found = []
    for name, model in _models(task, train[1].max(0, initial=0), held_out[1].max(0, initial=0)).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a baseline that has not converged is measured as it is
            fitted = model.fit(np.hstack(train), target)
        said = (
            fitted.predict(np.hstack(held_out))
            if task.is_number
            else _log_probabilities(fitted, task, held_out)
        )
        numbers = np.arange(len(data.held_out), dtype=np.int64)
        # Numbers and logarithms of probabilities are what the network answers too, before any temperature.
        plain = task.knowing(_without_temperature(task))
        figures = plain.scores(list(said), data.held_out, numbers).figures()
        found.append({"name": name, "metrics": {k: v for k, v in figures.items() if math.isfinite(v)}})
    return found


def why_none(task: Tabular, data: PreparedRows) -> str | None:
    """Say why the two are not trained: scikit-learn is not there, or the table is too large; None where they are."""
    if find_spec("sklearn") is None:
        return (
            "no linear model and no gradient boosting stand beside this result: pip install 'luban[tables]'"
        )
    classes = 1 if task.is_number else len(task.labels)
    if len(data.train) * classes > MOST_CELLS:
        return (
            f"no linear model and no gradient boosting stand beside this result: {len(data.train):,} rows of "
            f"{classes} classes are more than {MOST_CELLS:,}, which would take long"
        )
    return None


def _without_temperature(task: Tabular) -> Fitted:
    state: Mapping[str, Any] = {k: v for k, v in task.fitted.state.items() if k != "temperature"}
    return Fitted(state, task.fitted.tokenizers, task.fitted.notes)


def _arrays(rows: RowSet) -> tuple[Floats, Floats]:
    return rows.column("numbers").astype(np.float64), rows.column("categories").astype(np.float64)


def _log_probabilities(fitted: Any, task: Tabular, held_out: tuple[Floats, Floats]) -> Floats:
    """Return log probabilities of all labels, also of those that did not come in training."""
    found = np.full((len(held_out[0]), len(task.labels)), 1e-12)
    found[:, fitted.classes_.astype(int)] = fitted.predict_proba(np.hstack(held_out))
    logs: Floats = np.log(np.maximum(found, 1e-12))
    return logs


def _models(task: Tabular, most: Floats, most_held_out: Floats) -> dict[str, Any]:
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = len(task.fitted.state["numbers"])
    categories = list(range(numbers, numbers + len(most)))
    parts = [
        (
            "numbers",
            make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()),
            list(range(numbers)),
        ),
        ("categories", OneHotEncoder(handle_unknown="ignore"), categories),
    ]
    few = [
        at
        for at, *sizes in zip(categories, most, most_held_out, strict=True)
        if max(sizes) < _MOST_CATEGORIES
    ]
    boosted = {"categorical_features": few or None, "random_state": 0}
    if task.is_number:
        linear, trees = Ridge(), HistGradientBoostingRegressor(**boosted)
    else:
        linear, trees = LogisticRegression(max_iter=1000), HistGradientBoostingClassifier(**boosted)
    return {
        "linear model (scikit-learn)": make_pipeline(ColumnTransformer(parts), linear),
        "gradient boosting (scikit-learn)": trees,
    }
