"""A little text to plan for."""

import random
from pathlib import Path

import pytest

WORDS = ("the", "king", "of", "a", "small", "house", "had", "no", "wood", "went", "to", "see", "old", "hills")


@pytest.fixture(scope="session")
def text_for_planning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty lines of made-up text."""
    path = tmp_path_factory.mktemp("planned") / "text.txt"
    draw = random.Random(5)
    path.write_text("\n\n".join(f"{n} " + " ".join(draw.choices(WORDS, k=30)) for n in range(40)), "utf-8")
    return path
