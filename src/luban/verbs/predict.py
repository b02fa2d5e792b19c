"""`luban predict`: answer rows from arguments, a file, a folder or standard input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from luban.errors import InputError
from luban.tasks.asked_lines import lines_of_open
from luban.tasks.base import Broken
from luban.verbs.load import load


def predict(
    folder: str | Path,
    rows: Sequence[Any] = (),
    *,
    lines: Sequence[str] = (),
    source: str | Path | IO[str] | IO[bytes] | None = None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Answer rows; answers come in order, as they are made.

    Arguments:
        folder: a run or a model folder.
        rows: as the task reads one: of a language model a prompt, of text classification a text, of tables an object.
        lines: more of them as a person types them: texts, or JSON.
        source: more of them: a file or folder of the task's formats, or an open file with one on each line.
        settings: the task's own; of a language model how to generate, see `luban.tasks.text_model.TextModel.generate`.

    Yields:
        `{"row", ...}` with what the task says of the row, or `{"row", "error"}` for a row that is none.
    """
    model = load(folder)
    coming = _chained(rows, lines, source, model)
    at = 0
    while pending := list(islice(coming, model.rows_at_once)):
        answers = model.predict(pending, **settings)
        for number, (row, answer) in enumerate(zip(pending, answers, strict=True), at):
            if "error" in answer:
                yield {"row": number, "error": row.why if isinstance(row, Broken) else answer["error"]}
            else:
                yield {"row": number, **answer}
        at += len(pending)


def _chained(
    rows: Sequence[Any], lines: Sequence[str], source: str | Path | IO[str] | IO[bytes] | None, model: Any
) -> Iterator[Any]:
    yield from rows
    yield from map(model.row_of_line, lines)
    if source is None:
        return
    if not isinstance(source, str | Path):
        yield from lines_of_open(source, model.row_of_line)
        return
    path = Path(source)
    if not path.exists():
        raise InputError("no such file of rows", received=str(path))
    if path.is_file() or path.is_dir():
        yield from model.read(path)
        return
    with path.open("rb") as pipe:  # nothing of it can be read twice
        yield from lines_of_open(pipe, model.row_of_line)
