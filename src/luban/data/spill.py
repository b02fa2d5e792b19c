"""Documents between the two passes, on the disk: in once, out in order as often as needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from luban.durable import FileSystem, storage_errors

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 2048


class Spill:
    """A file of texts, one JSON string per line; it is deleted before the folder around it is sealed.

    Arguments:
        path: the file; it must not exist yet.
        fs: the file operations.
    """

    def __init__(self, path: Path, fs: FileSystem) -> None:
        self._path, self._fs = path, fs
        with storage_errors(path):
            self._file = fs.open_write(path)
        self._lines: list[str] = []
        self._pending = 0
        self.bytes = 0
        self.characters = 0

    def add(self, text: str) -> None:
        """Append a text."""
        self._lines.append(json.dumps(text, ensure_ascii=False) + "\n")
        self.characters += len(text)
        self._pending += len(text)
        if self._pending >= BATCH_CHARACTERS or len(self._lines) >= BATCH_DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        lines = "".join(self._lines).encode("utf-8")
        with storage_errors(self._path, needed=len(lines)):
            self._fs.write(self._file, lines)
        self.bytes += len(lines)
        self._lines, self._pending = [], 0

    def close(self) -> None:
        """End writing."""
        self._flush()
        with storage_errors(self._path):
            self._file.close()

    def batches(
        self, stop: Callable[[], None], progress: Callable[[float], None]
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield batches of about a million characters: the number of the first document, and the texts."""
        number, size, read = 0, 0, 0
        batch: list[str] = []
        with self._path.open("rb") as file:
            for line in file:
                batch.append(json.loads(line))
                size += len(batch[-1])
                read += len(line)
                if size >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
                    stop()
                    yield number, batch
                    progress(read / self.bytes)
                    number, size, batch = number + len(batch), 0, []
        if batch:
            stop()
            yield number, batch
        progress(1.0)

    def remove(self) -> None:
        """Delete the file."""
        with storage_errors(self._path):
            self._file.close()
            self._fs.remove(self._path)
