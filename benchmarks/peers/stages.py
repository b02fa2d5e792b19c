"""What every candidate of data_speed.py has in common: how it is called, and how it times its stages."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VOCABULARY, LENGTH, BATCH, SIMILAR = 4096, 256, 16, 0.85


class Stages:
    """Times named stages and writes them, with what was found, where data_speed.py reads them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}
        self.found: dict[str, Any] = {}

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def write(self) -> None:
        self.out.write_text(json.dumps({"seconds": self.seconds, "found": self.found}))


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--setting", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.stages = Stages(options.out)
    return options


def read_texts(corpus: Path) -> list[str]:
    """Return the texts of a corpus of JSON lines, in memory."""
    with corpus.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]
