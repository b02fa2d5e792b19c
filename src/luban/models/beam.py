"""Writing a sequence for each source: greedily, or by a search that keeps the best few beginnings.

The search, as Sutskever et al. (https://arxiv.org/abs/1409.3215) and Bahdanau et al. had it: each source has `beam`
places. At each step the likeliest continuations of its open beginnings fill them; one that ends keeps its place, and
so the open ones become fewer. With one place this is the greedy search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from luban.errors import InputError

S = TypeVar("S")


class Writer(Protocol[S]):
    """What can be searched. A state is used once: a call may change the state that it is given."""

    def start(self, source_ids: Tensor, source_mask: Tensor) -> S:
        """Read the sources, each (batch, source), one row per source."""

    def step(self, state: S, last_ids: Tensor) -> tuple[Tensor, S]:
        """Return log-probabilities of the next token, (rows, vocab_size), after `last_ids`, (rows,)."""

    def reorder(self, state: S, rows: Tensor) -> S:
        """Continue with these rows, (rows,) int64, in this order; one may come twice."""


@dataclass(frozen=True)
class Written:
    """One answer.

    Attributes:
        ids: the tokens, without start and end.
        log_prob: natural logarithm of its probability, the end's included.
        score: `log_prob` divided by the length penalty; the higher the better.
        ended: whether the end token was chosen; otherwise the text was cut at `max_length`.
    """

    ids: list[int]
    log_prob: float
    score: float
    ended: bool


def length_penalty(length: int, alpha: float) -> float:
    """Return what a log-probability of `length` tokens, the end included, is divided by: ((5 + length) / 6)^alpha.

    Wu et al., "Google's Neural Machine Translation System", https://arxiv.org/abs/1609.08144

    Example:
        >>> length_penalty(1, 0.6), length_penalty(7, 1.0)
        (1.0, 2.0)
    """
    return float(((5 + length) / 6) ** alpha)


@torch.no_grad()
def greedy_search(
    writer: Writer[Any],
    source_ids: Tensor,
    source_mask: Tensor,
    *,
    start_id: int,
    end_id: int,
    max_length: int | Sequence[int],
    alpha: float = 0.0,
    stop: Callable[[], None] = lambda: None,
) -> list[Written]:
    """Write for each source the likeliest token, one after the other.

    Arguments:
        writer: a network with dropout off.
        source_ids, source_mask: (batch, source).
        start_id, end_id: the tokens before a text and behind it.
        max_length: tokens of a text at most, the end included; of each source, or one number for all.
        alpha: of the length penalty, which changes the score alone.
        stop: called before each step; what it raises ends the search.

    Raises:
        InputError: for a `max_length` below 1 or a negative `alpha`.
    """
    limits = _limits(max_length, len(source_ids))
    _check(1, 1, limits, alpha)
    most = torch.tensor(limits, device=source_ids.device)
    rows = torch.arange(source_ids.shape[0], device=source_ids.device)  # (open,), each open text's source
    ids = torch.full((len(rows), max(limits, default=0)), end_id, device=source_ids.device)
    totals = torch.zeros(len(rows), dtype=torch.float64, device=source_ids.device)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=source_ids.device)
    state, last = writer.start(source_ids, source_mask), torch.full_like(rows, start_id)
    for place in range(ids.shape[1]):
        if not len(rows):
            break
        stop()
        log_probs, state = writer.step(state, last)
        best, last = log_probs.max(-1)  # (open,)
        totals[rows] += best.double()
        ids[rows, place] = last
        ended[rows] = last == end_id
        done = (last == end_id) | (most[rows] == place + 1)
        if bool(done.any()):
            going = done.logical_not().nonzero().squeeze(1)
            state, rows, last = writer.reorder(state, going), rows[going], last[going]
    answers = zip(ids.tolist(), limits, totals.tolist(), ended.tolist(), strict=True)
    return [
        _written(text[: text.index(end_id)] if whole else text[:limit], total, whole, alpha)
        for text, limit, total, whole in answers
    ]


@torch.no_grad()
def beam_search(
    writer: Writer[Any],
    source_ids: Tensor,
    source_mask: Tensor,
    *,
    start_id: int,
    end_id: int,
    max_length: int | Sequence[int],
    beam: int = 4,
    alpha: float = 0.6,
    keep: int = 1,
    stop: Callable[[], None] = lambda: None,
) -> list[list[Written]]:
    """Return for each source the best texts of a beam search, best first: `keep` of them, or all there are.

    A source is done when no open beginning can still become one of the `keep` best: its log-probability only falls,
    and no penalty is larger than that of `max_length`.

    Arguments:
        writer: a network with dropout off.
        source_ids, source_mask: (batch, source).
        start_id, end_id: the tokens before a text and behind it.
        max_length: tokens of a text at most, the end included; of each source, or one number for all. What is open
            then is cut there, and competes.
        beam: places of each source.
        alpha: of the length penalty; 0 compares plain log-probabilities, which favours short texts.
        stop: called before each step; what it raises ends the search.

    Raises:
        InputError: for sizes below 1, more texts to keep than places, or a negative `alpha`.
    """
    limits = _limits(max_length, len(source_ids))
    _check(beam, keep, limits, alpha)
    search = _Search(limits, beam, keep, alpha, source_ids.device)
    state = writer.start(source_ids, source_mask)
    state = writer.reorder(
        state, torch.arange(source_ids.shape[0], device=source_ids.device).repeat_interleave(beam)
    )
    last = torch.full((source_ids.shape[0] * beam,), start_id, device=source_ids.device)
    for _ in range(max(limits, default=0)):
        stop()
        log_probs, state = writer.step(state, last)
        rows = search.advance(log_probs, end_id)
        if not len(rows):
            break
        state, last = writer.reorder(state, rows), search.ids[:, :, -1].flatten()
    return search.best()


class _Search:
    """The places of all sources that are not done: open beginnings, and what has ended.

    Shapes:
        ids: (open sources, beam, tokens so far). log_probs: (open sources, beam); -inf where a place is not open.
    """

    def __init__(
        self, limits: Sequence[int], beam: int, keep: int, alpha: float, device: torch.device
    ) -> None:
        self.limits, self.beam, self.keep, self.alpha = limits, beam, keep, alpha
        sources = len(limits)
        self.sources = list(range(sources))  # which source each row of places is of
        self.ended: list[list[Written]] = [[] for _ in range(sources)]
        self.ids = torch.empty(sources, beam, 0, dtype=torch.int64, device=device)
        # All rows of a source are still the same: only the first counts.
        self.log_probs = torch.full((sources, beam), -torch.inf, dtype=torch.float64, device=device)
        self.log_probs[:, 0] = 0.0

    def advance(self, log_probs: Tensor, end_id: int) -> Tensor:
        """Take the step that these log-probabilities, (open sources * beam, vocab_size), suggest.

        Returns:
            which rows to go on with, `beam` for each source that is still open.
        """
        vocab_size = log_probs.shape[-1]
        totals = self.log_probs[:, :, None] + log_probs.double().view(
            len(self.sources), self.beam, vocab_size
        )
        best, which = totals.flatten(1).topk(self.beam, dim=1)  # (open sources, beam), best first
        places = torch.tensor(
            [self.beam - len(self.ended[source]) for source in self.sources], device=best.device
        )
        best = best.masked_fill(torch.arange(self.beam, device=best.device) >= places[:, None], -torch.inf)
        parents, tokens = which // vocab_size, which % vocab_size
        before = self.ids.gather(1, parents[:, :, None].expand(-1, -1, self.ids.shape[2]))
        self.ids = torch.cat((before, tokens[:, :, None]), dim=2)
        ends = (tokens == end_id) & best.isfinite()
        for row, place in ends.nonzero().tolist():
            self._end(row, self.ids[row, place, :-1].tolist(), float(best[row, place]), ended=True)
        self.log_probs = best.masked_fill(ends, -torch.inf)
        self._cut()
        going = self._going()
        first = torch.tensor(going, dtype=torch.int64, device=best.device)
        self.sources = [self.sources[row] for row in going]
        self.ids, self.log_probs = self.ids[first], self.log_probs[first]
        return (first[:, None] * self.beam + parents[first]).flatten()

    def _end(self, row: int, ids: list[int], log_prob: float, *, ended: bool) -> None:
        self.ended[self.sources[row]].append(_written(ids, log_prob, ended, self.alpha))

    def _cut(self) -> None:
        """End the open beginnings of sources that may write no more."""
        length = self.ids.shape[2]
        full = [row for row, source in enumerate(self.sources) if self.limits[source] == length]
        for row in full:
            for place in self.log_probs[row].isfinite().nonzero().flatten().tolist():
                self._end(row, self.ids[row, place].tolist(), float(self.log_probs[row, place]), ended=False)
        self.log_probs[full] = -torch.inf

    def _going(self) -> list[int]:
        """Return the rows of sources whose open beginnings can still win."""
        highest = self.log_probs.amax(1).tolist()
        going = []
        for row, (source, log_prob) in enumerate(zip(self.sources, highest, strict=True)):
            reachable = log_prob / length_penalty(self.limits[source], self.alpha)
            scores = sorted((text.score for text in self.ended[source]), reverse=True)
            beaten = len(scores) >= self.keep and scores[self.keep - 1] >= reachable
            if math.isfinite(log_prob) and not beaten:
                going.append(row)
        return going

    def best(self) -> list[list[Written]]:
        """Return the best texts of each source."""
        return [sorted(texts, key=lambda text: text.score, reverse=True)[: self.keep] for texts in self.ended]


def _written(ids: list[int], log_prob: float, ended: bool, alpha: float) -> Written:
    return Written(ids, log_prob, log_prob / length_penalty(len(ids) + ended, alpha), ended)


def _limits(max_length: int | Sequence[int], sources: int) -> list[int]:
    return [max_length] * sources if isinstance(max_length, int) else list(max_length)


def _check(beam: int, keep: int, limits: Sequence[int], alpha: float) -> None:
    for name, value in (("beam", beam), ("keep", keep), ("max_length", min(limits, default=1))):
        if value < 1:
            raise InputError(f"{name} must be at least 1", received=value)
    if keep > beam:
        raise InputError(f"a beam of {beam} has no more texts than places", received=keep, fix="raise beam")
    if alpha < 0.0:
        raise InputError("alpha must be at least 0", received=alpha)
