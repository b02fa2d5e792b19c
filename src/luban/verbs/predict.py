"""`luban predict`: continue prompts from arguments, a file or standard input."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from luban.errors import InputError
from luban.verbs.load import load

ROWS_AT_ONCE = 16


def predict(
    folder: str | Path,
    rows: Sequence[str] = (),
    *,
    source: str | Path | IO[str] | None = None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Continue each prompt; answers come in order, as they are made.

    Arguments:
        folder: a run or a model folder.
        rows: prompts.
        source: a file of prompts besides: .jsonl with `prompt` or `text`, else one prompt per line; or an open file.
        settings: how to generate; see `luban.verbs.load.Model.generate`.

    Yields:
        `{"row", "prompt", "text"}`, or `{"row", "error"}` for a row that is none.
    """
    read = _read(source) if source is not None else iter(())
    model = load(folder)
    pending: list[Any] = list(rows)
    at = 0
    for row in read:
        pending.append(row)
        if len(pending) >= ROWS_AT_ONCE:
            yield from _answer(model, pending, at, settings)
            at, pending = at + len(pending), []
    yield from _answer(model, pending, at, settings)


@dataclass(frozen=True)
class Broken:
    """A line that is no row, and why."""

    why: str


def _answer(model: Any, rows: list[Any], first: int, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number, (row, answer) in enumerate(zip(rows, model.predict(rows, **settings), strict=True), first):
        if "error" in answer:
            yield {"row": number, "error": row.why if isinstance(row, Broken) else answer["error"]}
        else:
            yield {"row": number, **answer}


def _read(source: str | Path | IO[str]) -> Iterator[Any]:
    if not isinstance(source, str | Path):
        return (line.rstrip("\n") for line in source if line.strip())
    path = Path(source)
    if not path.is_file():
        raise InputError("no such file of prompts", received=str(path))
    return _lines(path)


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if path.suffix != ".jsonl":
                yield line.rstrip("\n")
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield Broken(f"line {number} of {path.name} is not JSON")
