"""A corpus of any size from a few real texts, with duplicates whose number is known: what data_speed.py measures on.

The first documents are the texts themselves, paragraphs joined to at least 400 characters. When they are used
up, further ones are put together from their sentences in random order, 4 to 12 at a time, so that words and
their frequencies stay those of the texts while no two documents are alike by chance. Behind every twentieth
document stands one nearly the same (one word in 120 left out, of Chinese one character), behind every
fiftieth the same once more.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

LEAST, NEAR, EXACT, LEFT_OUT = 400, 20, 50, 120
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])")
_WORD = re.compile(r"[A-Za-z]+ ?|[^A-Za-z]")


def read_text(path: Path) -> str:
    """Return a text, of a file that may be gzipped."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def documents(text: str) -> Iterator[str]:
    """Yield the paragraphs of a text, joined until they have 400 characters.

    Example:
        >>> [len(d) for d in documents("a" * 300 + "\\n\\n" + "b" * 99 + "\\n" + "c" * 400)]
        [400, 400]
    """
    held: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line:
            held.append(line)
        if sum(map(len, held)) + len(held) - 1 >= LEAST:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def nearly(document: str, draw: random.Random) -> str:
    """Return the document without one word, or character of Chinese, in 120; without one at least."""
    words = _WORD.findall(document)
    left_out = set(draw.sample(range(len(words)), max(1, len(words) // LEFT_OUT)))
    return "".join(word for number, word in enumerate(words) if number not in left_out)


def corpus(texts: Sequence[str], size: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (document, kind) until `size` bytes are reached; kinds are `own`, `near` and `exact`."""
    draw = random.Random(seed)
    originals = [document for text in texts for document in documents(text)]
    sentences = [s for document in originals for s in _SENTENCE.split(document) if s.strip()]
    draw.shuffle(originals)
    written = number = 0
    while written < size:
        if number < len(originals):
            document = originals[number]
        else:
            document = " ".join(draw.choice(sentences).strip() for _ in range(draw.randint(4, 12)))
        number += 1
        also = [(nearly(document, draw), "near")] if number % NEAR == 0 else []
        also += [(document, "exact")] if number % EXACT == 0 else []
        for text, kind in [(document, "own"), *also]:
            yield text, kind
            written += len(text.encode("utf-8"))


def write_corpus(texts: Sequence[str], size: int, path: Path) -> dict[str, int]:
    """Write the corpus as JSON lines; return documents, bytes of text, and how many copies of each kind."""
    counts = {"documents": 0, "bytes": 0, "near": 0, "exact": 0}
    with path.open("w", encoding="utf-8") as file:
        for text, kind in corpus(texts, size):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            counts["documents"] += 1
            counts["bytes"] += len(text.encode("utf-8"))
            if kind != "own":
                counts[kind] += 1
    return counts
