"""Tasks on rows: what a new task says of itself, and what it need not say.

A task on rows is a class derived from `RowTask` in one file. It says what a row is (`roles`, `clean`), what it learns
from training rows (`fit`), how a row becomes arrays (`encode`), what the network is (`build`), and what its outputs
mean (`outputs`, `loss`, `answers`, `scores`, `decode`). Reading files, splitting, batches, the loop, checkpoints,
evaluation, reports, predictions and export are the same for all and stand elsewhere.

Everything a task knows is its recipe and what it learned from training rows, so the same object encodes rows for
training, for evaluation and for an answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luban.data.fingerprint import Fingerprint
from luban.data.row_files import Layout
from luban.data.row_preparation import prepare_rows, row_fingerprint
from luban.data.row_sets import BESIDE, BadValue, Fitted, PreparedRows, Row, is_blob
from luban.data.row_store import RowSet
from luban.errors import InputError
from luban.metrics.resampling import Floats, Integers
from luban.row_recipe import RowRecipe
from luban.tasks.base import Choice, Evaluation, Graph, Machine, Usage
from luban.tasks.columns import column_of
from luban.tasks.prepared_data import encoding_settings, with_their_settings
from luban.tasks.row_learner import BATCH, Places, RowLearner, choices
from luban.tasks.row_model import RowModel, graph_of, load_row_model, measure_rows, rows_of_file
from luban.tasks.starting import Start, hub_config, with_its_tokenizer

Array = NDArray[Any]
Tensors = Mapping[str, Tensor]


class Scores(Protocol):
    """What was measured: streaming sums, see `luban.metrics`."""

    def figures(self) -> dict[str, float]:
        """Return the figures by name, those that the rows define."""

    def names(self) -> list[str]:
        """Return the names of all figures, those too that these rows do not define."""

    def resampled(self, resamples: int, seed: int = 0, ranks: Integers | None = None) -> dict[str, Floats]:
        """Return the figures of each resample, see `RowMetric.resampled`; a name for each that has an interval."""


@dataclass(frozen=True)
class Signature:
    """The model as a graph: what goes in, what comes out.

    Attributes:
        inputs: example tensors by the names of `forward`'s arguments.
        outputs: names. dynamic: axes of free size, by input and number.
    """

    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]]


class RowTask:
    """One thing to learn from rows.

    Arguments:
        settings: the recipe.
        fitted: what was learned from training rows; None before.
    """

    name: ClassVar[str]
    recipe: ClassVar[type[RowRecipe]]
    layout: ClassVar[Layout] = "table"
    targets: ClassVar[frozenset[str]] = frozenset({"label"})
    ragged: ClassVar[frozenset[str]] = frozenset()
    primary: str
    """The figure that counts, where the recipe names none."""
    minimise: bool = False
    """Whether a smaller primary figure is better."""
    pipeline: str = "other"
    """The hub's name of what such a model does."""
    evaluation_rows: ClassVar[int] = 256
    """Rows of a batch in evaluation and prediction."""
    rate: ClassVar[float] = 1.0
    """What suits the task as a share of the usual learning rate."""
    batch: ClassVar[int] = BATCH
    """The most rows of a step, where the recipe leaves it open."""
    takes_lists: ClassVar[bool] = False
    """Whether a list is a row to be answered, as tokens are."""
    quick_answers: ClassVar[Mapping[str, Any]] = {}
    """Settings of `predict` under which the model answers soon, and the same each time."""
    quick_rows: ClassVar[int] = 2_000
    """Validation rows that are measured while training."""
    while_training: ClassVar[frozenset[str]] = frozenset()
    """Keys of `data` that say how prepared rows are used, not how they are prepared."""
    encoding_keys: ClassVar[Sequence[str]] = ()
    """`section.key` places outside `data` that the encoded rows depend on."""

    def __init__(self, settings: Any, fitted: Fitted | None = None) -> None:
        self.settings = settings
        self._fitted = fitted

    @property
    def fitted(self) -> Fitted:
        """What was learned from training rows."""
        assert self._fitted is not None, "rows are encoded after the task has learned from them"
        return self._fitted

    # What a row is.

    def asked_columns(self) -> Sequence[str] | None:
        """Return the columns that reading must know, in the layout's order; None for all."""
        return None

    def roles(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Say which column is what, from the names there are."""
        raise NotImplementedError

    def sliced(self, columns: Sequence[str]) -> list[str]:
        """Return the columns that figures are given by; `roles` asks before rows are read.

        Raises:
            DataError: the training rows have no such column.
        """
        asked = list(self.settings.evaluate.slices)
        if self._fitted is None:
            for name in asked:
                column_of(columns, name, (), "evaluate.slices")
        return asked

    def beside(self, values: Mapping[str, Any]) -> Row:
        """Return the columns that figures are given by, as the part of a row that is only looked at."""
        found = {n: "" if values.get(n) is None else str(values[n]) for n in self.settings.evaluate.slices}
        return {BESIDE: found} if found else {}

    def clean(self, values: Mapping[str, Any], roles: Mapping[str, Any]) -> Row:
        """Return the row by the task's own names, checked, and with it what is `beside`.

        A value of `targets` that is not there is left out: rows to be answered have none.

        Raises:
            BadValue: the row cannot be used.
        """
        raise NotImplementedError

    def fit(self, rows: Callable[[], Iterator[Row]], roles: Mapping[str, Any]) -> Fitted:
        """Learn from training rows; `rows` gives them anew at each call."""
        raise NotImplementedError

    def encode(self, row: Row) -> dict[str, Array]:
        """Return a row as arrays; those of targets only where it has them.

        Raises:
            BadValue: a value that training rows did not have, where that cannot be.
        """
        raise NotImplementedError

    def encode_all(self, rows: Iterator[Row], fitted: Fitted) -> Iterator[dict[str, Array] | BadValue]:
        """Encode rows, in order; a row that cannot be is a BadValue in its place."""
        task = self.knowing(fitted)
        for row in rows:
            try:
                yield task.encode(row)
            except BadValue as error:
                yield error

    def kept(self, row: Row) -> Row:
        """Return what is kept of a row to show it later."""
        shown = {name: value for name, value in row.items() if not is_blob(value)}
        shown.pop(BESIDE, None)
        return shown

    def read(self, path: Path) -> Iterator[Any]:
        """Yield the raw rows of a file or folder to be answered; a `Broken` in the place of one that is none."""
        return rows_of_file(self.layout, path, self.asked_columns())

    def parse(self, raw: Any) -> Mapping[str, Any]:
        """Return one raw row to be answered as values by column: an object as it is; a text where that is enough."""
        if isinstance(raw, Mapping):
            return raw
        detail = f"a row is an object with columns; received {str(raw)[:80]!r}"
        if isinstance(raw, str):  # a line of a table, perhaps, piped in
            detail += "; give a table as a file (--input FILE), or each row as JSON"
        raise BadValue("not_text", detail)

    # What the network is, and what its outputs mean.

    def build(self) -> nn.Module:
        """Return the network, freshly initialised from torch's generator."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Return config.json of the model folder."""
        return {"model_type": f"luban-{self.name}", "architectures": [type(self).__name__]}

    def weights_out(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the network's weights by the names of the model folder; the same for most."""
        return weights

    def weights_in(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a model folder's weights by the names of the network."""
        return weights

    def files(self) -> dict[str, Any]:
        """Return what else other tools look for in the model folder: JSON by the name of its file."""
        return {}

    def ready(self, model: nn.Module, rows: RowSet) -> None:
        """Set what the network takes from training rows before step 1; nothing for most."""

    def collate(
        self, columns: Mapping[str, Array], lengths: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, Tensor]:
        """Return columns as tensors, with `NAME_mask` (rows, longest) beside each ragged one."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in columns.items()}
        for name, size in lengths.items():
            width = tensors[name].shape[1]
            tensors[f"{name}_mask"] = torch.arange(width) < torch.from_numpy(size)[:, None]  # (rows, longest)
        return tensors

    def costs(self, rows: RowSet) -> NDArray[np.int64] | None:
        """Return what each row costs, for batches of rows of like cost; None where all cost the same."""
        longest = [rows.lengths(name) for name in sorted(self.ragged) if name in rows.names]
        return np.max(longest, axis=0) if longest else None

    def batch_cost(self) -> int | None:
        """Return the most that a step's rows may cost together, where that and not their number is fixed."""
        return None

    def weights(self, rows: RowSet) -> NDArray[np.float64] | None:
        """Return how often each row is drawn; None for once an epoch."""
        del rows
        return None

    def augmented(self, tensors: dict[str, Tensor], places: Places) -> dict[str, Tensor]:
        """Change a training batch at random; every draw is a function of the seed and of where the rows stand."""
        del places
        return tensors

    @property
    def mixes(self) -> bool:
        """Whether each row of a step is mixed with another one of it, see `mixed`."""
        return False

    def mixed(self, tensors: dict[str, Tensor], partners: Tensors, places: Places) -> dict[str, Tensor]:
        """Mix training rows with their partners, both changed already; draws as of `augmented`."""
        raise NotImplementedError

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Run the network."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, tensors: Tensors) -> Tensor:
        """Return the loss summed over the rows (over what `count` counts)."""
        raise NotImplementedError

    def batch_loss(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Run the network and return the loss summed; for a task whose loss needs more of it than its outputs."""
        return self.loss(self.outputs(model, tensors), tensors)

    def count(self, tensors: Tensors) -> int:
        """Return how many terms the loss sums over."""
        return len(next(iter(tensors.values())))

    def answers(self, model: nn.Module, tensors: Tensors) -> Sequence[Any]:
        """Run the network and return what it says of each row: arrays or lists of plain values."""
        raise NotImplementedError

    def calibrate(self, answers: Sequence[Any], rows: RowSet) -> Self:
        """Return the task with what it learns from its answers on validation rows; itself where that is nothing."""
        del answers, rows
        return self

    def decode(self, answer: Any) -> dict[str, Any]:
        """Return an answer as JSON, for a person or a program."""
        raise NotImplementedError

    # How well it does.

    def scores(self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]) -> Scores:
        """Measure answers against the rows they are of."""
        raise NotImplementedError

    def row_scores(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return figures of each row by the name of the whole's, (rows,) each; see `RowScores.scores`."""
        raise NotImplementedError

    def badness(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return how wrong each answer is; zero and below is right. The report shows the worst."""
        raise NotImplementedError

    def show(self, rows: RowSet, number: int, answer: Any) -> dict[str, Any]:
        """Return a row beside its answer for the report: `parts`, `expected`, `answers`."""
        raise NotImplementedError

    def attended(
        self, model: nn.Module, tensors: Tensors, answers: Sequence[Any]
    ) -> Sequence[dict[str, Any] | None]:
        """Return what the network looked at for each answer, as a part of kind `attention`; None where that is nothing.

        Asked of the few rows that the report shows. A part, as `attention_part` makes it, has `method` (`last_layer`,
        `memory`, `pooling` or `rollout`), `columns` (tokens read), `rows` (tokens written, or the one answer) and
        `weights` (rows, columns).
        """
        del model, tensors
        return [None] * len(answers)

    def view(self, rows: RowSet, number: int) -> str:
        """Return a training row as the network sees it, in one line."""
        raise NotImplementedError

    def sections(self, scores: Scores) -> dict[str, Any]:
        """Return what else the report shows."""
        del scores
        return {}

    def baselines(self, data: PreparedRows) -> list[dict[str, Any]]:
        """Return simpler models measured on the same split: `{"name", "metrics"}`."""
        del data
        return []

    def without_baselines(self, data: PreparedRows) -> str | None:
        """Say why there are no simpler models beside the result, for a task that has them elsewhere; else None."""
        del data
        return None

    def samples(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> list[dict[str, str]]:
        """Return what is shown of the model while it trains: prompt and text; nothing for most."""
        del answers, rows, numbers
        return []

    def finished(self) -> Self:
        """Return the task as it answers once training is over; the same for most."""
        return self

    def asked(self, settings: Mapping[str, Any]) -> Self:
        """Return the task as it answers under settings of `predict`.

        Raises:
            InputError: for a setting it does not know.
        """
        given = sorted(name for name, value in settings.items() if value is not None)
        if given:
            raise InputError(
                f"a model of {self.name} has no such setting", received=given, fix="leave it out"
            )
        return self

    # For the self-test, the lessons and the export.

    @classmethod
    def sample(cls, count: int, draws: random.Random) -> list[Row]:
        """Return raw rows that can be learned, made up: the first lesson, and what the conformance suite trains on."""
        raise NotImplementedError

    @classmethod
    def smallest(cls) -> dict[str, Any]:
        """Return `model` and other sections of a recipe that learns the sample within seconds."""
        return {}

    @classmethod
    def example(cls, rows: str) -> dict[str, Any]:
        """Return a recipe that learns from a file of `sample` rows within seconds."""
        smallest = cls.smallest()
        return {"task": cls.name, **smallest, "data": {**smallest.get("data", {}), "train": rows}}

    def signature(self, tensors: Tensors) -> Signature:
        """Return what the network takes of a batch, in the order of `forward`'s arguments, and what it returns."""
        raise NotImplementedError

    def probe(self, rows: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Return made-up inputs as `collate` gives them, without targets; their free axes differ with the draws."""
        raise NotImplementedError

    def beside_graph(self, model: nn.Module) -> dict[str, Any]:
        """Return what of the network is no part of its graph and is needed to answer: JSON, kept in the state."""
        del model
        return {}

    @staticmethod
    def graph(model: RowModel) -> Graph:
        """Return a loaded model as a graph."""
        return graph_of(model)

    # What the verbs ask for; the same for every task on rows.

    def knowing(self, fitted: Fitted) -> Self:
        """Return the task with what it learned from training rows."""
        return type(self)(self.settings, fitted)

    @classmethod
    def prepare(
        cls, recipe: Any, folder: Path, *, stop: Callable[[], None], progress: Callable[[str, float], None]
    ) -> PreparedRows:
        """Read, split and encode the rows; see luban.data.row_preparation."""
        task = cls(recipe)
        settings = encoding_settings(cls, recipe)
        return prepare_rows(task, recipe.data, settings, folder, stop=stop, progress=progress)

    @staticmethod
    def open(folder: Path) -> PreparedRows:
        """Open what `prepare` made."""
        return PreparedRows(folder)

    @classmethod
    def fingerprint(cls, recipe: Any) -> Fingerprint:
        """Return the fingerprint the rows would have now."""
        return row_fingerprint(recipe.data, cls.layout, encoding_settings(cls, recipe))

    @classmethod
    def as_prepared(cls, recipe: Any, folder: Path) -> Any:
        """Return the recipe with the settings that prepared rows were made with."""
        return with_their_settings(cls, recipe, folder)

    @classmethod
    def choose(cls, recipe: Any, prepared: Any, machine: Machine, start: Any = None) -> Mapping[str, Choice]:
        """Choose batch and learning rate where the recipe leaves them open."""
        batch = None if cls(recipe).batch_cost() is not None else cls.batch
        return choices(recipe, prepared, machine, start, cls.rate, batch)

    @classmethod
    def learner(cls, recipe: Any, prepared: PreparedRows, *, start: Any = None) -> RowLearner:
        """Build the network for a run."""
        return RowLearner(cls(recipe, prepared.fitted), prepared, start=start)

    @classmethod
    def adopted(cls, recipe: Any, folder: Path) -> Any:
        """Return the recipe with what the model to start from decides: its tokenizer, unless the recipe names one."""
        hub_config(folder, (), cls.name)
        return with_its_tokenizer(recipe, folder)

    @classmethod
    def start(cls, folder: Path) -> Start:
        """Read the model that a run starts from."""
        return Start.of(cls.load(folder))

    @staticmethod
    def start_again(config: Mapping[str, Any]) -> Any:
        """Return nothing: the weights come from the checkpoint, the shape from the recipe."""
        del config

    @classmethod
    def load(cls, folder: Path) -> RowModel:
        """Read a model folder."""
        return load_row_model(cls, folder)

    @classmethod
    def measure(
        cls,
        model: Any,
        source: Any,
        *,
        recipe: Any,
        stop: Callable[[], None],
        progress: Callable[[str, float], None],
        **options: Any,
    ) -> Evaluation:
        """Measure a loaded model on files, or on the run's held-out rows."""
        return measure_rows(model, source, recipe=recipe, stop=stop, progress=progress, **options)

    def usage(self) -> Usage:
        """Say how others use the model."""
        code = 'import luban\n\nmodel = luban.load("this folder")\nmodel.predict([...])  # one answer per row'
        caution = "The model has learned from the rows it was given and from nothing else, and repeats their errors."
        return Usage(self.pipeline, "luban", code, caution)


__all__ = [
    "BadValue",
    "Fitted",
    "Places",
    "Row",
    "RowSet",
    "RowTask",
    "Scores",
    "Signature",
    "Tensors",
]
