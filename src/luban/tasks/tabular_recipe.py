"""What a recipe of tables may say besides what every recipe on rows may."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luban.recipe import Positive, Section
from luban.row_recipe import Objective, RowData, RowRecipe


class TableRows(RowData):
    """Which column is the target, and which are used."""

    target: str | None = None
    """The column to tell; null means the last one."""
    kind: Literal["auto", "classes", "number"] = "auto"
    """Whether the target is a class or a number; `auto` takes a column of more than 20 different numbers for one."""
    ignore: list[str] = Field(default=[])
    """Columns not to be used."""
    categories: list[str] = Field(default=[])
    """Columns whose values are names even where they look like numbers."""
    columns: list[str] | None = None
    """Names of the columns of a file that has no header."""


class TableModel(Section):
    """The network."""

    network: Literal["tabm", "mlp", "linear"] = "tabm"
    """`tabm` (Gorishniy et al. 2024: 32 networks in one, averaged), `mlp`, or `linear` (logistic or linear
    regression)."""
    start: str | None = None
    """A run or a model folder to take weights from, wherever names and shapes are the same."""
    width: Positive = 256
    """Units of a hidden layer."""
    layers: Positive = 2
    """Hidden layers."""
    members: Positive = 32
    """With `tabm`: how many networks share the layers."""
    bins: Annotated[int, Field(ge=2)] = 32
    """With `tabm`: pieces that each number is cut into at its quantiles (Gorishniy et al. 2022)."""
    embedding: Positive = 16
    """Dimensions of a number's, and of a category's, embedding."""
    activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid"] = "relu"
    """With `mlp`: what bends between the layers."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the hidden units that is zeroed while training."""


class TabularRecipe(RowRecipe):
    """The recipe of tables."""

    task: Literal["tabular"] = "tabular"
    """What is learned."""
    data: TableRows
    """Where the rows come from, and what their columns are."""
    model: TableModel = TableModel()
    """The network."""
    objective: Objective = Objective()
    """What the loss is, of classes."""
