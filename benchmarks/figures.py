"""The arithmetic of the comparisons with other tools: rates, spreads, operations, tables. No torch."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, and the least and the most.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.0, high=3.0)
    """

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return median, least and most of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def step_rate(ends: Sequence[float], warmup: int, tokens: int) -> float:
    """Return tokens/s at the median step after the warm-up: one that a neighbour held up changes nothing.

    Arguments:
        ends: when each step ended, in seconds; the first `warmup` steps only say when the timed ones begin.
        warmup: at least 1, for the first step has no beginning.
        tokens: in a step.

    Example:
        >>> step_rate([0.0, 50.0, 51.0, 52.0, 53.0, 60.0], warmup=2, tokens=100)
        100.0
    """
    if warmup < 1 or len(ends) <= warmup:
        raise ValueError(f"{len(ends)} steps, of which {warmup} warm up, leave nothing to time")
    return tokens / statistics.median(b - a for a, b in itertools.pairwise(ends[warmup - 1 :]))


def token_flops(layers: int, width: int, vocab_size: int, length: int) -> int:
    """Return floating-point operations of training on one token, the same for every candidate: 6 N and attention.

    N are the weights of matrix products: 12 width² in a layer (GPT-2's MLP, or a gated one of as many weights), and the
    head. Attention counts every pair of tokens, seen or masked; norms, rotations and the optimizer count nothing,
    nor does what is computed twice to save memory. As `luban.models.flops` and PaLM (Chowdhery et al. 2022,
    appendix B) have it.

    Example:
        >>> token_flops(layers=1, width=2, vocab_size=3, length=5) == 6 * (12 * 4 + 6) + 12 * 5 * 2
        True
    """
    return 6 * (12 * layers * width * width + vocab_size * width) + 12 * layers * length * width


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and all others are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def put_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` of a page.

    Raises:
        ValueError: when the page has no such section.
    """
    page = path.read_text("utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} has no section {name}")
    path.write_text(f"{before}{begin}{text}\n{end}{after}", "utf-8")
