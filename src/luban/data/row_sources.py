"""What a source of rows names: files outright, or the files of a folder, from which nothing leads out."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from luban.data.bad_rows import BadKind
from luban.data.sources import SourceFile, find_files
from luban.errors import InputError

Kind = Literal[
    "table",
    "text",
    "labelled lines",
    "picture",
    "picture table",
    "idx",
    "tagged lines",
    "tagged table",
    "pair of texts",
    "left out",
    "passed over",
]

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow")
_COMPRESSED = (".gz", ".zst")
_PROBLEMS: dict[Literal["outside", "no_file"], str] = {
    "outside": "the link leads out of the folder, or to a folder",
    "no_file": "there is no file, or none of bytes",
}
_SAVED = ("dataset_dict.json", "state.json")


@dataclass(frozen=True, slots=True)
class Part:
    """Files that are read together, and as what.

    Attributes:
        files: the first one names the rows.
        label: the class that a file stands for, where its folder says it.
        problem: what is wrong with what is left out.
        detail: why it is left out or passed over.
    """

    kind: Kind
    files: tuple[SourceFile, ...]
    label: str | None = None
    problem: BadKind | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a source.

    Attributes:
        name: how reports call it.
        within: its path in the folder that was named.
        problem: why it cannot be read.
    """

    path: Path
    name: str
    within: PurePosixPath
    problem: Literal["outside", "no_file"] | None = None

    @property
    def suffix(self) -> str:
        """The suffix before that of a compression, in small letters."""
        return suffix_of(self.path)

    @property
    def label(self) -> str | None:
        """The folder that the file lies in, below the one that was named."""
        return self.within.parts[0] if len(self.within.parts) > 1 else None

    def source_file(self) -> SourceFile:
        """Return the file with its format, which its suffix or its first bytes tell.

        Raises:
            InputError: it is of no known format.
        """
        if self.suffix == ".arrow" and self.path.suffix in _COMPRESSED:
            return SourceFile(self.path, self.name, "arrow", "gz" if self.path.suffix == ".gz" else "zst")
        return replace(find_files(str(self.path))[0], name=self.name)

    def opaque(self) -> SourceFile:
        """Return the file as one whose bytes have a meaning of their own."""
        compression: Literal["gz"] | None = "gz" if self.path.suffix == ".gz" else None
        return SourceFile(self.path, self.name, "text", compression)


@dataclass(frozen=True, slots=True)
class Named:
    """One thing that a source names.

    Attributes:
        given: as it was written.
        folder: whether it is a folder; its files are all that lie in it, in order.
        ready: files whose formats are known already: a text that comes with the package, a saved dataset.
    """

    given: str
    folder: bool
    found: tuple[Found, ...]
    ready: tuple[SourceFile, ...] = ()

    def files(self, suffixes: Collection[str] | None = None) -> list[Found]:
        """Return the files that can be read, of these suffixes or of any."""
        whole = [file for file in self.found if file.problem is None]
        return whole if suffixes is None else [file for file in whole if file.suffix in suffixes]

    def left_out(self) -> list[Part]:
        """Return what cannot be read: links that lead out of the folder or nowhere."""
        return [
            Part("left out", (file.opaque(),), problem=file.problem, detail=_PROBLEMS[file.problem])
            for file in self.found
            if file.problem is not None
        ]


def named(source: str | Sequence[str]) -> list[Named]:
    """Return what a source names, in its order, each file once; hidden files are passed over.

    Raises:
        InputError: something named is not there.
    """
    items = [source] if isinstance(source, str) else list(source)
    if not items:
        raise InputError("the source is empty", fix="name a file, a folder or a glob")
    paths = [_with_compression(Path(item).expanduser()) for item in items]
    names = _distinct([path.resolve() if path.is_dir() else path.absolute() for path in paths])
    alone = len(items) == 1
    every = [
        _named(item, path, name, alone=alone) for item, path, name in zip(items, paths, names, strict=True)
    ]
    if alone:
        return every
    seen: set[Path] = set()
    fresh = [replace(one, found=tuple(_new(one.found, seen))) for one in every]
    return [new for one, new in zip(every, fresh, strict=True) if new.found or not one.found]


def suffix_of(path: Path) -> str:
    """Return the suffix before that of a compression, in small letters.

    Example:
        >>> suffix_of(Path("a/rows.CSV.gz")), suffix_of(Path("train.de")), suffix_of(Path("rows"))
        ('.csv', '.de', '')
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_inside(home: Path, path: Path) -> bool:
    """Say whether a path, its links followed, stays in a folder, whose own path is resolved already."""
    try:
        return path.resolve().is_relative_to(home)
    except (OSError, ValueError, RuntimeError):
        return False


def _named(item: str, path: Path, name: str, *, alone: bool) -> Named:
    if path.is_dir() and not any((path / saved).is_file() for saved in _SAVED):
        prefix = "" if alone else f"{name}/"
        return Named(item, True, tuple(_in_folder(path, prefix)))
    if path.is_file():
        return Named(item, False, (Found(path, name, PurePosixPath(path.name)),))
    if not path.exists() and glob.has_magic(item):
        return Named(item, False, tuple(_matches(item, path)))
    ready = find_files(item)
    return Named(
        item, False, (), tuple(ready if alone else (replace(f, name=f"{name}/{f.name}") for f in ready))
    )


def _with_compression(path: Path) -> Path:
    """Return the path, or where it is none the one with .gz, if that is there."""
    packed = path.with_name(f"{path.name}.gz") if path.name else path
    try:
        return packed if not path.exists() and packed.is_file() else path
    except OSError as error:  # a name too long, a folder that may not be entered
        raise InputError(f"no such file or folder: {error.strerror}", received=str(path)) from None


def _in_folder(folder: Path, prefix: str) -> Iterator[Found]:
    home, waiting = folder.resolve(), [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as listing:
                entries = sorted(
                    (e for e in listing if not e.name.startswith(".")), key=lambda entry: entry.name
                )
        except OSError as error:
            raise InputError(f"the folder cannot be read: {error.strerror}", where=here) from None
        waiting += [Path(e.path) for e in reversed(entries) if e.is_dir(follow_symlinks=False)]
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                continue
            path = Path(entry.path)
            within = PurePosixPath(path.relative_to(folder).as_posix())
            problem: Literal["outside", "no_file"] | None = None
            # A link to a folder is not followed wherever it leads: it could lead around in a circle.
            if entry.is_symlink() and (entry.is_dir() or not is_inside(home, path)):
                problem = "outside"
            elif not entry.is_file():
                problem = "no_file"
            yield Found(path, f"{prefix}{within}", within, problem)


def _matches(item: str, pattern: Path) -> Iterator[Found]:
    parts = list(pattern.parts)
    root = Path(*parts[: next(number for number, part in enumerate(parts) if glob.has_magic(part))])
    paths = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    files = [path for path in paths if path.is_file()]
    if not files:
        raise InputError("no file matches the glob", received=item, fix=f"look at what is in {root}")
    home = root.resolve()
    for path in files:
        within = path.relative_to(root).as_posix()
        yield Found(path, within, PurePosixPath(path.name), None if is_inside(home, path) else "outside")


def _distinct(paths: Sequence[Path]) -> list[str]:
    """Return names that tell paths apart, as short as can be.

    Example:
        >>> _distinct([Path("/data/a/train.csv"), Path("/data/b/train.csv")])
        ['a/train.csv', 'b/train.csv']
    """
    names: list[str] = []
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _new(found: Sequence[Found], seen: set[Path]) -> Iterator[Found]:
    """Yield the files that were not named before."""
    for file in found:
        real = file.path.resolve()
        if real not in seen:
            seen.add(real)
            yield file
