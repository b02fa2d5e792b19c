"""A finished model of a task on rows: it answers rows, and is measured on files it has never seen."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from luban.data.bad_rows import BadKind, BadRows, Place
from luban.data.row_files import Layout, read_raw_rows
from luban.data.row_sets import BadValue, Fitted, PreparedRows
from luban.data.row_store import RowSet, RowWriter
from luban.durable import member
from luban.errors import CheckpointError, InputError
from luban.exporting.onnx_module import OnnxModule
from luban.model_folder import GRAPH
from luban.recipe_reader import read_recipe
from luban.task_folder import TaskFolder, fill, read_task_folder, write_beside
from luban.tasks.base import Broken, Evaluation, Graph
from luban.tasks.row_learner import answered, measured

if TYPE_CHECKING:
    from luban.tasks.rows import RowTask

MAX_ROW_BYTES = 100_000_000


class RowModel:
    """A model that answers rows.

    Attributes:
        task: the task's name. module: the network. kind: the task, knowing what it learned.
        state: what the model folder keeps besides weights and tokenizers.
    """

    def __init__(self, kind: RowTask, module: nn.Module, state: Mapping[str, Any]) -> None:
        self.kind, self.module, self.state, self.task = kind, module, state, kind.name

    def predict(self, rows: Sequence[Any], **settings: Any) -> list[dict[str, Any]]:
        """Answer rows, in order.

        Arguments:
            rows: each as the task reads one: an object with its columns, or where one text is enough, a text.
            settings: none are known so far to any task on rows but those of its own.

        Returns:
            for each row what the task says of it, or `{"row", "error"}` for a row that is none.
        """
        kind = self.kind.asked(settings)
        answers: list[dict[str, Any]] = []
        good: list[int] = []
        with tempfile.TemporaryDirectory(prefix="luban-predict-") as scratch:
            writer = RowWriter(Path(scratch) / "rows", kind.ragged)
            for number, raw in enumerate(rows):
                try:
                    if isinstance(raw, Broken):
                        raise BadValue("not_text", raw.why)
                    values = kind.parse(raw)
                    row = kind.clean(values, kind.fitted.state.get("roles", {}))
                    row = {name: value for name, value in row.items() if name not in kind.targets}
                    writer.add(kind.encode(row), {"values": kind.kept(row), "file": "", "line": number})
                except BadValue as error:
                    answers.append({"row": number, "error": error.detail})
                else:
                    good.append(number)
                    answers.append({})
            writer.close()
            if good:
                found = RowSet(Path(scratch) / "rows")
                said = answered(kind, self.module, found, np.arange(len(good), dtype=np.int64), lambda: None)
                for number, answer in zip(good, said, strict=True):
                    answers[number] = kind.decode(answer)
        return answers


def load_row_model(task: type[RowTask], folder: Path) -> RowModel:
    """Read a model folder of a task on rows.

    Raises:
        CheckpointError: the folder is torn, or of another task.
    """
    content = read_task_folder(folder)
    state = content.task_state
    if state.get("task") != task.name or not isinstance(state.get("fitted"), dict):
        raise CheckpointError(f"{folder} is no model of {task.name}", received=state.get("task"))
    recipe = read_recipe(state.get("recipe", {}), (), lambda _: task.recipe, str(folder))
    kind = task(recipe, Fitted(state["fitted"], content.tokenizers))
    if (folder / GRAPH).is_file():
        return RowModel(kind, GraphModule(member(folder, GRAPH)), state)
    try:
        module = kind.build()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"the state in {folder} does not say what the model is: {error}") from error
    fill(module, content.weights, folder)
    return RowModel(kind, module.eval(), state)


def measure_rows(
    model: RowModel,
    source: Any,
    *,
    recipe: Any,
    stop: Callable[[], None],
    progress: Callable[[str, float], None],
    **options: Any,
) -> Evaluation:
    """Measure a model on the held-out rows of its run, or on files."""
    kind = model.kind.finished()
    settings = (recipe or kind.settings).evaluate
    if options.get("bootstrap") is not None:
        settings = settings.model_copy(update={"bootstrap": options["bootstrap"]})
    unknown = sorted(name for name, value in options.items() if value is not None and name != "bootstrap")
    if unknown:
        raise InputError(
            f"a model of {kind.name} has no such option",
            received=unknown,
            fix="leave it out; bootstrap is one",
        )
    if isinstance(source, PreparedRows):
        return measured(kind, model.module, source.held_out, settings, stop)
    with tempfile.TemporaryDirectory(prefix="luban-evaluate-") as scratch:
        progress("reading", 0.0)
        rows = _read(kind, source, Path(scratch) / "rows", stop)
        progress("evaluating", 0.0)
        return measured(kind, model.module, rows, settings, stop)


def _read(kind: RowTask, source: Sequence[str], folder: Path, stop: Callable[[], None]) -> RowSet:
    data = kind.settings.data
    bad = BadRows(data.on_bad_row)
    writer = RowWriter(folder, kind.ragged)
    roles: Mapping[str, Any] | None = None
    for raw in read_raw_rows(
        source, kind.layout, columns=kind.asked_columns(), max_row_bytes=data.max_row_bytes, bad=bad
    ):
        stop()
        roles = kind.roles(list(raw.values)) if roles is None else roles
        place = Place(raw.file, raw.file, raw.line)
        try:
            row = kind.clean(raw.values, roles)
            missing = sorted(kind.targets - row.keys())
            if missing:
                raise BadValue("missing_value", f"the row has no {' and no '.join(missing)}")
            writer.add(kind.encode(row), {"values": kind.kept(row), "file": raw.file, "line": raw.line})
        except BadValue as error:
            bad.add(error.kind, place, error.detail, str(raw.values)[:200])
    writer.close()
    if not writer.count:
        raise InputError("there is no row to measure on", received=source)
    return RowSet(folder)


class _InOrder(BadRows):
    """Keeps each bad row until the reader of good ones comes by, so that answers stay in order."""

    def __init__(self) -> None:
        super().__init__("skip")
        self.waiting: list[Broken] = []

    def add(self, kind: BadKind, place: Place, detail: str, raw: str | bytes | None = None) -> None:
        super().add(kind, place, detail, raw)
        self.waiting.append(Broken(f"{place.file}:{place.line}: {detail}"))


def rows_of_file(layout: Layout, path: Path) -> Iterator[Any]:
    """Yield the rows of a file or folder as values by column; a `Broken` in the place of a bad one.

    Lines of a .txt file are texts, those of a .jsonl file are whatever they hold.
    """
    names = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if names.endswith(".txt") or path.suffix == ".jsonl":
        yield from _lines(path)
        return
    bad = _InOrder()
    for raw in read_raw_rows([str(path)], layout, columns=None, max_row_bytes=MAX_ROW_BYTES, bad=bad):
        yield from bad.waiting
        bad.waiting.clear()
        yield raw.values
    yield from bad.waiting


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield Broken(f"{path.name}:{number}: byte {error.start + 1} of the line is not UTF-8")
                continue
            if not text.strip():
                continue
            if path.suffix != ".jsonl":
                yield text
                continue
            try:
                yield json.loads(text)
            except (ValueError, RecursionError):
                yield Broken(f"{path.name}:{number}: not JSON")


class GraphModule(nn.Module):
    """An exported graph in the place of the network it came from."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._graph = OnnxModule(path)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Run the graph: what the network takes, in the same order, and what it returns."""
        arrays = {n: x.numpy() for n, x in zip(self._graph.inputs, inputs, strict=True)}
        found = [torch.from_numpy(array) for array in self._graph(**arrays).values()]
        return found[0] if len(found) == 1 else tuple(found)


def graph_of(model: RowModel) -> Graph:
    """Return a model as a graph, with made-up rows to compare it on."""
    kind = model.kind

    def probe(rows: int, seed: int) -> dict[str, torch.Tensor]:
        return dict(kind.signature(kind.probe(rows, torch.Generator().manual_seed(seed))).inputs)

    def beside(folder: Path) -> None:
        fitted = {**kind.fitted.state, **kind.beside_graph(model.module)}
        state = {**model.state, "fitted": fitted}
        write_beside(folder, TaskFolder(kind.config(), {}, kind.fitted.tokenizers, state))

    signature = kind.signature(kind.probe(2, torch.Generator()))
    return Graph(model.module, signature.outputs, signature.dynamic, probe, beside)
