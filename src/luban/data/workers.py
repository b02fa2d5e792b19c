"""Cleans batches in several processes; the results come in order and do not depend on how many there are.

Each worker is a fresh Python that reads batches from its standard input and ends when that closes, so none
outlives the process that started it, however that one ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any, TypeVar

import numpy as np

from luban.data.cleaning import CleanedBatch, StepCount, clean_batch
from luban.data.duplicates import PERMUTATIONS
from luban.errors import LubanError
from luban.signals import blocked
from luban.text_recipe import CleanRecipe

T = TypeVar("T")
_SIZES = struct.Struct("<QQ")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def clean_in_order(
    recipe: CleanRecipe | None, batches: Iterable[tuple[T, Sequence[str]]], workers: int
) -> Iterator[tuple[T, CleanedBatch]]:
    """Clean batches of texts, each with something of the caller's that goes along, and give them back in
    order.

    Arguments:
        recipe: the steps; None changes nothing and only measures.
        batches: pairs of anything and texts.
        workers: processes; 1 does the work in this one.

    Raises:
        LubanError: a worker ended before its work.
    """
    if workers <= 1:
        for tag, texts in batches:
            yield tag, clean_batch(recipe, texts)
        return
    with contextlib.ExitStack() as stack:
        pool = [stack.enter_context(_worker(recipe)) for _ in range(workers)]
        waiting: deque[tuple[T, subprocess.Popen[bytes]]] = deque()
        for number, (tag, texts) in enumerate(batches):
            process = pool[number % workers]
            # Batches go round in turn, so the worker whose turn it is holds the oldest answer.
            if len(waiting) == workers:
                yield _answer(waiting)
            _send(process.stdin, {"texts": texts}, b"")
            waiting.append((tag, process))
        while waiting:
            yield _answer(waiting)


@contextlib.contextmanager
def _worker(recipe: CleanRecipe | None) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": _search_path(),
    }
    with blocked():
        process = subprocess.Popen(
            [sys.executable, "-m", "luban.data.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
    try:
        _send(process.stdin, {"recipe": None if recipe is None else recipe.model_dump(mode="json")}, b"")
        yield process
    finally:
        process.kill()
        process.communicate()


def _search_path() -> str:
    """Where this process finds its modules, for the worker to find the same."""
    return os.pathsep.join(path for path in sys.path if path)


def _answer(waiting: deque[tuple[T, subprocess.Popen[bytes]]]) -> tuple[T, CleanedBatch]:
    tag, process = waiting.popleft()
    received = _receive(process.stdout)
    if received is None:
        raise LubanError(
            "a process that cleans data ended before its work",
            received=process.wait(),
            fix="look for its message above; with too little memory, set data.workers=1",
        )
    head, arrays = received
    texts, steps = head["texts"], head["steps"]
    kept = sum(text is not None for text in texts)
    letters, digests, signatures = np.split(np.frombuffer(arrays, np.uint8), [kept * 24, kept * 40])
    return tag, CleanedBatch(
        texts=texts,
        steps={
            name: StepCount(**{**step, "examples": [tuple(e) for e in step["examples"]]})
            for name, step in steps.items()
        },
        letters=letters.view(np.int64).reshape(kept, 3),
        digests=digests.view(np.uint64).reshape(kept, 2),
        signatures=signatures.view(np.uint16).reshape(kept, PERMUTATIONS),
    )


def _send(stream: IO[bytes] | None, head: dict[str, Any], arrays: bytes) -> None:
    assert stream is not None
    text = json.dumps(head, ensure_ascii=False).encode("utf-8")
    with contextlib.suppress(BrokenPipeError):  # a worker that ended is noticed where its answer is missing
        stream.write(_SIZES.pack(len(text), len(arrays)))
        stream.write(text)
        stream.write(arrays)
        stream.flush()


def _receive(stream: IO[bytes] | None) -> tuple[dict[str, Any], bytes] | None:
    assert stream is not None
    sizes = stream.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        return None
    text_bytes, array_bytes = _SIZES.unpack(sizes)
    text, arrays = stream.read(text_bytes), stream.read(array_bytes)
    if len(arrays) < array_bytes or len(text) < text_bytes:
        return None
    head: dict[str, Any] = json.loads(text)
    return head, arrays


def _work(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer batches until the input ends; the first message is the recipe."""
    first = _receive(requests)
    if first is None:
        return
    recipe = None if first[0]["recipe"] is None else CleanRecipe.model_validate(first[0]["recipe"])
    while (received := _receive(requests)) is not None:
        batch = clean_batch(recipe, received[0]["texts"])
        head = {"texts": batch.texts, "steps": {name: asdict(step) for name, step in batch.steps.items()}}
        arrays = (batch.letters.astype(np.int64), batch.digests, batch.signatures)
        _send(answers, head, b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))


if __name__ == "__main__":
    _work(sys.stdin.buffer, sys.stdout.buffer)
