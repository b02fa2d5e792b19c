"""What a power cut leaves: a model of a disk that keeps only what was fsynced, and of the rest what it likes.

A file's bytes are safe once the file was fsynced; a name (a new file or folder, a rename, a removal) once its folder
was. Of what is not safe each piece may survive or not, whatever came first, and unsafe bytes may be cut or be zeros.
That is less than any journaling file system promises, so what holds here holds there.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Image = dict[str, bytes | None]
"""Paths below the root: a file's bytes, or None for a folder."""


@dataclass
class File:
    """Bytes that are safe, and bytes as programs see them."""

    safe: bytes = b""
    seen: bytes = b""

    def after_a_cut(self, draw: random.Random | None) -> bytes:
        """What is left; without `draw` no more than is safe."""
        if draw is None or self.safe == self.seen:
            return self.safe
        unsafe = self.seen[len(self.safe) :] if self.seen.startswith(self.safe) else b""
        cut = draw.randint(0, len(unsafe))
        return self.safe + draw.choice(
            (b"", unsafe, unsafe[:cut], bytes(len(unsafe)), unsafe[:cut] + bytes(9))
        )


@dataclass
class Folder:
    """Names that are safe, names as programs see them, and the changes between."""

    safe: dict[str, File | Folder] = field(default_factory=dict)
    seen: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[tuple[str | None, str | None, File | Folder]] = field(default_factory=list)

    def change(self, old: str | None, new: str | None, node: File | Folder) -> None:
        """Take the name `old` away and give the name `new`; None for neither."""
        if old is not None:
            self.seen.pop(old, None)
        if new is not None:
            self.seen[new] = node
        self.changes.append((old, new, node))

    def sync(self) -> None:
        self.safe, self.changes = dict(self.seen), []

    def after_a_cut(self, draw: random.Random | None, at: str, image: Image) -> None:
        names = dict(self.safe)
        for old, new, node in self.changes if draw else []:
            assert draw is not None
            if draw.random() < 0.5:
                continue
            if new is None and isinstance(node, Folder) and draw.random() < 0.5:
                for name in [name for name in node.safe if draw.random() < 0.5]:
                    node = Folder(dict(node.safe), dict(node.seen))
                    del node.safe[name]
                names[str(old)] = node
                continue
            names = {name: other for name, other in names.items() if name not in (old, new)}
            if new is not None:
                names[new] = node
        for name, node in names.items():
            if isinstance(node, File):
                image[f"{at}{name}"] = node.after_a_cut(draw)
            else:
                image[f"{at}{name}"] = None
                node.after_a_cut(draw, f"{at}{name}/", image)


class Device:
    """Watches every durable operation below a folder (as `faulty_disk.watching` calls it) and can lose its power.

    Arguments:
        root: a folder that is there, and safe.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Folder()
        self.operations = 0

    def __call__(self, when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when == "after":
            self.operations += 1
            getattr(self, f"_{operation}")(*arguments)

    def cut(self, draw: random.Random | None) -> Image:
        """What is left when the power goes now; without `draw` nothing but what is safe."""
        image: Image = {}
        self.top.after_a_cut(draw, "", image)
        return image

    def _folder(self, path: Path) -> Folder:
        node: File | Folder = self.top
        for name in path.relative_to(self.root).parts:
            assert isinstance(node, Folder)
            if name not in node.seen:
                # A program may make a folder without this disk; its name is as unsafe as any.
                node.change(None, name, Folder())
            node = node.seen[name]
        assert isinstance(node, Folder)
        return node

    def _file(self, path: Path) -> File:
        folder = self._folder(path.parent)
        if path.name not in folder.seen:
            folder.change(None, path.name, File())
        node = folder.seen[path.name]
        assert isinstance(node, File)
        return node

    def _open_write(self, path: Path, file: object) -> None:
        self._file(path)

    def _open_append(self, path: Path, file: object) -> None:
        self._file(path)

    def _write(self, file: Any, data: Any) -> None:
        self._file(Path(file.name)).seen += bytes(memoryview(data).cast("B"))

    def _sync(self, file: Any) -> None:
        path = Path(file.name)
        node = self._file(path)
        node.safe = node.seen = path.read_bytes()

    def _truncate(self, path: Path, size: int) -> None:
        node = self._file(path)
        assert node.safe == path.read_bytes()

    def _replace(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent, "a rename between folders is not modelled"
        folder = self._folder(source.parent)
        folder.change(source.name, target.name, folder.seen[source.name])

    def _sync_folder(self, path: Path) -> None:
        if path.is_relative_to(self.root):
            self._folder(path).sync()

    def _make_folder(self, path: Path) -> None:
        self._folder(path.parent).change(None, path.name, Folder())

    def _remove(self, path: Path) -> None:
        folder = self._folder(path.parent)
        if path.name in folder.seen:
            folder.change(path.name, None, folder.seen[path.name])


def restore(image: Image, root: Path) -> None:
    """Write what a cut left into a new folder."""
    root.mkdir(parents=True)
    for name, content in image.items():
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
