"""Cleans a batch of documents, each step counted with examples, and fingerprints what is left of them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luban.data.duplicates import Digests, Signatures, digest, pack_digests, signatures
from luban.data.personal import KINDS, mask_personal, shape
from luban.data.words import SHINGLE, Shingles, analyse
from luban.text_recipe import CleanRecipe

EXAMPLES = 5
_SNIPPET = 120
_LEAD = 40
LANGUAGES = ("en", "zh", "other")

# Line breaks of other kinds become line feeds; what shows nothing or reorders what is shown goes: C0 and C1
# but tab and line feed, byte-order marks within a text, bidirectional overrides, and code points that are no
# characters.
_BREAKS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff]"
)

Effect = Literal["changed", "removed"]


@dataclass(slots=True)
class StepCount:
    """How often a step changed or removed a document, with the first examples: (document, before, after)."""

    effect: Effect
    count: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)


@dataclass(slots=True)
class CleanedBatch:
    """What cleaning made of a batch.

    Arguments:
        texts: the cleaned documents, None where one was removed; (documents,).
        steps: what each step did, by name.
        letters: letters of each kept document by script (en, zh, other), (documents kept, 3).
        digests: of the kept documents, (documents kept, 2).
        signatures: of the kept documents, (documents kept, 128).
    """

    texts: list[str | None]
    steps: dict[str, StepCount]
    letters: NDArray[np.int64]
    digests: Digests
    signatures: Signatures


def clean_batch(recipe: CleanRecipe | None, texts: Sequence[str]) -> CleanedBatch:
    """Run every step that looks at one document alone; which documents are alike is for the caller to find.

    The result depends on nothing but the arguments, so any process can do any batch.
    """
    log = _Log(recipe is not None and recipe.mask_personal)
    if recipe is None:
        kept: list[str | None] = list(texts)
        whole = list(texts)
        counts, shingles = analyse(whole)
        letters = counts.languages()
    else:
        kept = [_change(recipe, position, text, log) for position, text in enumerate(texts)]
        whole, letters, shingles = _choose(recipe, kept, log)
    return CleanedBatch(
        texts=kept,
        steps=log.steps,
        letters=letters,
        digests=pack_digests([digest(text) for text in whole]),
        signatures=signatures(len(whole), shingles),
    )


def steps_of(recipe: CleanRecipe | None) -> dict[str, Effect]:
    """Return the steps a recipe switches on, in their order, each with its effect.

    Example:
        >>> list(steps_of(CleanRecipe(near_duplicates=None)))
        ['control_characters', 'unicode', 'min_characters', 'exact_duplicates']
    """
    if recipe is None:
        return {}
    changes = {"control_characters": recipe.control_characters, "unicode": recipe.unicode != "none"}
    changes |= {f"mask_personal.{kind}": recipe.mask_personal for kind in KINDS}
    removes = {
        "min_characters": recipe.min_characters > 0,
        "max_characters": recipe.max_characters is not None,
        "max_repetition": recipe.max_repetition is not None,
        "max_symbols": recipe.max_symbols is not None,
        "language": recipe.language is not None,
        "exact_duplicates": recipe.exact_duplicates,
        "near_duplicates": recipe.near_duplicates is not None,
    }
    on: dict[str, Effect] = {name: "changed" for name, wanted in changes.items() if wanted}
    on.update({name: "removed" for name, wanted in removes.items() if wanted})
    return on


class _Log:
    """Counts of steps and their first examples; personal data never gets into an example when it is to be
    masked."""

    def __init__(self, masked: bool) -> None:
        self.steps: dict[str, StepCount] = {}
        self._masked = masked

    def add(self, step: str, effect: Effect, position: int, before: str, after: str) -> None:
        entry = self.steps.setdefault(step, StepCount(effect))
        entry.count += 1
        if len(entry.examples) < EXAMPLES:
            shown = _difference(before, after) if effect == "changed" else (snippet(before), after)
            if self._masked:
                shown = (mask_personal(shown[0])[0], mask_personal(shown[1])[0])
            entry.examples.append((position, *shown))


def snippet(text: str) -> str:
    """Return the start of a text, for an example."""
    return text if len(text) <= _SNIPPET else text[:_SNIPPET] + "…"


def _difference(before: str, after: str) -> tuple[str, str]:
    """Cut out both texts where they first differ."""
    low, high = 0, min(len(before), len(after))
    while low < high:  # the longest common start, by halving
        middle = (low + high + 1) // 2
        if before[:middle] == after[:middle]:
            low = middle
        else:
            high = middle - 1
    start = max(0, low - _LEAD)
    lead = "…" if start else ""
    return lead + snippet(before[start:]), lead + snippet(after[start:])


def _change(recipe: CleanRecipe, position: int, text: str, log: _Log) -> str:
    """Run the steps that change a text."""
    steps: list[tuple[str, Callable[[str], str]]] = []
    # Controls first: one between a letter and its accent would keep them from being composed.
    if recipe.control_characters:
        steps.append(("control_characters", _without_controls))
    if recipe.unicode != "none" and not text.isascii():
        form = recipe.unicode
        steps.append(
            ("unicode", lambda t: t if unicodedata.is_normalized(form, t) else unicodedata.normalize(form, t))
        )
    for name, step in steps:
        changed = step(text)
        if changed != text:
            log.add(name, "changed", position, text, changed)
            text = changed
    return _masked(position, text, log) if recipe.mask_personal else text


def _without_controls(text: str) -> str:
    if text.replace("\n", "").isprintable():  # true of most texts, and five times as fast as the patterns
        return text
    return _CONTROLS.sub("", _BREAKS.sub("\n", text))


def _masked(position: int, text: str, log: _Log) -> str:
    """Mask personal data; the example shows the form of what was there, never the thing itself."""
    masked, counts = mask_personal(text)
    for kind, count in counts.items():
        entry = log.steps.get(f"mask_personal.{kind}")
        formed = mask_personal(text, shape)[0] if entry is None or len(entry.examples) < EXAMPLES else ""
        log.add(f"mask_personal.{kind}", "changed", position, formed, masked)
        log.steps[f"mask_personal.{kind}"].count += count - 1
    return masked


def _choose(
    recipe: CleanRecipe, kept: list[str | None], log: _Log
) -> tuple[list[str], NDArray[np.int64], list[Shingles]]:
    """Run the steps that remove documents: put None in their place in `kept`, return what is known of the
    others."""

    def removed(step: str, position: int, reason: str) -> None:
        log.add(step, "removed", position, kept[position] or "", reason)
        kept[position] = None

    for position, text in enumerate(kept):
        characters = len(text.strip()) if text is not None else 0
        if characters < recipe.min_characters:
            removed("min_characters", position, f"{characters} characters")
        elif recipe.max_characters is not None and characters > recipe.max_characters:
            removed("max_characters", position, f"{characters} characters")
    before = _present(kept)
    counts, shingles = analyse([text for _, text in before])
    symbols, letters = counts.symbol_share(), counts.languages()
    hashes = _by_text(shingles, len(before)) if recipe.max_repetition is not None else []
    for row, (position, text) in enumerate(before):
        if (
            recipe.max_repetition is not None
            and (share := _repetition(text, hashes[row])) > recipe.max_repetition
        ):
            removed("max_repetition", position, f"repetition {share:.2f}")
        elif recipe.max_symbols is not None and symbols[row] > recipe.max_symbols:
            removed("max_symbols", position, f"symbols {symbols[row]:.2f}")
        elif recipe.language is not None:
            share = letters[row][LANGUAGES.index(recipe.language)] / max(1, letters[row].sum())
            if share < recipe.min_language_share:
                removed("language", position, f"{recipe.language} {share:.2f}")
    stays = np.array([kept[position] is not None for position, _ in before], dtype=bool)
    if not stays.all():
        shingles = analyse([text for _, text in _present(kept)])[1]
    return [text for _, text in _present(kept)], letters[stays], shingles


def _present(texts: Sequence[str | None]) -> list[tuple[int, str]]:
    return [(position, text) for position, text in enumerate(texts) if text is not None]


def repetition(text: str) -> float:
    r"""Return how much of a text repeats itself, from 0 to 1: the greatest of three shares.

    Lines that stood before, by characters; shingles of four words (of Chinese, four characters) that stood
    before; and the most frequent shingle's repeats, by the words they cover. Rae et al. 2021 (Gopher) filter
    by such shares.

    Example:
        >>> round(repetition("spam and eggs again\n" * 50), 2), repetition("Every word of this line is new.")
        (0.98, 0.0)
    """
    return _repetition(text, _by_text(analyse([text])[1], 1)[0])


def _by_text(blocks: Sequence[Shingles], count: int) -> list[NDArray[np.uint64]]:
    """Return the shingles of each text."""
    parts: list[list[NDArray[np.uint64]]] = [[] for _ in range(count)]
    for block in blocks:
        for owner, start, end in zip(block.owners, block.starts, block.starts[1:], strict=False):
            parts[owner].append(block.hashes[start:end])
    return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]


def _repetition(text: str, hashes: NDArray[np.uint64]) -> float:
    lines = Counter(line.strip() for line in text.splitlines())
    total = sum(len(line) * count for line, count in lines.items())
    repeated = sum(len(line) * (count - 1) for line, count in lines.items())
    of_lines = repeated / total if total else 0.0
    counts = np.unique(hashes, return_counts=True)[1]
    of_shingles = 1 - len(counts) / len(hashes)
    of_top = min(1.0, (int(counts.max()) - 1) * SHINGLE / (len(hashes) + SHINGLE - 1))
    return max(of_lines, of_shingles, of_top)
