"""What a tagger learns of its training sentences before it has weights: words, characters, tags and their scheme."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from luban.data.row_sets import Row
from luban.errors import DataError
from luban.metrics.tag_schemes import forbidden, likely_scheme, misfits, scheme_of
from luban.tasks.rows import Array

MOST_TAGS = 1000
SINGLE = 0.9
"""From this share of single characters on, tokens are characters and not words."""


def learn_words(
    sentences: Iterable[Sequence[str]], word: Callable[[str], str], *, min_count: int, characters: int
) -> dict[str, Any]:
    """Return words and characters, those that came once standing last, and whether tokens are characters.

    Arguments:
        word: what a token is looked up as.
        min_count: a word that comes less often is left out. characters: read of a token.

    Example:
        >>> learn_words([["Ann", "saw", "Bo"], ["Bo", "left"]], str.lower, min_count=1, characters=1)
        {'words': ['bo', 'ann', 'left', 'saw'], 'once': 3, 'single': False, 'letters': ['A', 'B', 'l', 's']}
    """
    words: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    for tokens in sentences:
        words.update(map(word, tokens))
        for token in tokens:
            letters.update(token[:characters])
    frequent = sorted(
        (w for w, count in words.items() if count >= min_count), key=lambda w: (words[w] == 1, w)
    )
    single = sum(count for w, count in words.items() if len(w) == 1)
    return {
        "words": frequent,
        "once": sum(words[w] == 1 for w in frequent),
        "single": single >= SINGLE * words.total(),
        "letters": sorted(letters),
    }


def learn_tags(rows: Callable[[], Iterator[Row]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return tags, their scheme and what it forbids, and notes for the report.

    Raises:
        DataError: there are fewer than two tags, or more than can be told apart.
    """
    tags: Counter[str] = Counter()
    for row in rows():
        tags.update(row["tags"])
    if len(tags) < 2 or len(tags) > MOST_TAGS:
        raise DataError(
            f"there are {len(tags)} different tags; two at least and {MOST_TAGS} at most can be told apart",
            received=list(tags)[:20],
            fix="is the column of the tag right? set data.columns",
        )
    ordered = sorted(tags, key=lambda tag: (tag != "O", tag))
    scheme = scheme_of(tags)
    between, first, last = forbidden(ordered, scheme)
    broken = _permit_what_stands(rows, ordered, between, first, last)
    state = {
        "tags": ordered,
        "tag_counts": [tags[tag] for tag in ordered],
        "scheme": scheme,
        "forbidden": [matrix.astype(int).tolist() for matrix in (between, first, last)],
    }
    if broken:
        detail = (
            f"{broken:,} training sentences have tags that break {scheme}; answers may have what stands there"
        )
    elif scheme == "none" and (likely := likely_scheme(tags)):
        shown = ", ".join(misfits(tags, likely)[:10])
        detail = f"{likely} has no such tags, so all are measured token by token and not as spans: {shown}"
    else:
        return state, []
    return state, [{"kind": "scheme", "detail": detail}]


def _permit_what_stands(
    rows: Callable[[], Iterator[Row]], tags: Sequence[str], between: Array, first: Array, last: Array
) -> int:
    """Allow what is forbidden wherever a training sentence has it, in place; return how many sentences do.

    A field that forbids what it is to learn would spend its whole gradient on these sentences.
    """
    index = {tag: number for number, tag in enumerate(tags)}
    seen, broken = np.zeros_like(between), 0
    begun, ended = np.zeros_like(first), np.zeros_like(last)
    for row in rows():
        numbers = [index[tag] for tag in row["tags"]]
        before, after = numbers[:-1], numbers[1:]
        broken += bool(first[numbers[0]] or last[numbers[-1]] or between[before, after].any())
        seen[before, after] = True
        begun[numbers[0]] = ended[numbers[-1]] = True
    between &= ~seen
    first &= ~begun
    last &= ~ended
    return broken
