"""The texts that come with the package are whole, clean, and what their SOURCE.md says they are."""

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

TEXTS = Path(str(files("luban"))) / "texts"
PLAYS = sorted((TEXTS / "shakespeare-plays").glob("*.txt"))
POEMS = TEXTS / "tang-poems" / "tang-poems.jsonl"


@pytest.mark.parametrize("folder", ["shakespeare-plays", "tang-poems"])
def test_source_lists_every_file_with_its_digest(folder: str) -> None:
    source = (TEXTS / folder / "SOURCE.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(.+)` \| (\d+) \| `(\w{64})` \|", source)
    listed = {name: (int(size), digest) for name, size, digest in rows}
    found = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (TEXTS / folder).iterdir()
        if path.name != "SOURCE.md"
    }
    assert listed == found
    assert "public domain" in source


def test_plays_are_clean_english() -> None:
    text = "".join(path.read_bytes().decode("ascii") for path in PLAYS)
    assert 1_000_000 < len(text) < 1_100_000
    assert len(PLAYS) == 8
    assert not re.search(r"gutenberg|etext|copyright|http", text, re.IGNORECASE)
    assert not re.search(r"[\t\r]| \n|\n{4}", text)
    assert all(path.read_text(encoding="ascii").count("\nby William Shakespeare\n") == 1 for path in PLAYS)


def test_poems_are_clean_chinese() -> None:
    rows = [json.loads(line) for line in POEMS.read_text(encoding="utf-8").splitlines()]
    assert 1_000_000 < sum(len(row["text"].encode()) for row in rows) < 1_500_000
    assert all(list(row) == ["text"] for row in rows)
    assert len({row["text"] for row in rows}) == len(rows)
    poem = re.compile(r"[^\n□（）{}]+\n[一-鿿]+\n(\n[一-鿿，。？！；：、]+){2,}")
    assert all(poem.fullmatch(row["text"]) for row in rows)
