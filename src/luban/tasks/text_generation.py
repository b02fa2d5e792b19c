"""Text in, text on: prompts are tokenised, written on by a model, and decoded, up to a stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from luban.data.tokenizer import StreamDecoder, Tokenizer
from luban.errors import InputError
from luban.models.generation import LanguageModel, stream
from luban.models.sampling import Sampling


def generate_text(
    module: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch: int = 16,
) -> list[str]:
    """Return what the model writes after each prompt, without the prompt.

    A text ends at the tokenizer's end token, before the first stop string, or after `max_tokens` tokens. An
    empty prompt, and every prompt of a tokenizer with a begin token of its own, is read with the begin token
    in front.

    Arguments:
        stop: strings that end a text; they are no part of it.
        max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, batch: see
            `luban.models.generation.generate`.
    """
    texts = [""] * len(prompts)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    for row, piece in stream_text(
        module, tokenizer, prompts, max_tokens, sampling, stop=stop, seed=seed, batch=batch
    ):
        texts[row] += piece
    return texts


def stream_text(
    module: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    sampling: Sampling,
    *,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch: int = 16,
) -> Iterator[tuple[int, str]]:
    """Yield (row, piece of text) as soon as a piece is certain; a row's pieces joined are `generate_text`'s
    answer.

    Raises:
        InputError: for an empty stop string.
    """
    if not all(stop):
        raise InputError("a stop string is empty", received=list(stop), fix="leave it out")
    ids = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    writers = [_Writer(tokenizer, stop) for _ in prompts]
    ended: set[int] = set()
    tokens = stream(
        module, ids, max_tokens, sampling, stop_ids={tokenizer.end_id}, ended=ended, seed=seed, batch=batch
    )
    for row, token in tokens:
        writer = writers[row]
        if piece := writer.push(token):
            yield row, piece
        if writer.stopped:
            ended.add(row)
    for row, writer in enumerate(writers):
        if piece := writer.finish():
            yield row, piece


def _prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    ids = tokenizer.encode(prompt)
    if not ids or tokenizer.begin_id != tokenizer.end_id:
        return [tokenizer.begin_id, *ids]
    return ids


class _Writer:
    """One row's text as it comes, held back while it may be the beginning of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder, self._stop = StreamDecoder(tokenizer), stop
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take the next token; return the text that is certain now."""
        return "" if self.stopped else self._take(self._decoder.push(token))

    def finish(self) -> str:
        """Return what was held back; no more tokens come."""
        if self.stopped:
            return ""
        certain = self._take(self._decoder.finish())
        held, self._held = self._held, ""
        return certain + held

    def _take(self, text: str) -> str:
        self._held += text
        found = [(place + len(word), place) for word in self._stop if (place := self._held.find(word)) >= 0]
        if found:
            self.stopped = True
            # The stop string that is complete first counts, however the text was cut into tokens.
            certain, self._held = self._held[: min(found)[1]], ""
            return certain
        keep = max((_overlap(self._held, word) for word in self._stop), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` begin `word`.

    Example:
        >>> _overlap("the end.\\n", "\\n\\n")
        1
    """
    sizes = range(min(len(text), len(word) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(word[:size])), 0)
