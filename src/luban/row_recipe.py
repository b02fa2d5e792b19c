"""What the recipes of row tasks have in common: where rows come from, how they are split, what the loss is."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from luban.recipe import FoldCount, FoldNumber, Fraction, Positive, Recipe, Section, check_folds


class RowData(Section):
    """Where rows come from and how they are split; a task adds which column is what."""

    train: str | list[str]
    """The rows to learn from: a file, folder or glob, a list of them, or a folder that `luban prepare` made."""
    validation: str | list[str] | None = None
    """The rows that choose: early stopping, the best checkpoint. null takes a part of `train`."""
    test: str | list[str] | None = None
    """The rows that judge, read once at the end. null takes a part of `train`."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The share of `train` taken for validation where no `validation` is given; by a hash of the row, so that equal
    rows are on one side."""
    test_fraction: Fraction = 0.1
    """The share of `train` taken for testing where no `test` is given; 0 takes none, and validation judges."""
    folds: FoldCount | None = None
    """Cross-validation: as many runs in one, each tested on another part of `train`; reported with their spread."""
    fold: FoldNumber | None = None
    """Which of the folds this run tests on, from 0; set by a run over all folds."""
    id: str | None = None
    """The column that names a row: one whose name came before, in whichever split, is a bad row. No network sees it."""
    on_bad_row: Literal["error", "skip", "quarantine"] = "quarantine"
    """What to do with a row that cannot be used: stop, leave it out, or leave it out and keep it in
    quarantine.jsonl."""
    max_row_bytes: Positive = 10_000_000
    """A longer row is a bad row."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode; 0 means one for each core."""
    seed: int = 0
    """Chooses which rows are held out."""

    @model_validator(mode="after")
    def _folds_fit(self) -> Self:
        check_folds(self.folds, self.fold, of="train", judge="test", given=self.test)
        return self

    @property
    def place(self) -> str | list[str]:
        """Where the data to learn from lies."""
        return self.train


class Objective(Section):
    """What a classifier's loss is, and which rows it sees how often."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""
    focal: Annotated[float, Field(ge=0.0)] = 0.0
    """Gamma of the focal loss (Lin et al. 2017): how much less rows count that are right already; 0 is
    cross-entropy."""
    class_weights: Literal["equal", "balanced"] | dict[str, Annotated[float, Field(gt=0.0)]] = "equal"
    """`balanced` weighs each class by the inverse of its share of the training rows; or weights by label."""
    sampling: Literal["natural", "balanced"] = "natural"
    """`balanced` draws as many rows of each class in an epoch, with replacement."""


class RowEvaluation(Section):
    """What is measured on held-out rows."""

    primary: str | None = None
    """The figure that counts; null means the task's own."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples of the 95 % intervals; 0 makes none."""
    slices: list[str] = Field(default=[])
    """Columns by whose values the figures are given separately."""
    errors: Annotated[int, Field(ge=0, le=100)] = 12
    """How many of the most confident errors the report shows."""


class RowRecipe(Recipe):
    """The parts that the recipes of all row tasks have; a task narrows them."""

    data: RowData
    """Where rows come from."""
    evaluate: RowEvaluation = RowEvaluation()
    """What is measured."""
