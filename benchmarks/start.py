"""How long `luban --help` and every `luban VERB --help` take, from starting the process to its end.

    python benchmarks/start.py [--repeats 15] [--out benchmarks/results/start.json]

The commands run in turn, so that a busy neighbour slows all of them alike. The median of the repeats counts,
the quartiles show the spread. `python -c pass` is the floor that no command in Python gets below. Read
differences to it: absolute times depend on who else uses the machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from luban.cli import luban

LIMIT_SECONDS = 0.3
FLOOR = "python -c pass"


def commands() -> dict[str, list[str]]:
    script = Path(sys.executable).with_name("luban")
    start = [str(script)] if script.is_file() else [sys.executable, "-m", "luban"]
    helps = {f"luban {verb} --help": [*start, verb, "--help"] for verb in sorted(luban.commands)}
    return {FLOOR: [sys.executable, "-c", "pass"], "luban --help": [*start, "--help"], **helps}


def measure(chosen: dict[str, list[str]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat; a first round warms the file cache and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for repeat in range(repeats + 1):
        for name, command in chosen.items():
            before = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            if repeat:
                seconds[name].append(time.perf_counter() - before)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "start.json")
    options = parser.parse_args()
    seconds = measure(commands(), max(2, options.repeats))
    table = {}
    print(f"{'':26}median   quartiles       least   (ms, {os.cpu_count()} cores)")
    for name, own in seconds.items():
        low, median, high = statistics.quantiles(own, n=4)
        table[name] = {"median": median, "low": low, "high": high, "least": min(own)}
        print(f"{name:26}{1e3 * median:6.0f}   {1e3 * low:4.0f} to {1e3 * high:4.0f}{1e3 * min(own):12.0f}")
    slowest = max(own["median"] for own in table.values())
    print(f"\nslowest {slowest:.3f} s: {'under' if slowest < LIMIT_SECONDS else 'OVER'} {LIMIT_SECONDS} s")
    result = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "repeats": options.repeats,
        "limit_seconds": LIMIT_SECONDS,
        "seconds": table,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
