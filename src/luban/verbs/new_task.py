"""`luban new task`: the one file a task is made of, its test, and the entry point by which luban finds it."""

from __future__ import annotations

import json
import keyword
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from luban import tasks
from luban.durable import new_folder, write_text
from luban.errors import InputError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_ROWS = 400


@dataclass(frozen=True)
class NewTask:
    """What was written."""

    folder: Path
    files: Sequence[Path]


def new_task(name: str, out: str | Path = ".") -> NewTask:
    """Write a package that holds one task, into `out/name`.

    Arguments:
        name: of the task, in small letters and hyphens: `star-rating`.

    Raises:
        InputError: the name cannot be one, is taken, or the folder exists.
    """
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name):
        raise InputError(
            "a task's name is small letters, digits and hyphens", received=name, fix="for example star-rating"
        )
    if keyword.iskeyword(module):
        message = "the task's name is a word of Python's own, which no module can have"
        raise InputError(message, received=name, fix=f"for example {name}-rows")
    if name in tasks.names():
        raise InputError("a task of that name exists already", received=name, fix="choose another name")
    folder = Path(out) / name
    if folder.exists():
        raise InputError("the folder exists already", received=str(folder), fix="choose another --out")
    words = {
        "NAME": name,
        "MODULE": module,
        "CLASS": "".join(part.capitalize() for part in name.split("-")),
        "TITLE": name.replace("-", " ").capitalize(),
        "DATA": json.dumps(str(folder.absolute() / "example.jsonl")),
    }
    draws = random.Random(0)  # noqa: S311  (rows made up)
    rows = [{"x": draws.uniform(-1, 1), "y": draws.uniform(-1, 1)} for _ in range(_ROWS)]
    lines = [json.dumps({**row, "label": "above" if row["y"] > row["x"] else "below"}) for row in rows]
    with new_folder(folder) as new:
        write_text(new / f"{module}.py", _filled("task.py", words))
        write_text(new / f"test_{module}.py", _filled("test_task.py", words))
        write_text(new / "pyproject.toml", _filled("pyproject.toml", words))
        write_text(new / "example.yaml", _filled("example.yaml", words))
        write_text(new / "example.jsonl", "\n".join(lines) + "\n")
    (folder / "manifest.json").unlink()  # whole now; it is a package to be changed, not a sealed folder
    return NewTask(folder, sorted(folder.iterdir()))


def _filled(template: str, words: dict[str, str]) -> str:
    text = (resources.files("luban") / "templates" / f"{template}.txt").read_text("utf-8")
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: words[match[1]], text)
