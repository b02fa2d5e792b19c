"""A finished model of a task on rows: it answers rows, and is measured on files it has never seen."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from luban.data.bad_rows import BadRows, Place
from luban.data.row_files import Layout, read_raw_rows, with_columns
from luban.data.row_sets import BESIDE, BadValue, Fitted, PreparedRows, Row, kept_row
from luban.data.row_sources import TABLES, suffix_of
from luban.data.row_store import RowSet, RowWriter
from luban.durable import member
from luban.errors import CheckpointError, InputError
from luban.exporting.onnx_module import OnnxModule
from luban.model_folder import GRAPH
from luban.recipe_reader import read_recipe
from luban.task_folder import TaskFolder, fill, read_task_folder, write_beside
from luban.tasks.asked_lines import MAX_ROW_BYTES, InOrder, lines_of_file
from luban.tasks.base import Broken, Evaluation, Graph
from luban.tasks.row_measuring import answered, measured

if TYPE_CHECKING:
    from luban.tasks.rows import RowTask

# Files that are read column by column where rows are to be answered: these layouts ask for what is asked of the model.
_TABLES: dict[Layout, tuple[str, ...]] = {
    "pairs": (".csv", ".tsv", ".parquet", ".arrow"),
    "tagged": (".parquet", ".arrow"),
}


class RowModel:
    """A model that answers rows.

    Attributes:
        task: the task's name. module: the network. kind: the task, knowing what it learned.
        state: what the model folder keeps besides weights and tokenizers.
    """

    def __init__(self, kind: RowTask, module: nn.Module, state: Mapping[str, Any]) -> None:
        self.kind, self.module, self.state, self.task = kind, module, state, kind.name
        self.rows_at_once = kind.evaluation_rows

    def row_of_line(self, line: str) -> Any:
        """Return a line as a row: a JSON object, a list where the task takes one, else the text as it stands."""
        if not line.startswith("{") and not (line.startswith("[") and self.kind.takes_lists):
            return line
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return Broken("not JSON") if line.startswith("{") else line

    def read(self, path: Path) -> Iterator[Any]:
        """Yield the rows of a file or folder to be answered; a `Broken` in the place of one that is none."""
        return self.kind.read(path)

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
                    row = _to_answer(kind, raw)
                    writer.add(kind.encode(row), kept_row(kind, row, "", number))
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


def _to_answer(kind: RowTask, raw: Any) -> Row:
    """Return a raw row by the task's names, without what is asked for, whatever stands there.

    Raises:
        BadValue: it cannot be used.
    """
    roles = kind.fitted.state.get("roles", {})
    asked_for = {roles.get(name, name) for name in kind.targets}
    row = kind.clean({n: v for n, v in kind.parse(raw).items() if n not in asked_for}, roles)
    row = {name: value for name, value in row.items() if name not in kind.targets | {BESIDE}}
    try:
        json.dumps(kind.kept(row), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadValue(
            "invalid_utf8", "a text holds half of a surrogate pair, which is no character"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue("bad_value", f"a value is neither text nor number: {error}") from None
    return row


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
    try:
        kind = task(recipe, Fitted(state["fitted"], content.tokenizers))
        if (folder / GRAPH).is_file():
            return RowModel(kind, GraphModule(member(folder, GRAPH)), state)
        module = kind.build()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"the state in {folder} does not say what the model is: {error}") from error
    fill(module, kind.weights_in(content.weights), folder)
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
        bad = BadRows(kind.settings.data.on_bad_row)
        rows = _read(kind, source, Path(scratch) / "rows", stop, bad)
        progress("evaluating", 0.0)
        found = measured(kind, model.module, rows, settings, stop)
    told = bad.as_dict()
    return dataclasses.replace(
        found,
        counts={**found.counts, "left_out": told["total"]},
        sections={**found.sections, "bad_rows": told},
    )


def _read(
    kind: RowTask, source: Sequence[str], folder: Path, stop: Callable[[], None], bad: BadRows
) -> RowSet:
    writer = RowWriter(folder, kind.ragged)
    limit = kind.settings.data.max_row_bytes
    columns, rows = with_columns(
        read_raw_rows(source, kind.layout, columns=kind.asked_columns(), max_row_bytes=limit, bad=bad)
    )
    roles = _roles(kind, columns) if columns else {}
    for raw in rows:
        stop()
        place = Place(raw.file, raw.file, raw.line)
        try:
            row = kind.clean(raw.values, roles)
            missing = sorted(kind.targets - row.keys())
            if missing:
                raise BadValue("missing_value", f"the row has no {' and no '.join(missing)}")
            writer.add(kind.encode(row), kept_row(kind, row, raw.file, raw.line))
        except BadValue as error:
            bad.add(error.kind, place, error.detail, str(raw.values)[:200])
    writer.close()
    if not writer.count:
        raise InputError("there is no row to measure on", received=bad.told() or source, fix=bad.fix())
    return RowSet(folder)


def _roles(kind: RowTask, columns: Sequence[str]) -> Mapping[str, Any]:
    """Return the columns that the model was trained on where the file has them all, else those that it finds there."""
    learned: Mapping[str, Any] = kind.fitted.state.get("roles", {})
    roles = [role if isinstance(role, list) else [role] for role in learned.values() if role is not None]
    known = set(chain.from_iterable(roles))
    return learned if known and known <= set(columns) else kind.roles(columns)


def rows_of_file(layout: Layout, path: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yield the rows of a file or folder as values by column; a `Broken` in the place of a bad one.

    Lines of a .txt file are texts, those of a .jsonl file are whatever they hold; blank ones are passed over. Of pairs
    any file that is no table is one of sources, line by line.

    Arguments:
        columns: those that the recipe names, in the layout's order.
    """
    bad = InOrder()
    sources = layout == "pairs" and suffix_of(path) not in (*TABLES, ".txt")
    if path.is_file() and (sources or suffix_of(path) in (".txt", ".jsonl")):
        yield from lines_of_file(path)
        return
    layout = "table" if suffix_of(path) in _TABLES.get(layout, ()) else layout
    found = read_raw_rows(
        [str(path)], layout, columns=columns, max_row_bytes=MAX_ROW_BYTES, bad=bad, answering=True
    )
    for raw in found:
        yield from bad.passed()
        yield raw.values
    yield from bad.passed()


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
