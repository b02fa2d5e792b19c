"""Tables: numbers, categories and dates in; a class or a number out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luban.data.cells import read_cell
from luban.data.row_sets import BadValue, Fitted, PreparedRows, Row
from luban.data.row_store import RowSet
from luban.data.statistics import quantile_bins
from luban.data.table_columns import (
    TableColumns,
    leaks,
    learn_columns,
    mean_numbers,
    nearly_numbers,
    origin_of,
)
from luban.errors import DataError, RecipeError
from luban.metrics.regression import Regression
from luban.models.table_mlp import TableMlp, TableMlpConfig
from luban.models.tabular import TabM, TabMConfig
from luban.row_recipe import Objective
from luban.tasks.classification import Classifier
from luban.tasks.columns import column_of
from luban.tasks.rows import Array, Scores, Signature, Tensors
from luban.tasks.table_baselines import baselines_of, why_none
from luban.tasks.tabular_recipe import TabularRecipe

Floats = NDArray[np.float64]
_LOOKED_AT = 20_000
"""Most training rows that are searched for columns which give the target away, and that quantiles are taken from."""
_EMPTY = (None, "")
_MOST = 0.9
_FEW = 20


class Tabular(Classifier):
    """Tell a column of a table from the others."""

    name: ClassVar[str] = "tabular"
    recipe: ClassVar[type[TabularRecipe]] = TabularRecipe
    targets: ClassVar[frozenset[str]] = frozenset({"target"})
    evaluation_rows: ClassVar[int] = 1024
    encoding_keys: ClassVar[Sequence[str]] = ("model.bins",)

    def __init__(self, settings: Any, fitted: Fitted | None = None) -> None:
        super().__init__(settings, fitted)
        if fitted is None:
            return
        self._columns = TableColumns.from_json(fitted.state["columns"])
        used, seen = fitted.state["roles"]["used"], self._columns
        self._unseen = set(used) - {*seen.numbers, *seen.dates, *seen.categories}
        # Some training row had no value of these, or the network does not see them.
        self._optional = {*fitted.state.get("optional", ()), *self._unseen}
        self._origins = np.array([number["origin"] for number in fitted.state["numbers"]], np.float64)
        self._places = {
            name: {value: number for number, value in enumerate(values, 1)}
            for name, values in self._columns.categories.items()
        }
        if self.is_number:
            self.primary, self.minimise = "rmse", True
            self.pipeline = "tabular-regression"
        else:
            self.primary = "roc_auc" if len(self.labels) == 2 else "accuracy"
            self.pipeline = "tabular-classification"

    @property
    def is_number(self) -> bool:
        """Whether the target is a number, not a class."""
        return "labels" not in self.fitted.state

    def asked_columns(self) -> Sequence[str] | None:
        """Return the names of columns where the file has no header."""
        return self.settings.data.columns  # type: ignore[no-any-return]

    def roles(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Find the target, and the columns it is told from; a task that has learned knows them."""
        if self._fitted is not None:
            return self._known_roles(columns)
        data = self.settings.data
        for key in ("ignore", "categories"):
            for name in getattr(data, key):
                column_of(columns, name, (), f"data.{key}")
        target = data.target or _last_of(columns)
        column_of(columns, target, (), "data.target")
        used = [name for name in columns if name not in (target, data.id) and name not in data.ignore]
        if not used:
            raise DataError(
                "there is no column besides the target", received=list(columns), where="data.target"
            )
        self.sliced(columns)
        return {"target": target, "used": used}

    def _known_roles(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Return the roles that were learned, whatever the order of the columns of another file."""
        roles: Mapping[str, Any] = self.fitted.state["roles"]
        for name in (*[name for name in roles["used"] if name not in self._optional], roles["target"]):
            column_of(columns, name, (), "data.target" if name == roles["target"] else "data")
        return roles

    def clean(self, values: Mapping[str, Any], roles: Mapping[str, Any]) -> Row:
        """Return the columns that are used, and the target where there is one.

        A column that a row of JSON does not have is missing in it; once trained, only of those that some training row
        had no value of, or that the network does not see: without another the row cannot be meant.
        """
        used, target = roles["used"], roles["target"]
        if absent := [name for name in used if name not in values]:
            unseen = self._unseen if self._fitted is not None else set()
            wanted = [name for name in absent if name not in unseen]
            if len(wanted) < len(used) - len(unseen):  # the row has something to go by
                wanted = [n for n in wanted if self._fitted is not None and n not in self._optional]
            if wanted:
                more = f" and {len(wanted) - 5} more" if len(wanted) > 5 else ""
                raise BadValue("missing_column", f"the row has no {', '.join(wanted[:5])}{more}")
        cells = [values.get(name) for name in used]
        for name, cell in zip(used, cells, strict=True):
            if isinstance(cell, list | dict):
                raise BadValue("not_text", f"{name} is a {type(cell).__name__}, not a cell of a table")
        row: Row = {**self.beside(values), "cells": cells}
        value = values.get(target)
        return row if _says_nothing(value) else {**row, "target": value}

    def kept(self, row: Row) -> Row:
        """Return the row by the names of its columns."""
        roles = self.fitted.state["roles"] if self._fitted else self._roles
        cells = dict(zip(roles["used"], row["cells"], strict=True))
        return {**cells, roles["target"]: row["target"]} if "target" in row else cells

    def fit(self, rows: Callable[[], Iterator[Row]], roles: Mapping[str, Any]) -> Fitted:
        """Learn what the columns are, their quantiles, and the target's classes or its mean and spread."""
        self._roles = roles
        used = roles["used"]

        def named(row: Row) -> Row:
            return dict(zip(used, row["cells"], strict=True))

        columns = learn_columns(map(named, rows()), used, self.settings.data.categories)
        if not columns.number_names and not columns.categories:
            raise DataError(
                "no column tells anything of the target",
                received=[note["detail"] for note in columns.notes][:10],
                where="data.train",
                fix="give columns whose values come again and differ; data.categories=[COLUMN] keeps an identifier",
            )
        notes = list(columns.notes)
        absent: set[str] = set()
        count = 0
        for row in rows():
            count += 1
            absent.update(n for n, cell in zip(used, row["cells"], strict=True) if cell in _EMPTY)
        state: dict[str, Any] = {"roles": dict(roles), "columns": columns.as_json()}
        state["optional"] = [name for name in used if name in absent]
        if self._takes_numbers(row["target"] for row in rows()):
            read = (read_cell(row["target"]).number for row in rows())
            numbers = np.array([number for number in read if number is not None])
            if len(numbers) == 0 or numbers.std() == 0.0:
                raise DataError(
                    "the target is the same number in every training row",
                    received=numbers[:1].tolist(),
                    where="data.target",
                )
            state |= {"target_mean": float(numbers.mean()), "target_spread": float(numbers.std())}
        else:
            learned, more = self.learn_labels(self.label_of(row["target"]) for row in rows())
            state |= learned
            notes += more
            if self.settings.data.kind == "auto" and (
                why := nearly_numbers((row["target"] for row in rows()), _FEW)
            ):
                taken = f"the target is taken for {len(state['labels']):,} classes: {why}"
                notes.append({"kind": "target", "detail": f"{taken}; data.kind=number leaves these rows out"})
        # Spread evenly: files are often sorted, and their first rows tell nothing of the last.
        held = list(islice(rows(), 0, None, -(-count // _LOOKED_AT)))
        if "labels" not in state:
            held = [row for row in held if read_cell(row["target"]).number is not None]
        looked_at = [named(row) for row in held]
        table = np.array([columns.number_row(row) for row in looked_at]).reshape(len(looked_at), -1)
        origins = [origin_of(column) for column in table.T]
        state["numbers"] = [
            {**_statistics(column - origin, self.settings.model.bins), "origin": origin}
            for column, origin in zip(table.T, origins, strict=True)
        ]
        notes += self._leaks(columns, looked_at, [row["target"] for row in held], state)
        return Fitted(state, notes=notes)

    def _takes_numbers(self, targets: Iterator[Any]) -> bool:
        """Whether the target is a number, as the recipe says or its values do."""
        kind = self.settings.data.kind
        return mean_numbers(targets, _FEW) if kind == "auto" else bool(kind == "number")

    def _leaks(
        self,
        columns: TableColumns,
        looked_at: list[Row],
        targets: list[Any],
        state: Mapping[str, Any],
    ) -> list[dict[str, str]]:
        if "labels" in state:
            index = {label: number for number, label in enumerate(state["labels"])}
            known = np.array([index[self.label_of(target)] for target in targets], np.float64)
        else:
            known = np.array([read_cell(target).number for target in targets], np.float64)
        return leaks(columns, looked_at, known, classes="labels" in state)

    def encode(self, row: Row) -> dict[str, Array]:
        """Return numbers (NaN where missing), categories (0 where missing, -1 where unknown), and the target."""
        cells = dict(zip(self.fitted.state["roles"]["used"], row["cells"], strict=True))
        categories = [
            0 if (cell := read_cell(cells[name])).missing else places.get(cell.name, -1)
            for name, places in self._places.items()
        ]
        # What is subtracted is learned from training rows, and so is all that the network knows of the columns.
        numbers = np.array(self._columns.number_row(cells), np.float64) - self._origins
        found = {
            "numbers": numbers.astype(np.float32),
            "categories": np.array(categories, np.int32),
        }
        if "target" in row:
            found["label"] = self._target(row["target"])
        return found

    def _target(self, value: Any) -> Array:
        if not self.is_number:
            return self.encode_label(self.label_of(value))
        number, missing = read_cell(value).number, read_cell(value).missing
        if missing:
            raise BadValue("missing_value", f"the target is {str(value)[:80]!r}, and a number is wanted")
        if number is None:
            raise BadValue("not_a_number", f"the target is {str(value)[:80]!r}, and a number is wanted")
        return np.array(number, np.float32)

    def build(self) -> nn.Module:
        """Return the network that the recipe names."""
        settings, state = self.settings.model, self.fitted.state
        if self.is_number and settings_of(self.settings.objective):
            raise RecipeError(
                "the target is a number, and what the recipe says of the loss is of classes",
                received=settings_of(self.settings.objective),
                where="objective",
                fix="leave it out; or data.kind=classes takes each number for a class",
            )
        outputs = 1 if self.is_number else len(self.labels)
        categories = tuple(len(places) + 1 for places in self._places.values())
        numbers = state["numbers"]
        if settings.network == "tabm":
            return TabM(
                TabMConfig(
                    outputs,
                    edges=tuple(tuple(number["bins"]) for number in numbers),
                    categories=categories,
                    members=settings.members,
                    number_width=settings.embedding,
                    category_width=settings.embedding,
                    layers=settings.layers,
                    width=settings.width,
                    dropout=settings.dropout,
                )
            )
        hidden = (settings.width,) * settings.layers if settings.network == "mlp" else ()
        return TableMlp(
            TableMlpConfig(
                outputs,
                means=tuple(number["mean"] for number in numbers),
                spreads=tuple(number["spread"] for number in numbers),
                categories=categories,
                hidden=hidden,
                activation=settings.activation,
                dropout=settings.dropout,
            )
        )

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Return (rows, members, outputs)."""
        found: Tensor = model(tensors["numbers"], tensors["categories"].long())
        return found

    def loss(self, outputs: Tensor, tensors: Tensors) -> Tensor:
        """Return the loss summed over rows, the mean of the members' own losses."""
        members = outputs.shape[1]
        each = (
            tensors if members == 1 else {**tensors, "label": tensors["label"].repeat_interleave(members, 0)}
        )
        if not self.is_number:
            return super().loss(outputs.flatten(0, 1), each) / members
        state = self.fitted.state
        wanted = (each["label"] - state["target_mean"]) / state["target_spread"]
        found: Tensor = (outputs.flatten().float() - wanted).square().sum() / members
        return found

    def answers(self, model: nn.Module, tensors: Tensors) -> Sequence[Any]:
        """Return of each row the logarithm of the members' mean probabilities, or the mean of their numbers."""
        outputs = self.outputs(model, tensors).double()
        if self.is_number:
            state = self.fitted.state
            return list((outputs.mean((1, 2)) * state["target_spread"] + state["target_mean"]).cpu().numpy())
        # Summed as logarithms, which stay finite where a probability is too small for a number.
        members = outputs.log_softmax(-1)  # (rows, members, classes)
        return list((members.logsumexp(1) - math.log(members.shape[1])).cpu().numpy())

    def calibrate(self, answers: Sequence[Any], rows: RowSet) -> Self:
        """Scale probabilities; a number is left as it is."""
        return self if self.is_number else super().calibrate(answers, rows)

    def decode(self, answer: Any) -> dict[str, Any]:
        """Return the number, or the label with probabilities."""
        return {"value": float(answer)} if self.is_number else super().decode(answer)

    def scores(self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]) -> Scores:
        """Measure numbers, or probabilities, against the target."""
        if not self.is_number:
            return super().scores(answers, rows, numbers)
        found = Regression()
        found.add(np.array(answers, np.float64), rows.column("label")[numbers].astype(np.float64))
        return found

    def row_scores(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> dict[str, Floats]:
        """Return the error of each row."""
        if not self.is_number:
            return super().row_scores(answers, rows, numbers)
        off = np.array(answers, np.float64) - rows.column("label")[numbers]
        return {"mae": np.abs(off), "mse": off**2}

    def badness(self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]) -> Floats:
        """Return how far off an answer is."""
        if not self.is_number:
            return super().badness(answers, rows, numbers)
        return self.row_scores(answers, rows, numbers)["mae"]

    def sections(self, scores: Scores) -> dict[str, Any]:
        """Return the section of classes, or that of numbers."""
        if isinstance(scores, Regression):
            return {"regression": scores.section()}
        return super().sections(scores)

    def baselines(self, data: PreparedRows) -> list[dict[str, Any]]:
        """Return a linear model and gradient boosting, on the same split."""
        return [] if self.without_baselines(data) else baselines_of(self, data)

    def without_baselines(self, data: PreparedRows) -> str | None:
        """Say what they lack: scikit-learn, or a table small enough to train them unasked."""
        return why_none(self, data)

    def show(self, rows: RowSet, number: int, answer: Any) -> dict[str, Any]:
        """Return the row beside its answer."""
        cells = rows.row(number)["values"]
        told = (
            {
                "expected": f"{float(rows.column('label')[number]):.6g}",
                "answers": [["", float(answer)]],
            }
            if self.is_number
            else self.shown_answer(rows, number, answer)
        )
        return {"parts": [{"kind": "cells", "cells": cells}], **told}

    def view(self, rows: RowSet, number: int) -> str:
        """Return the row's cells."""
        return ", ".join(f"{name}={value}" for name, value in rows.row(number)["values"].items())

    def signature(self, tensors: Tensors) -> Signature:
        """Return the network as a graph: numbers and categories in, one output of each member out."""
        return Signature(
            {"numbers": tensors["numbers"], "categories": tensors["categories"].long()},
            ["outputs"],
            {"numbers": {0: "batch"}, "categories": {0: "batch"}},
        )

    def probe(self, rows: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Return numbers and categories at random, some missing."""
        numbers = torch.randn(rows, len(self._columns.number_names), generator=draws)
        numbers[torch.rand(numbers.shape, generator=draws) < 0.1] = math.nan
        shape = (rows, len(self._places))
        places = torch.randint(1 << 30, shape, generator=draws)
        sizes = torch.tensor([len(values) + 1 for values in self._places.values()], dtype=torch.int64)
        return {"numbers": numbers, "categories": (places % sizes - 1).int() if len(sizes) else places.int()}

    @classmethod
    def sample(cls, count: int, draws: random.Random) -> list[Row]:
        """Return flats that are rented or not, by size, place and date."""
        rows: list[Row] = []
        for _ in range(count):
            size, place = draws.randint(20, 160), draws.choice(["old town", "river", "hill"])
            month = draws.randint(1, 12)
            wanted = size / 160 + (place == "river") - (month < 3) > 0.7
            rows.append(
                {
                    "size": size if draws.random() < 0.9 else None,
                    "place": place,
                    "since": f"2024-{month:02d}-01",
                    "label": "yes" if wanted else "no",
                }
            )
        return rows

    @classmethod
    def smallest(cls) -> dict[str, Any]:
        """Return a small network of the strong kind."""
        return {"model": {"width": 32, "members": 4, "bins": 4, "embedding": 4, "dropout": 0.0}}


def _last_of(columns: Sequence[str]) -> str:
    """Return the column that the rows end in, but for a stray one.

    Raises:
        DataError: rows of JSON end in different ones.
    """
    ends: Mapping[str, int] = getattr(columns, "ends", {columns[-1]: 1})
    last = max(ends, key=ends.__getitem__)
    if ends[last] < _MOST * sum(ends.values()):
        raise DataError(
            "the target is not named, and the rows end in different columns",
            received={name: f"{count:,} rows" for name, count in list(ends.items())[:10]},
            where="data.target",
            fix="name it: data.target=COLUMN",
        )
    return last


def settings_of(objective: Objective) -> list[str]:
    """Return what an objective says that is not the default.

    Example:
        >>> settings_of(Objective(focal=2.0)), settings_of(Objective())
        (['focal=2.0'], [])
    """
    return [f"{name}={value}" for name, value in objective.model_dump(exclude_defaults=True).items()]


def _says_nothing(target: object) -> bool:
    """Whether a target is missing; "none" is the name of a class, and a bad row only where targets are numbers."""
    named = isinstance(target, str) and target.strip().lower() == "none"
    return read_cell(target).missing and not named


def _statistics(column: Floats, bins: int) -> dict[str, Any]:
    """Return mean, spread and quantiles of the numbers that are there."""
    there = column[np.isfinite(column)]
    if len(there) == 0:
        return {"mean": 0.0, "spread": 1.0, "bins": []}
    return {
        "mean": float(there.mean()),
        "spread": float(there.std()) or 1.0,
        "bins": quantile_bins(there, bins).tolist(),
    }
