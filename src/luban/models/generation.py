"""Writing on: tokens one after the other, for many prompts at once, with a cache of keys and values where there is one.

A row's tokens depend on its prompt, the seed and the row's number, not on what else is in the batch. When a
row's text exceeds the model's `max_length`, its oldest part is forgotten: the last max_length // 2 tokens are
read anew, and writing goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.errors import InputError
from luban.models.cache import Cache
from luban.models.decoder import Decoder
from luban.models.gpt2 import GPT2
from luban.models.sampling import Sampling, choose


@dataclass(frozen=True)
class Rereading:
    """A language model without a cache, such as an exported graph: each token reads all of the text before it again.

    Arguments:
        logits: (batch, length) int64 -> (batch, length, vocab_size); a token sees none behind it.
        vocab_size, max_length: as of the model that it came from.
        min_length: the shortest text it takes.
    """

    logits: Callable[[Tensor], Tensor]
    vocab_size: int
    max_length: int
    min_length: int = 1


LanguageModel = Decoder | GPT2 | Rereading


def generate(
    module: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_ids: Collection[int] = (),
    seed: int = 0,
    batch: int = 16,
) -> list[list[int]]:
    """Continue each prompt by up to `max_tokens` tokens and return the new ones, without the stop token.

    Arguments:
        prompts: token ids, at least one per prompt.
        temperature, top_k, top_p, min_p, repetition_penalty: how a token is chosen, see `Sampling`;
        temperature 0
            takes the likeliest token.
        stop_ids: tokens that end a row.
        seed: with the row's number it fixes the row's draws.
        batch: how many prompts are continued at once.

    Raises:
        InputError: for an empty prompt or a token that the model does not know.

    Example:
        >>> from luban.models.decoder import DecoderConfig
        >>> model = Decoder(DecoderConfig(vocab_size=10, layers=1, width=8, heads=2))
        >>> [len(row) for row in generate(model, [[1, 2], [3]], max_tokens=4)]
        [4, 4]
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    rows: list[list[int]] = [[] for _ in prompts]
    for row, token in stream(
        module, prompts, max_tokens, sampling, stop_ids=stop_ids, seed=seed, batch=batch
    ):
        rows[row].append(token)
    return rows


def stream(
    module: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    *,
    stop_ids: Collection[int] = (),
    ended: Collection[int] = (),
    seed: int = 0,
    batch: int = 16,
) -> Iterator[tuple[int, int]]:
    """Yield (row, token) as tokens are chosen; `generate` says what the arguments are.

    Arguments:
        ended: rows that the reader has enough of; it may add to them while tokens come.
    """
    texts = [list(prompt) for prompt in prompts] if max_tokens > 0 else []
    for row, text in enumerate(texts):
        if not text:
            raise InputError("a prompt has no tokens", where=f"prompt {row}", fix="give at least one token")
        vocab_size = _shape(module).vocab_size
        if min(text) < 0 or max(text) >= vocab_size:
            known = f"the model knows tokens 0 to {vocab_size - 1}"
            raise InputError(known, received=max(text, key=abs), where=f"prompt {row}")
    for start in range(0, len(texts), batch):
        rows = [_Row(row, texts[row], seed) for row in range(start, min(start + batch, len(texts)))]
        yield from _stream_rows(module, rows, max_tokens, sampling, frozenset(stop_ids), ended)


class _Row:
    """A prompt with what was written to it, and how much of it the model still reads."""

    def __init__(self, number: int, text: list[int], seed: int) -> None:
        self.number, self.text, self.prompt_length = number, text, len(text)
        self.forgotten = 0  # tokens at the beginning that the model no longer reads
        self.stopped = False
        digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def wants(self, max_tokens: int) -> bool:
        """Whether more is to be written."""
        return not self.stopped and len(self.text) - self.prompt_length < max_tokens

    def uniform(self) -> float:
        """Draw from [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def forget(self, max_length: int) -> bool:
        """Forget the oldest part when the text became too long; say whether that was so."""
        if len(self.text) - self.forgotten <= max_length:
            return False
        self.forgotten = len(self.text) - max(1, max_length // 2)
        return True


def _stream_rows(
    module: LanguageModel,
    rows: list[_Row],
    max_tokens: int,
    sampling: Sampling,
    stop_ids: frozenset[int],
    ended: Collection[int],
) -> Iterator[tuple[int, int]]:
    """Write on for one batch of rows; a row that is done leaves the batch."""
    reader = _Anew(module) if isinstance(module, Rereading) else _Caching(module)
    while rows:
        forgot = [row.forget(_shape(module).max_length) for row in rows]
        tokens = _choose(reader.logits(rows, forgot=any(forgot)), rows, sampling)
        for row, token in zip(rows, tokens, strict=True):
            row.stopped = token in stop_ids
            if not row.stopped:
                row.text.append(token)
                yield row.number, token
        kept = [place for place, row in enumerate(rows) if row.wants(max_tokens) and row.number not in ended]
        if len(kept) < len(rows):
            rows = [rows[place] for place in kept]
            reader.keep(kept)


def _shape(module: LanguageModel) -> Any:
    """Return what knows how many tokens there are and how many are read."""
    return module if isinstance(module, Rereading) else module.config


class _Caching:
    """Reads each token once."""

    def __init__(self, module: Decoder | GPT2) -> None:
        self._module, self._device = module, module.output_weight.device
        self._cache: Cache | None = None

    def logits(self, rows: list[_Row], *, forgot: bool) -> Tensor:
        """Return the logits behind each row's text, (batch, vocab_size)."""
        if self._cache is None or forgot:
            ids, self._cache = _start(rows, self._device)
        else:
            ids = torch.tensor([row.text[-1:] for row in rows], device=self._device)
        return _next_logits(self._module, ids, self._cache)

    def keep(self, places: list[int]) -> None:
        """Continue with these rows."""
        if self._cache is not None:
            self._cache.keep(torch.tensor(places, dtype=torch.int64, device=self._device))


class _Anew:
    """Reads all of a text for each token; what fills a row up stands behind it, where no token sees it."""

    def __init__(self, module: Rereading) -> None:
        self._module = module

    def logits(self, rows: list[_Row], *, forgot: bool) -> Tensor:
        """Return the logits behind each row's text, (batch, vocab_size)."""
        del forgot
        texts = [row.text[row.forgotten :] for row in rows]
        length = max(self._module.min_length, *map(len, texts))
        ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
        last = torch.tensor([len(text) - 1 for text in texts])
        return self._module.logits(ids)[torch.arange(len(rows)), last]

    def keep(self, places: list[int]) -> None:
        """Continue with these rows: nothing is remembered."""


def _start(rows: list[_Row], device: torch.device) -> tuple[Tensor, Cache]:
    """Return what each row reads, padded on the left, (batch, length), and a cache that knows the padding."""
    texts = [row.text[row.forgotten :] for row in rows]
    length = max(len(text) for text in texts)
    starts = [length - len(text) for text in texts]
    ids = torch.tensor([[0] * start + text for start, text in zip(starts, texts, strict=True)], device=device)
    return ids, Cache(torch.tensor(starts, device=device) if any(starts) else None)


@torch.no_grad()
def _next_logits(module: Decoder | GPT2, ids: Tensor, cache: Cache) -> Tensor:
    """Return the logits after the last token, (batch, vocab_size), with dropout off."""
    training = module.training
    module.eval()
    try:
        return F.linear(module.hidden(ids, cache=cache)[:, -1], module.output_weight)
    finally:
        module.train(training)


def _choose(logits: Tensor, rows: list[_Row], sampling: Sampling) -> list[int]:
    seen = torch.zeros_like(logits, dtype=torch.bool)
    if sampling.repetition_penalty != 1.0:
        for place, row in enumerate(rows):
            seen[place, row.text] = True
    uniforms = None
    if sampling.temperature > 0.0:
        uniforms = torch.tensor([row.uniform() for row in rows], dtype=torch.float64)
    tokens: list[int] = choose(logits, sampling, seen, uniforms).tolist()
    return tokens
