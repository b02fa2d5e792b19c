"""What every candidate of speed.py has in common: sizes, data, command line, and the result it writes.

A candidate is a script of this folder. It trains for `warmup + steps` optimizer steps in its own loop and
writes the moment at which each step ended; speed.py takes everything else from those moments. Nothing here
imports torch, so that each candidate pays for its own imports only.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LENGTH, BATCH = 256, 16
TOKENS = LENGTH * BATCH


@dataclass(frozen=True)
class Shape:
    """A decoder's shape. `mlp_width` is that of a gated MLP of as many weights as GPT-2's of four times the width."""

    layers: int
    width: int
    heads: int
    mlp_width: int


SIZES = {"10.7M": Shape(6, 384, 6, 1024), "0.8M": Shape(4, 128, 4, 344)}


@dataclass
class Measured:
    """Collects the ends of steps and writes them where speed.py reads them."""

    out: Path
    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step_ended(self, loss: float | None = None) -> None:
        self.ends.append(time.monotonic())
        if loss is not None:
            self.losses.append(loss)

    def write(self, *, dtype: str, parameters: int, settings: dict[str, Any]) -> None:
        """Write the result.

        Arguments:
            dtype: of the matrix products. parameters: learned numbers, tied ones once.
            settings: what was set beside data and shape, in the candidate's own words.
        """
        losses = [self.losses[0], self.losses[-1]] if self.losses else None
        result = {
            "ends": self.ends, "dtype": dtype, "parameters": parameters, "settings": settings, "losses": losses,
        }  # fmt: skip
        self.out.write_text(json.dumps(result))


def asked() -> argparse.Namespace:
    """Return the command line of a candidate: text, shape, setting, warmup, steps, scratch, clone, measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--setting", required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--clone", type=Path)
    options = parser.parse_args()
    options.shape = SIZES[options.size]
    options.total = options.warmup + options.steps
    options.measured = Measured(options.out)
    return options


def characters(path: Path) -> tuple[list[int], int]:
    """Return the text as the numbers of its characters, in the order of the alphabet, and how many kinds there are."""
    text = path.read_text("utf-8")
    table = {character: number for number, character in enumerate(sorted(set(text)))}
    return [table[character] for character in text], len(table)


def windows(path: Path, more: int = 0) -> tuple[list[list[int]], int]:
    """Return the text cut into windows of LENGTH + more characters, one after another, and the size of the alphabet."""
    numbers, kinds = characters(path)
    size = LENGTH + more
    return [numbers[at : at + size] for at in range(0, len(numbers) - size, LENGTH)], kinds
