"""What prepared data was made of: the files by content, the settings, and the version of the steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from luban.data.sources import SourceFile, find_files
from luban.durable import MANIFEST, read_json
from luban.errors import CheckpointError, DataError, InputError
from luban.text_recipe import TextData

FINGERPRINT = "fingerprint.json"
STEPS_VERSION = 2
"""To be raised whenever the same files and settings would be prepared to other bytes."""

_NO_MATTER = {"source", "validation", "tokenizer", "length", "short_steps", "attention", "workers"}
_TRAINED = ("bpe", "char")
_READ_BYTES = 1 << 20

Role = Literal["source", "validation", "tokenizer", "train", "test"]


@dataclass(frozen=True, slots=True)
class FilePrint:
    """One file: what it is for, its relative name, its size and its SHA-256."""

    role: Role
    name: str
    bytes: int
    sha256: str

    @property
    def is_sound(self) -> bool:
        """Whether every field is of its kind; what was read from a file may be anything."""
        texts = (self.role, self.name, self.sha256)
        return type(self.bytes) is int and all(isinstance(text, str) for text in texts)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything the bytes of prepared data depend on; where files lie and how many workers read them is no
    part."""

    files: tuple[FilePrint, ...]
    settings: dict[str, Any]
    steps: int = STEPS_VERSION

    @property
    def sha256(self) -> str:
        """One digest of the whole."""
        text = json.dumps([[asdict(f) for f in self.files], self.settings, self.steps], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return what `fingerprint.json` holds."""
        files = [asdict(file) for file in self.files]
        return {"sha256": self.sha256, "steps": self.steps, "settings": self.settings, "files": files}

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: object = None) -> Fingerprint:
        """Read what `as_dict` gave.

        Raises:
            CheckpointError: it is no fingerprint, or its digest is not its own; `where` says whose.
        """
        try:
            files = tuple(FilePrint(**entry) for entry in value["files"])
            found = cls(files, dict(value["settings"]), value["steps"])
            if not isinstance(found.steps, int) or not all(file.is_sound for file in files):
                raise ValueError("a name, a size or a digest is none")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not a data fingerprint: {error}", received=value, where=where) from None
        if found.sha256 != value.get("sha256"):
            received = value.get("sha256")
            raise CheckpointError("a data fingerprint was altered", received=received, where=where)
        return found


def is_prepared(path: str | Path) -> bool:
    """Say whether `path` is a folder that `prepare` made."""
    folder = Path(path).expanduser()
    return (folder / FINGERPRINT).is_file() and (folder / MANIFEST).is_file()


def source_files(recipe: TextData) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return the files to train on and those held out; a file of both is held out only.

    Raises:
        InputError: a source has no files.
    """
    held_out = find_files(recipe.validation) if recipe.validation is not None else []
    taken = {file.path.resolve() for file in held_out}
    files = [file for file in find_files(recipe.source) if file.path.resolve() not in taken]
    if not files:
        raise InputError("data.source has only files that data.validation names too", received=recipe.source)
    return files, held_out


def fingerprint_of(recipe: TextData, stop: Callable[[], None] = lambda: None) -> Fingerprint:
    """Read the files that a recipe names and return the fingerprint their data would have; prepare nothing.

    Arguments:
        recipe: the data section; where its source is a prepared folder, that folder's fingerprint is
            returned.
        stop: called often; may raise to stop.

    Raises:
        InputError: a file is absent.
    """
    if isinstance(recipe.source, str) and is_prepared(recipe.source):
        return Fingerprint.from_dict(read_json(Path(recipe.source).expanduser() / FINGERPRINT))
    files, held_out = source_files(recipe)
    prints = file_prints("source", files, stop) + file_prints("validation", held_out, stop)
    # Without folds as of texts that were prepared before there were such keys.
    absent = {"folds", "fold"} if recipe.folds is None else set()
    settings = recipe.model_dump(mode="json", exclude=_NO_MATTER | absent)
    if recipe.tokenizer in _TRAINED:
        settings["tokenizer"] = recipe.tokenizer
    else:
        path = Path(recipe.tokenizer).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise InputError(
                "no such tokenizer",
                received=recipe.tokenizer,
                where="data.tokenizer",
                fix="write bpe, char, or the path of a tokenizer.json or of the folder that holds one",
            )
        prints += file_prints("tokenizer", [SourceFile(path, path.name, "text")], stop)
    return Fingerprint(tuple(prints), settings)


def file_prints(role: Role, files: Sequence[SourceFile], stop: Callable[[], None]) -> list[FilePrint]:
    """Read files whole and return what each is: its role, relative name, size and SHA-256."""
    found = []
    for file in files:
        digest, size = hashlib.sha256(), 0
        try:
            with file.path.open("rb") as stream:
                while block := stream.read(_READ_BYTES):
                    stop()
                    digest.update(block)
                    size += len(block)
        except OSError as error:
            raise DataError(f"cannot read the file: {error.strerror}", where=file.path) from None
        found.append(FilePrint(role, file.name, size, digest.hexdigest()))
    return found


def describe_difference(old: Fingerprint, new: Fingerprint) -> str:
    """Say what differs between two fingerprints, naming what was and what is; empty where nothing does.

    Example:
        >>> old = Fingerprint((FilePrint("source", "a.txt", 3, "00" * 32),), {"seed": 0})
        >>> new = Fingerprint((FilePrint("source", "a.txt", 4, "11" * 32),), {"seed": 1})
        >>> print(describe_difference(old, new))
        a.txt (source) changed: was 3 bytes, sha256 000000000000; is 4 bytes, sha256 111111111111
        data.seed: was 0; is 1
    """
    lines = []
    before = {(f.role, f.name): f for f in old.files}
    after = {(f.role, f.name): f for f in new.files}
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if was != now:
            state = "added" if was is None else "removed" if now is None else "changed"
            lines.append(f"{key[1]} ({key[0]}) {state}: was {_told(was)}; is {_told(now)}")
    if not lines and old.files != new.files:
        lines.append(
            f"the order of files: was {[f.name for f in old.files]}; is {[f.name for f in new.files]}"
        )
    was_set, now_set = _flat(old.settings, "data"), _flat(new.settings, "data")
    for name in sorted(was_set.keys() | now_set.keys()):
        if was_set.get(name, "absent") != now_set.get(name, "absent"):
            lines.append(f"{name}: was {was_set.get(name, 'absent')}; is {now_set.get(name, 'absent')}")
    if old.steps != new.steps:
        lines.append(f"the version of the steps: was {old.steps}; is {new.steps}")
    return "\n".join(lines)


def _told(file: FilePrint | None) -> str:
    return "absent" if file is None else f"{file.bytes:,} bytes, sha256 {file.sha256[:12]}"


def _flat(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}").items()}
    return {name: json.dumps(value, ensure_ascii=False)}
