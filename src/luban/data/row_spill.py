"""Rows between the passes of their preparation, on the disk: in once, out in order as often as needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from luban.data.bad_rows import Place
from luban.data.json_text import to_json
from luban.data.row_sets import Row, blob_of, content_digest, is_blob
from luban.durable import FileSystem, storage_errors

_LINES, _BLOBS = "rows.spill", "blobs.spill"


class RowSpill:
    """A line of JSON for each row, bytes and pictures in a file beside; both are removed before the folder is sealed.

    Arguments:
        folder: where the two files come to lie; they must not exist yet.
        fs: the file operations.
    """

    def __init__(self, folder: Path, fs: FileSystem) -> None:
        self._paths = (folder / _LINES, folder / _BLOBS)
        self._fs = fs
        with storage_errors(folder):
            self._lines, self._blobs = (fs.open_write(path) for path in self._paths)
        self._blob_bytes = 0

    def add(self, row: Row, place: Place) -> bytes:
        """Append a row; return a digest of its bytes and pictures."""
        kept: dict[str, Any] = {}
        places: dict[str, Any] = {}
        for name, value in row.items():
            if is_blob(value):
                blob = blob_of(value)
                shape = None if isinstance(value, bytes) else list(value.shape)
                kept[name] = None
                places[name] = {"at": self._blob_bytes, "size": len(blob), "shape": shape}
                with storage_errors(self._paths[1], needed=len(blob)):
                    self._fs.write(self._blobs, blob)
                self._blob_bytes += len(blob)
            else:
                kept[name] = value
        line = f"{to_json({'row': kept, 'blobs': places, 'place': place})}\n".encode()
        with storage_errors(self._paths[0], needed=len(line)):
            self._fs.write(self._lines, line)
        return content_digest(row)

    def close(self) -> None:
        """End writing."""
        with storage_errors(self._paths[0]):
            self._lines.close()
            self._blobs.close()

    def rows(self) -> Iterator[tuple[Row, Place]]:
        """Yield each row with its place, anew at each call."""
        with self._paths[0].open(encoding="utf-8", newline="\n") as lines, self._paths[1].open("rb") as blobs:
            for line in lines:
                written = json.loads(line)
                blobs_of = {name: self._blob(where, blobs) for name, where in written["blobs"].items()}
                yield {**written["row"], **blobs_of}, Place(*written["place"])

    @staticmethod
    def _blob(where: dict[str, Any], blobs: BinaryIO) -> Any:
        blobs.seek(where["at"])
        blob = blobs.read(where["size"])
        return blob if where["shape"] is None else np.frombuffer(blob, np.uint8).reshape(where["shape"])

    def remove(self) -> None:
        """Delete the files."""
        with storage_errors(self._paths[0]):
            for path in self._paths:
                self._fs.remove(path)
