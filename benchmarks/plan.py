"""What `luban plan` says against what `luban train` then takes: time, memory, disk, loss, over many recipes and sizes.

    python benchmarks/plan.py [--only NAME ...] [--out benchmarks/results/plan.json]

Each case is planned in one process and trained in another, one after the other, on data that comes with luban. The
ratio is measured over predicted. Time is judged on budgets of steps, tokens on budgets of minutes. Cases that `--only`
leaves out stay in the results as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PLAYS, POEMS = "builtin:shakespeare-plays", "builtin:tang-poems"
CASES = {
    "plays 2x48": ("quickstart-en", "model.layers=2", "model.width=48", "train.steps=400"),
    "plays 3x96": ("quickstart-en", "model.layers=3", "model.width=96", "train.steps=200"),
    "plays 4x128": ("quickstart-en", "model.layers=4", "model.width=128", "train.steps=120"),
    "plays 4x192 adamw": (
        "quickstart-en", "model.layers=4", "model.width=192", "train.optimizer=adamw", "train.steps=80",
    ),
    "plays 5x256 length 256": (
        "quickstart-en", "model.layers=5", "model.width=256", "data.length=256", "train.steps=25",
    ),
    "plays 6x384": ("quickstart-en", "model.layers=6", "model.width=384", "train.batch=8", "train.steps=20"),
    "plays gpt2 4x128": (
        "quickstart-en", "model.layout=gpt2", "model.layers=4", "model.width=128", "train.steps=120",
    ),
    "plays 4x128 batch 64": (
        "quickstart-en", "model.layers=4", "model.width=128", "train.batch=64", "train.steps=20",
    ),
    "plays 3x96 length 512": (
        "quickstart-en", "model.layers=3", "model.width=96", "data.length=512", "train.steps=50",
    ),
    "plays by character": (
        "shakespeare-char", f"data.source={PLAYS}", "train.steps=150",
    ),
    "poems 3x96": ("quickstart-zh", "model.layers=3", "model.width=96", "train.steps=150"),
    "poems 4x192": ("quickstart-zh", "model.layers=4", "model.width=192", "train.steps=60"),
    "plays, half a minute": ("quickstart-en", "train.minutes=0.5"),
    "poems, half a minute": ("quickstart-zh", "train.minutes=0.5"),
    "own text, half a minute": ("text", f"data.source={PLAYS}", "train.minutes=0.5"),
}  # fmt: skip
FIXED = ("train.batch=8", "train.learning_rate=5e-3", "data.length=128")
JUDGED = ("seconds", "tokens", "peak_bytes", "disk_bytes", "nats_per_character")


def luban(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "luban", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def flat(figures: dict) -> dict[str, float]:
    return {**{k: v for k, v in figures.items() if k != "figures"}, **figures["figures"]}


def case(shared: Path, recipe: str, *given: str) -> dict:
    named = {text.split("=")[0] for text in given}
    timed = "train.minutes" in named
    arguments = (
        [recipe, *given] if timed else [recipe, *(f for f in FIXED if f.split("=")[0] not in named), *given]
    )
    ready = prepared(arguments, shared)
    with tempfile.TemporaryDirectory() as folder:
        planned = luban("plan", *ready, "--out", folder)
        trained = luban("train", *ready, "--out", f"{folder}/run")
    predicted, measured = flat(planned["plan"]["predicted"]), flat(trained["measured"])
    judged = [n for n in JUDGED if n != ("seconds" if timed else "tokens")]
    ratios = {n: measured[n] / predicted[n] for n in judged if predicted.get(n) and measured.get(n)}
    return {
        "arguments": arguments,
        "parameters": planned["plan"]["parameters"],
        "predicted": {n: predicted.get(n) for n in JUDGED},
        "measured": {n: measured.get(n) for n in JUDGED},
        "ratio": {n: round(value, 4) for n, value in ratios.items()},
    }


def prepared(arguments: Sequence[str], folder: Path) -> list[str]:
    """Prepare the data once for all cases that read it alike, and let the case read that."""
    recipe = next(a for a in arguments if "=" not in a)
    source = [a for a in arguments if a.startswith("data.source=")]
    place = folder / "-".join([recipe, *source]).replace(":", "-").replace("/", "-")
    if not place.is_dir():
        luban("prepare", recipe, *source, "--out", str(place))
    return [*(a for a in arguments if a not in source), f"data.source={place}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plan.json")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["cases"] if options.out.is_file() else {}
    print(
        f"{'measured / predicted':26}{'parameters':>11}{'seconds':>9}{'tokens':>8}{'memory':>8}{'disk':>7}{'loss':>7}"
    )
    shared = tempfile.TemporaryDirectory()
    for name in options.only:
        rows[name] = row = case(Path(shared.name), *CASES[name])
        ratio = row["ratio"]
        shown = [f"{ratio[n]:.2f}" if n in ratio else "" for n in JUDGED]
        print(
            f"{name:26}{row['parameters']:11,}{shown[0]:>9}{shown[1]:>8}{shown[2]:>8}{shown[3]:>7}{shown[4]:>7}",
            flush=True,
        )
    shared.cleanup()
    summary = {}
    for n in JUDGED:
        errors = [abs(row["ratio"][n] - 1) for row in rows.values() if n in row["ratio"]]
        if errors:
            summary[n] = {"median": round(statistics.median(errors), 4), "worst": round(max(errors), 4)}
            print(f"{n:20} off by {summary[n]['median']:.1%} (median), {summary[n]['worst']:.1%} (worst)")
    rows = {name: rows[name] for name in CASES if name in rows}
    result = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "summary": summary, "cases": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
