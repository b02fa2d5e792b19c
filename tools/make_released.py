"""Make the fixtures of a release: a finished run and a stopped one, as small as runs are, kept for ever.

    python tools/make_released.py

writes tests/fixtures/released/VERSION/ for the installed version: `text.jsonl`, `finished/` (a whole run) and
`stopped/` (the same recipe, asked to stop on the way, with two checkpoints). Later versions are tested to read
them: tests/reliability/test_released.py. What a version wrote is never written again, so a folder that stands
there is not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from luban import __version__
from luban.console import Show
from luban.errors import Stopped
from luban.signals import StopRequest
from luban.training.faults import Faults
from luban.verbs.train import Tools, train

RELEASED = Path(__file__).parents[1] / "tests" / "fixtures" / "released"
MOST_BYTES = 150_000
STOP_AT = 7
# Neither the lock, which names a process, nor the page, which is made again from the rest, is part of a fixture.
LEFT_OUT = (".lock", "report.html")
SENTENCE = "the king of a small house had no wood and went to see 春 眠 不 觉 晓 his old friend in the hills"

RECIPE: dict[str, Any] = {
    "data": {"source": "text.jsonl", "vocab_size": 300, "length": 32, "validation_fraction": 0.2},
    "model": {"layers": 1, "width": 8, "heads": 2, "kv_heads": 1, "mlp_width": 16, "dropout": 0.1},
    "train": {
        "steps": 12,
        "batch": 4,
        "micro_batch": 3,
        "checkpoint_every": 5,
        "compile": "off",
        "dtype": "float32",
    },
    "evaluate": {"sample_tokens": 8, "bootstrap": 50, "prompts": ["the king"]},
}


def write_text(path: Path) -> None:
    """Write eighty made-up documents, one JSON object per line."""
    draw, words = random.Random(3), SENTENCE.split()  # noqa: S311  (the same text every time)
    rows = [{"text": f"{number} " + " ".join(draw.choices(words, k=40)) + "."} for number in range(80)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def make(folder: Path) -> None:
    """Write text and runs into `folder`; sources are named relative, so that no machine is named."""
    write_text(folder / "text.jsonl")
    stop = StopRequest()
    ask = Faults({("step", STOP_AT - 1, 0): lambda: stop.ask("SIGTERM")})
    with contextlib.chdir(folder):
        train(RECIPE, out="finished")
        with contextlib.suppress(Stopped):
            train(RECIPE, out="stopped", tools=Tools(Show(quiet=True), stop, faults=ask))
    for run in (folder / "finished", folder / "stopped"):
        for name in LEFT_OUT:
            (run / name).unlink(missing_ok=True)
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        if size > MOST_BYTES:
            raise SystemExit(f"{run.name} has {size:,} bytes; a fixture may have {MOST_BYTES:,}")


def main() -> None:
    """Make the fixtures of this version, whole or not at all."""
    target = RELEASED / __version__
    if target.exists():
        raise SystemExit(f"{target} is there: what a version wrote is not written again")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    RELEASED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=RELEASED) as scratch:
        new = Path(scratch) / __version__
        new.mkdir()
        make(new)
        shutil.move(new, target)
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
