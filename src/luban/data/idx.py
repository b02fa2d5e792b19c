"""The idx files of MNIST and its kin: a header of sizes, then bytes (http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from luban.data.rows import FileRows
from luban.data.sources import CorruptStream, SourceFile

_IMAGES, _LABELS = 0x0803, 0x0801
"""Two zero bytes, 8 for unsigned bytes, and the number of dimensions."""


def idx_rows(reader: FileRows, labels: SourceFile | None) -> Iterator[dict[str, Any]]:
    """Yield pictures (height, width) as uint8 arrays with their labels, one in memory at a time.

    What a header claims is believed only as far as bytes follow.

    Raises:
        CorruptStream: a header is none, the two do not agree, or there are not as many bytes as they say.
    """
    with reader.open() as pictures:
        count, height, width = _sizes(pictures, _IMAGES, 3, reader.file)
        size = height * width
        if size == 0:
            raise CorruptStream(f"the header says pictures of {height} x {width}")
        if size > reader.limit:
            reader.bad(
                "too_long", f"pictures of {height} x {width} are longer than {reader.limit:,} bytes", line=1
            )
            return
        if labels is None:
            for number in range(count):
                yield _row(reader, pictures, number, (height, width))
        else:
            with reader.beside(labels).open() as answers:
                (labelled,) = _sizes(answers, _LABELS, 1, labels)
                if labelled != count:
                    raise CorruptStream(f"{count:,} pictures, but {labelled:,} labels in {labels.name}")
                for number in range(count):
                    row = _row(reader, pictures, number, (height, width))
                    label = answers.read(1)
                    if not label:
                        raise CorruptStream(f"{labels.name} ends after {number:,} of {count:,} labels")
                    yield {**row, "label": label[0]}
                if answers.read(1):
                    raise CorruptStream(f"{labels.name} holds more than the {count:,} labels of its header")
        if pictures.read(1):
            raise CorruptStream(f"the file holds more than the {count:,} pictures of its header")


def _row(reader: FileRows, stream: io.BufferedReader, number: int, shape: tuple[int, int]) -> dict[str, Any]:
    raw = stream.read(shape[0] * shape[1])
    if len(raw) < shape[0] * shape[1]:
        raise CorruptStream(f"the file ends within picture {number + 1:,}")
    reader.line = number + 1
    return {"image": np.frombuffer(raw, np.uint8).reshape(shape)}  # (height, width)


def _sizes(stream: io.BufferedReader, magic: int, dimensions: int, file: SourceFile) -> tuple[int, ...]:
    raw = stream.read(4 + 4 * dimensions)
    if len(raw) < 4 + 4 * dimensions:
        raise CorruptStream(f"{file.name} ends within its header")
    found, *sizes = struct.unpack(f">{1 + dimensions}I", raw)
    if found != magic:
        raise CorruptStream(
            f"{file.name} starts with 0x{found:08x}; an idx file of this kind with 0x{magic:08x}"
        )
    return tuple(sizes)
