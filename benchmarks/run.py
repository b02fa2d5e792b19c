"""Run every comparison that needs nothing from outside, as `make bench` does. nanogpt.py wants a clone: README.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMPARISONS = ("start.py", "optimizers.py")


def main() -> None:
    for name in COMPARISONS:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, str(HERE / name)], check=True)


if __name__ == "__main__":
    main()
