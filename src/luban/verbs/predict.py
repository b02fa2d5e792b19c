"""`luban predict`: answer rows from arguments, a file, a folder or standard input."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from luban.errors import InputError
from luban.tasks.base import Broken
from luban.verbs.load import load

ROWS_AT_ONCE = {"language-model": 16}
"""Rows answered together; a task not named here takes 256."""


def predict(
    folder: str | Path,
    rows: Sequence[Any] = (),
    *,
    source: str | Path | IO[str] | None = None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Answer rows; answers come in order, as they are made.

    Arguments:
        folder: a run or a model folder.
        rows: as the task reads one: of a language model a prompt, of text classification a text, of tables an object.
        source: more of them: a file or folder of the task's formats, or an open file with one text or JSON object on a
            line.
        settings: the task's own; of a language model how to generate, see `luban.tasks.text_model.TextModel.generate`.

    Yields:
        `{"row", ...}` with what the task says of the row, or `{"row", "error"}` for a row that is none.
    """
    model = load(folder)
    coming = _chained(rows, source, model)
    size, at = ROWS_AT_ONCE.get(model.task, 256), 0
    while pending := list(islice(coming, size)):
        answers = model.predict(pending, **settings)
        for number, (row, answer) in enumerate(zip(pending, answers, strict=True), at):
            if "error" in answer:
                yield {"row": number, "error": row.why if isinstance(row, Broken) else answer["error"]}
            else:
                yield {"row": number, **answer}
        at += len(pending)


def _chained(rows: Sequence[Any], source: str | Path | IO[str] | None, model: Any) -> Iterator[Any]:
    yield from rows
    if source is None:
        return
    if not isinstance(source, str | Path):
        lines = (line.rstrip("\n") for line in source if line.strip())
        yield from lines if model.task == "language-model" else map(row_of_line, lines)
        return
    path = Path(source)
    if not path.exists():
        raise InputError("no such file of rows", received=str(path))
    yield from model.read(path)


def row_of_line(line: str) -> Any:
    """Return a line as a row: a JSON object where it is one, else the text.

    Example:
        >>> row_of_line('{"text": "fine"}'), row_of_line("fine")
        ({'text': 'fine'}, 'fine')
    """
    if not line.startswith("{"):
        return line
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line
