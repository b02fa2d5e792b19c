"""Decodes pictures in several processes; they come in order and do not depend on how many processes there are.

The processes are started as those of `luban.data.workers` are: fresh Pythons that end when their input closes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from luban.data.pictures import MAX_PIXELS, PictureError, Pixels, decode
from luban.data.workers import _receive, _search_path, _send
from luban.errors import LubanError, MissingExtra
from luban.signals import blocked

Picture = bytes | NDArray[Any]

MESSAGE_PICTURES = 64
MESSAGE_BYTES = 4_000_000
"""A message holds so many pictures, or fewer once they come to so many bytes: what a worker has in hand."""


def decode_many(
    pictures: Iterable[Picture],
    *,
    size: tuple[int, int] | None,
    channels: int,
    workers: int,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Pixels | PictureError]:
    """Decode pictures; yield for each, in order, its pixels or what is wrong with it.

    At most one message a worker is under way, and of its answers one at a time is in memory.

    Arguments:
        pictures: files' bytes, or pixels. workers: processes; 1 does the work in this one.
        size, channels, max_pixels: as of `luban.data.pictures.decode`.

    Raises:
        MissingExtra: Pillow is needed and not installed.
        LubanError: a worker ended before its work.

    Example:
        >>> good, bad = decode_many([np.zeros((2, 2), np.uint8), b""], size=None, channels=1, workers=1)
        >>> good.shape, bad.kind
        ((2, 2, 1), 'empty')
    """
    settings = {"size": size, "channels": channels, "max_pixels": max_pixels}
    if workers <= 1:
        for picture in pictures:
            yield _decoded(picture, settings)
        return
    with contextlib.ExitStack() as stack:
        pool: list[subprocess.Popen[bytes]] = []
        waiting: deque[tuple[subprocess.Popen[bytes], int]] = deque()
        for number, message in enumerate(_messages(pictures)):
            if len(pool) < workers:
                pool.append(stack.enter_context(_worker(settings)))
            # Messages go round in turn, so the worker whose turn it is holds the oldest answers.
            elif len(waiting) == workers:
                yield from _answers(*waiting.popleft())
            process = pool[number % workers]
            _send(process.stdin, {"forms": [_form(picture) for picture in message]}, _joined(message))
            waiting.append((process, len(message)))
        while waiting:
            yield from _answers(*waiting.popleft())


def _decoded(picture: Picture, settings: dict[str, Any]) -> Pixels | PictureError:
    try:
        return decode(picture, **settings)
    except PictureError as error:
        return error


def _messages(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    message: list[Picture] = []
    held = 0
    for picture in pictures:
        message.append(picture)
        held += len(picture) if isinstance(picture, bytes) else picture.nbytes
        if len(message) == MESSAGE_PICTURES or held >= MESSAGE_BYTES:
            yield message
            message, held = [], 0
    if message:
        yield message


@contextlib.contextmanager
def _worker(settings: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with blocked():
        process = subprocess.Popen(
            [sys.executable, "-m", "luban.data.picture_workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, "PYTHONPATH": _search_path()},
        )
    try:
        _send(process.stdin, settings, b"")
        yield process
    finally:
        process.kill()
        process.communicate()


def _answers(process: subprocess.Popen[bytes], count: int) -> Iterator[Pixels | PictureError]:
    for _ in range(count):
        received = _receive(process.stdout)
        if received is None:
            raise LubanError(
                "a process that decodes pictures ended before its work",
                received=process.wait(),
                fix="look for its message above; with too little memory, set data.workers=1",
            )
        head, content = received
        if "missing" in head:
            raise MissingExtra("pillow", extra="images", purpose="read pictures")
        if "kind" in head:
            yield PictureError(head["kind"], head["detail"])
        else:
            yield np.frombuffer(bytearray(content), np.uint8).reshape(head["shape"])


def _form(picture: Picture) -> dict[str, Any]:
    if isinstance(picture, bytes):
        return {"bytes": len(picture)}
    return {"bytes": picture.nbytes, "shape": picture.shape, "dtype": picture.dtype.str}


def _joined(pictures: list[Picture]) -> bytes:
    return b"".join(picture if isinstance(picture, bytes) else picture.tobytes() for picture in pictures)


def _parted(head: dict[str, Any], content: bytes) -> Iterator[Picture]:
    """Yield the pictures of a message."""
    at = 0
    for form in head["forms"]:
        part = content[at : at + form["bytes"]]
        at += form["bytes"]
        if "dtype" in form:
            yield np.frombuffer(part, np.dtype(form["dtype"])).reshape(form["shape"])
        else:
            yield part


def _work(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer pictures one by one until the input ends; the first message is the settings."""
    first = _receive(requests)
    if first is None:
        return
    settings = first[0] | {"size": first[0]["size"] and tuple(first[0]["size"])}
    while (received := _receive(requests)) is not None:
        for picture in _parted(*received):
            try:
                pixels = decode(picture, **settings)
            except PictureError as error:
                _send(answers, {"kind": error.kind, "detail": error.detail}, b"")
            except MissingExtra:
                _send(answers, {"missing": "pillow"}, b"")
                return
            else:
                _send(answers, {"shape": pixels.shape}, pixels.tobytes())


if __name__ == "__main__":
    _work(sys.stdin.buffer, sys.stdout.buffer)
