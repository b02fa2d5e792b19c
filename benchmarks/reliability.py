"""Repeat the sweeps of tests/reliability at scale, print what came of them, and write results/reliability.json.

    python benchmarks/reliability.py --count 2000
    python benchmarks/reliability.py --only kills --count 200 --seed 3

Each sweep breaks runs in its own way and counts outcomes; one that breaks a promise is counted under BROKEN, is
printed with what repeats it, and makes this command end with 1. A sweep's share of the count stands below. Rows of
sweeps that were left out stay in the results as they are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
RESULTS = HERE / "results" / "reliability.json"
SECONDS_OF_FUZZ = 60


@dataclass(frozen=True)
class Sweep:
    """What is tried, in words; the module and function that do it; how much of the count is theirs."""

    name: str
    tried: str
    share: float
    module: str
    function: str = "sweep"

    def count(self, whole: int) -> int:
        """Return how often to try; of a fuzz, the seconds."""
        return SECONDS_OF_FUZZ if self.module == "fuzz" else max(1, round(whole * self.share))


@dataclass(frozen=True)
class Row:
    """What came of a sweep."""

    sweep: str
    tried: str
    count: int
    outcomes: dict[str, int]
    seconds: float
    command: str


SWEEPS = (
    Sweep("kills", "kill -9 of a run, which then goes on", 1, "kills"),
    Sweep("processes", "kill -9 of `luban train` from outside at random times", 0.01, "kills", "processes"),
    Sweep("disk_faults", "durable operations that fail", 0.25, "disk_faults"),
    Sweep("corruption", "checkpoints damaged, power cut, clocks wrong", 0.5, "corruption"),
    Sweep("determinism", "the same run or order twice", 0.1, "determinism"),
    Sweep("interruptions", "signals in every phase of the work", 0.1, "interruptions"),
    Sweep("nonfinite", "numbers that are none, and spikes, put into a step", 0.1, "nonfinite"),
    Sweep("shortages", "memory that runs out in a step", 0.05, "shortages"),
    Sweep("hostile", "hostile files opened", 0.3, "hostile"),
    Sweep("fuzz", "mutated files read", 0, "fuzz"),
)


def run(sweep: Sweep, count: int, seed: int) -> Row:
    """Do one sweep in a folder of its own that goes away."""
    function = getattr(importlib.import_module(sweep.module), sweep.function)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes: Counter[str] = function(Path(folder), count=sweep.count(count), seed=seed)
    command = f"python benchmarks/reliability.py --only {sweep.name} --count {count} --seed {seed}"
    took = round(time.monotonic() - started, 1)
    return Row(sweep.name, sweep.tried, outcomes.total(), dict(sorted(outcomes.items())), took, command)


def keep(row: Row) -> None:
    """Put a row in the place of the one that stands in the results."""
    written = json.loads(RESULTS.read_text("utf-8"))["sweeps"] if RESULTS.exists() else []
    rows = {**{other["sweep"]: other for other in written}, row.sweep: asdict(row)}
    ordered = [rows[sweep.name] for sweep in SWEEPS if sweep.name in rows]
    about = {"python": platform.python_version(), "machine": platform.machine()}
    RESULTS.write_text(json.dumps({**about, "sweeps": ordered}, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=2000, help="kills; the other sweeps take their share of it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", choices=[sweep.name for sweep in SWEEPS], help="leave out the others"
    )
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS), str(TESTS / "reliability")]
    broken = list[str]()
    for sweep in SWEEPS:
        if options.only and sweep.name not in options.only:
            continue
        row = run(sweep, options.count, options.seed)
        print(f"\n{row.tried}: {row.count:,} in {row.seconds:.0f} s", flush=True)
        for outcome, number in row.outcomes.items():
            print(f"{number:8,}  {outcome}", flush=True)
        broken += [outcome for outcome in row.outcomes if outcome.startswith("BROKEN")]
        keep(row)
    print(f"\npromises broken: {len(broken)}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
