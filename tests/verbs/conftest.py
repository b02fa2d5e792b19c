"""A recipe that trains in about a second, and the run it makes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from luban.verbs.train import train

SENTENCE = "the king of a small house had no wood and went to see 春 眠 不 觉 晓 his old friend in the hills"
WORDS = SENTENCE.split()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty documents of made-up text, one JSON line each."""
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    draw = random.Random(3)
    rows = [{"text": f"{n} " + " ".join(draw.choices(WORDS, k=40)) + "."} for n in range(80)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def small(text_file: Path) -> dict[str, Any]:
    """A recipe as Python gives it."""
    return {
        "data": {"source": str(text_file), "vocab_size": 300, "length": 32, "validation_fraction": 0.2},
        "model": {"layers": 2, "width": 16, "heads": 2, "mlp_width": 32, "dropout": 0.1},
        "train": {"steps": 12, "batch": 4, "micro_batch": 3, "checkpoint_every": 4, "compile": "off"},
        "evaluate": {"sample_tokens": 8, "bootstrap": 50, "prompts": ["the king"]},
    }


@pytest.fixture(scope="session")
def finished(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    return train(small, out=tmp_path_factory.mktemp("finished") / "run").folder
