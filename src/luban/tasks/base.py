"""What a task gives the engine. The engine gives it files, processes, time and a place to save."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from luban.data.fingerprint import Fingerprint
from luban.durable import FileSystem
from luban.learner import Learner as Trainable
from luban.metrics.document_losses import DocumentLosses
from luban.metrics.row_scores import RowScores
from luban.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """What was measured on held-out data."""

    primary: str
    direction: str
    """`min` or `max`: which way the primary figure is better."""
    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    worst: Sequence[Mapping[str, Any]] = ()
    best: Sequence[Mapping[str, Any]] = ()
    sections: Mapping[str, Any] = field(default_factory=dict)
    """What else the report shows, by name (`classification`, `errors`, ...): JSON, part of evaluation.json."""
    documents: DocumentLosses | None = None
    """What each document cost, for a comparison in pairs; not part of evaluation.json."""
    rows: RowScores | None = None
    """The same of rows."""

    def as_json(self) -> dict[str, Any]:
        """Return the form of evaluation.json."""
        return {
            "primary": {
                "name": self.primary,
                "value": _number(self.figures[self.primary]),
                "direction": self.direction,
            },
            "metrics": {name: self._with_interval(name) for name in self.figures},
            "counts": dict(self.counts),
            "worst": [_passage(passage) for passage in self.worst],
            "best": [_passage(passage) for passage in self.best],
            **self.sections,
        }

    def _with_interval(self, name: str) -> dict[str, float | None]:
        low, high = self.intervals.get(name, (math.nan, math.nan))  # none where none was asked for
        return {"value": _number(self.figures[name]), "low": _number(low), "high": _number(high)}


def _passage(passage: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) if isinstance(value, float) else value for name, value in passage.items()}


def _number(value: float) -> float | None:
    """Return a number as JSON can say it: infinity and NaN are null."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Choice:
    """What was chosen for a key that the recipe leaves open, and why."""

    value: int | float
    why: str

    def as_json(self) -> dict[str, Any]:
        """Return the form of plan.json."""
        return {"value": self.value, "why": self.why}


@dataclass(frozen=True)
class Machine:
    """What a choice needs to know of the machine.

    Attributes:
        peak_flops: measured rate of matrix products, FLOP/s. memory_bytes: what a run may take now.
        kernels: whether a network that takes luban's kernels would train by them.
        float32_flops: the rate of products in float32, by which all goes that lies between products; None: peak_flops.
    """

    peak_flops: float
    memory_bytes: int
    kernels: bool = False
    float32_flops: float | None = None


class Data(Protocol):
    """Prepared data, opened."""

    folder: Path
    report: dict[str, Any]
    fingerprint: dict[str, Any]

    @property
    def train_tokens(self) -> int:
        """Tokens (or rows) of the training side: an epoch."""

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return the counts of each split, by the names of their units."""


class Model(Protocol):
    """A finished model, ready to answer."""

    task: str
    """The task's name."""
    module: nn.Module
    state: Mapping[str, Any]
    """What the task keeps in the model folder besides weights and tokenizers."""
    rows_at_once: int
    """Rows that `predict` is best given together."""

    def row_of_line(self, line: str) -> Any:
        """Return a line that a person typed as a row: a text, or JSON; a `Broken` where it is neither."""

    def read(self, path: Path) -> Iterator[Any]:
        """Yield the rows of a file or folder to be answered; a `Broken` in the place of one that is none."""

    def predict(self, rows: Sequence[Any], **settings: Any) -> list[dict[str, Any]]:
        """Answer rows, in order; `{"row", "error"}` stands for one that is none."""


class Learner(Trainable, Protocol):
    """What a run trains: a model with its data. What the loop asks of it, and what the verbs ask besides."""

    @property
    def minimise(self) -> bool:
        """Whether a smaller primary figure is better."""

    @property
    def compiles_well(self) -> bool:
        """Whether compiling is known to save time: all steps have one shape, and it was measured."""

    def quick(self) -> Mapping[str, float]:
        """Measure a fixed part of the held-out data; the primary figure comes first."""

    def rehearse_quick(self) -> float:
        """Do a share of what `quick` does, and return that share, up to 1."""

    def evaluate(self, *, stop: Callable[[], None]) -> Evaluation:
        """Measure all of it."""

    def evaluation_tokens(self) -> int:
        """Return how many tokens (or rows) pass through the model in `evaluate`."""

    def largest_evaluation(self) -> int:
        """Compute the largest batch that `evaluate` meets and return its tokens (or rows)."""

    def views(self, count: int) -> Sequence[str]:
        """Show `count` training examples as the model will see them."""

    def expected(self, tokens: int) -> Mapping[str, float]:
        """Return the held-out figures expected after so many tokens (or rows), by name; none where no law is known."""

    def samples(self) -> Sequence[Mapping[str, str]]:
        """Show what the model does now: prompt and answer."""

    def started(self) -> str | None:
        """Say what was taken from the model to start from, and what begins anew; None where there is nothing to say."""

    def config(self) -> dict[str, Any]:
        """Return the model's configuration, as config.json of its folder has it."""

    def usage(self) -> Usage:
        """Say how others use the model: for its card."""

    def save(self, folder: Path, card: str, fs: FileSystem) -> None:
        """Write the model folder, whole or not at all."""


@dataclass(frozen=True)
class Usage:
    """How a model is used.

    Attributes:
        pipeline: the hub's name of what it does, such as `text-generation`. library: what loads it.
        code: Python that loads it. caution: what a user should know.
        unit: what is counted of what it learned from.
        continues_text: whether a row is a text that it goes on with; else a row is something that it answers.
    """

    pipeline: str
    library: str
    code: str
    caution: str
    unit: Literal["tokens", "rows"] = "rows"
    continues_text: bool = False


class Task(Protocol):
    """One thing to learn: a class of this shape, found by name. Everything else in luban is the same for all."""

    name: ClassVar[str]
    recipe: ClassVar[type[Recipe]]
    quick_answers: ClassVar[Mapping[str, Any]]
    """Settings of `predict` under which the model answers soon, and the same each time; none where it does anyway."""

    @staticmethod
    def prepare(
        recipe: Any, folder: Path, *, stop: Callable[[], None], progress: Callable[[str, float], None]
    ) -> Any:
        """Turn the recipe's data into what training reads, in `folder`, whole or not at all; returns it opened."""

    @staticmethod
    def open(folder: Path) -> Any:
        """Open what `prepare` made."""

    @staticmethod
    def fingerprint(recipe: Any) -> Fingerprint:
        """Return the fingerprint the recipe's data would have now; prepare nothing."""

    @classmethod
    def as_prepared(cls, recipe: Any, folder: Path) -> Any:
        """Return the recipe with what prepared data, in `folder`, decides: the settings that it was made with.

        Raises:
            InputError: it is of another task, or the recipe itself names another setting.
        """

    @staticmethod
    def choose(recipe: Any, prepared: Any, machine: Machine, start: Any = None) -> Mapping[str, Choice]:
        """Choose a value for each key that the recipe leaves open (`train.batch`), from budget, data and machine."""

    @classmethod
    def learner(cls, recipe: Any, prepared: Any, *, start: Any = None) -> Learner:
        """Build the model, freshly initialised or from what `start` gave."""

    @classmethod
    def adopted(cls, recipe: Any, folder: Path) -> Any:
        """Return the recipe with what the model to start from, in `folder`, decides."""

    @staticmethod
    def start(folder: Path) -> Any:
        """Read the model that a run starts from."""

    @staticmethod
    def start_again(config: Mapping[str, Any]) -> Any:
        """Return what `start` gave, its weights aside: a run that goes on takes these from its checkpoint."""

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Read a model folder."""

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
        """Measure a loaded model.

        Arguments:
            source: files, or the `Data` of the run it came from.
            recipe: of that run; None where there is none.
            options: the task's own; one it does not know is an InputError.
        """

    @classmethod
    def sample(cls, count: int, draws: random.Random) -> list[dict[str, Any]]:
        """Return raw rows that can be learned, made up: for the self-test, and for a first lesson."""

    @classmethod
    def example(cls, rows: str) -> dict[str, Any]:
        """Return a recipe, without its budget, that learns from a file of `sample` rows within seconds."""

    @staticmethod
    def graph(model: Any) -> Graph:
        """Return a loaded model as a graph."""


@dataclass(frozen=True)
class Graph:
    """A model as a graph, for the export.

    Attributes:
        module: takes the tensors of `probe` by name. outputs: names of what it returns.
        dynamic: axes of free size, by input and number.
        probe: made-up inputs for so many rows, from a seed; their free axes differ with the seed.
        beside: writes what the folder of the graph needs besides, luban.json among it.
    """

    module: nn.Module
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]]
    probe: Callable[[int, int], dict[str, Tensor]]
    beside: Callable[[Path], None]


@dataclass(frozen=True)
class Broken:
    """What is no row, and why."""

    why: str
