"""What a hostile file is here, and how one is made from a whole one."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luban.durable import MANIFEST

RELEASED = Path(__file__).parents[1] / "fixtures" / "released"
Outcome = Literal["refused", "read correctly", "refused or read correctly"]
REFUSED: Outcome = "refused"
READ: Outcome = "read correctly"
EITHER: Outcome = "refused or read correctly"
CANARY = "luban_canary"
"""A module that lies beside every hostile file and on `sys.path`; nothing may import it."""


@dataclass(frozen=True)
class Case:
    """A hostile file, what a user does with it, and what must come of it.

    Arguments:
        name: says what was done to which file.
        make: writes the hostile files into an empty folder.
        use: what a user does; gets the folder.
        outcome: `REFUSED` with luban's own error; `READ`: used, and `use` checked that it was used rightly; or
            `EITHER`, where that is for the library to decide that reads the part.
        names: a word of the message besides the folder; empty where the folder alone must be named.
    """

    name: str
    make: Callable[[Path], object]
    use: Callable[[Path], object]
    outcome: Outcome = REFUSED
    names: str = ""


def newest_release() -> Path:
    """The fixtures of the newest version."""
    return max(path for path in RELEASED.iterdir() if not path.name.startswith("."))


def copy(part: str, folder: Path) -> Path:
    """Copy a part of the newest release, such as `finished/model`, into `folder`; return where it lies."""
    target = folder / part.rpartition("/")[2]
    shutil.copytree(newest_release() / part, target)
    return target


def put(path: Path, content: bytes | str | Any) -> Path:
    """Write bytes, text, or anything else as JSON, and mend the manifest beside it: hostile, not torn."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    data = content if isinstance(content, bytes) else json.dumps(content).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    reseal(path.parent)
    return path


def reseal(folder: Path) -> None:
    """Make a folder's manifest, where it has one, say what its files now are."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    described = json.loads(manifest.read_text("utf-8"))
    for name in described.get("files", {}):
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            described["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(described), "utf-8")


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; a value of `...` takes the key away."""
    value = {**json.loads(path.read_text("utf-8")), **changes}
    put(path, {key: inner for key, inner in value.items() if inner is not ...})


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """Write a safetensors file whose header may lie: a value for JSON, or the bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8")
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    """Brackets within brackets."""
    return opening * levels + closing * levels


class Payload:
    """What a pickle bomb is: unpickling it imports the canary and calls it."""

    def __reduce__(self) -> tuple[Any, ...]:
        import importlib

        return importlib.import_module, (CANARY,)
